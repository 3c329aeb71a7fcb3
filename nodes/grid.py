"""Many pictures as one labelled sheet: what this field calls an X/Y/Z plot. Pure drawing."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from nodes.artifacts import Image, Masks

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

MAX_SIDE = 1024
"""Pixels of a picture's longer side on a sheet, as long as few stand there."""
_MAX_AREA = 2**24
_MAX_LENGTH = 2**14

_PAPER, _INK, _EMPTY, _PALE = (255, 255, 255), (34, 34, 34), (240, 240, 240), (130, 130, 130)
_LINES = 6
_LETTERS = 12
"""A label may be wider than its pictures, up to so many times the height of its letters."""


@dataclass(frozen=True)
class Sheet:
    """One table of pictures under a title. Where there is no picture, words say why."""

    title: str
    rows: Sequence[Sequence[Image | str]]


def cell_side(columns: int, rows: int) -> int:
    """The side in pixels of the square that each of `columns` × `rows` pictures is scaled down to fit, so that the
    sheet can still be looked at."""
    side = min(MAX_SIDE, math.isqrt(_MAX_AREA // (columns * rows)), _MAX_LENGTH // max(columns, rows))
    return max(side, 8)


def thumbnail(value: Image | Masks, side: int) -> Image:
    """The picture, or the union of the masks, as RGB on white, scaled down, never up, to fit a square of `side` pixels."""
    from PIL import Image as pil

    picture = value.pil if isinstance(value, Image) else pil.fromarray(value.union)
    picture.thumbnail((side, side), pil.Resampling.LANCZOS)
    paper = pil.new("RGB", picture.size, _PAPER)
    paper.paste(picture, mask=picture if picture.mode == "RGBA" else None)
    return Image(np.asarray(paper))


def writable(text: str) -> str:
    """The text in the letters that the labels' font has, which are ASCII: accents go; nothing, where letters would be lost."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain if plain.isascii() else ""


def grid(columns: Sequence[str], rows: Sequence[str], sheets: Sequence[Sheet]) -> Image:
    """Sheets of pictures below each other, each with the labels of its columns on top and of its rows on the left.

    Pictures stand as they are, in the middle of cells as large as the largest. Letters grow with the pictures, so that
    they can be read in a sheet that is looked at as a whole. An empty label or title takes no room.
    """
    from PIL import Image as pil

    table = _Table(columns, rows, [cell for sheet in sheets for row in sheet.rows for cell in row if isinstance(cell, Image)])
    heights = [table.height_of(sheet) for sheet in sheets]
    paper = pil.new("RGB", (table.total, sum(heights)), _PAPER)
    for sheet, below in zip(sheets, accumulate(heights, initial=table.gap), strict=False):
        table.draw(paper, below, sheet)
    return Image(np.asarray(paper))


class _Table:
    """Where things stand in each sheet, in pixels: cells of `width` × `height` with `gap` between them, the first
    `across` from the left and `down` below the title. No picture is larger than `largest`."""

    def __init__(self, columns: Sequence[str], rows: Sequence[str], pictures: Sequence[Image]) -> None:
        width = max((picture.width for picture in pictures), default=0)
        height = max((picture.height for picture in pictures), default=0)
        self.largest = width, height
        self.pen = _Pen(min(max(max(width, height) // 12, 13), 48))
        self.gap = max(8, max(width, height) // 48)
        self.top = [self.pen.wrapped(label, width) for label in columns]
        self.left = [self.pen.wrapped(label, 0) for label in rows]
        tops, lefts = [self.pen.size(label) for label in self.top], [self.pen.size(label) for label in self.left]
        self.width, self.height = max(width, *(w for w, _ in tops)), max(height, *(h for _, h in lefts))
        self.across, self.down = self.gap + self._with_gap(max(w for w, _ in lefts)), self._with_gap(max(h for _, h in tops))
        self.total = self.across + len(columns) * (self.width + self.gap)

    def _with_gap(self, length: int) -> int:
        return length + self.gap if length else 0

    def _title(self, sheet: Sheet) -> tuple[str, int]:
        text = self.pen.wrapped(sheet.title, self.total - 2 * self.gap)
        return text, self._with_gap(self.pen.size(text)[1])

    def height_of(self, sheet: Sheet) -> int:
        """The pixels that a sheet takes, with a gap below each row and one more at the end."""
        return self._title(sheet)[1] + self.down + len(sheet.rows) * (self.height + self.gap) + self.gap

    def draw(self, paper: PilImage, y: int, sheet: Sheet) -> None:
        """Draw a sheet that begins at `y`."""
        from PIL import ImageDraw

        draw = ImageDraw.Draw(paper)
        title, room = self._title(sheet)
        self.pen.write(draw, (self.gap, y), title, "la")
        y += room + self.down
        xs = range(self.across, self.total, self.width + self.gap)
        for x, label in zip(xs, self.top, strict=True):
            self.pen.write(draw, (x + self.width // 2, y - self.gap), label, "md")
        for label, row in zip(self.left, sheet.rows, strict=True):
            self.pen.write(draw, (self.across - self.gap, y + self.height // 2), label, "rm")
            for x, cell in zip(xs, row, strict=True):
                self._fill(paper, draw, (x + self.width // 2, y + self.height // 2), cell)
            y += self.height + self.gap

    def _fill(self, paper: PilImage, draw: ImageDraw, middle: tuple[int, int], cell: Image | str) -> None:
        width, height = self.largest if isinstance(cell, str) else (cell.width, cell.height)
        left, top = middle[0] - width // 2, middle[1] - height // 2
        if isinstance(cell, Image):
            paper.paste(cell.pil, (left, top))
        else:
            draw.rectangle((left, top, left + width - 1, top + height - 1), fill=_EMPTY)
            self.pen.write(draw, middle, self.pen.wrapped(cell, width), "mm", _PALE)


class _Pen:
    """Writes with letters of one size, in pixels."""

    def __init__(self, letters: int) -> None:
        from PIL import ImageFont

        self.letters = letters
        self._font: FreeTypeFont = ImageFont.load_default(letters)  # type: ignore[assignment]

    def wrapped(self, text: str, width: int) -> str:
        """The text in lines of about `width` pixels, or of what a label needs if that is more."""
        letters = max(width, _LETTERS * self.letters) / self._font.getlength("n")
        return textwrap.fill(text, int(letters), max_lines=_LINES, placeholder="…")

    def size(self, text: str) -> tuple[int, int]:
        """Width and height in pixels that a text takes."""
        from PIL import Image as pil
        from PIL import ImageDraw

        draw = ImageDraw.Draw(pil.new("L", (1, 1)))
        left, _, right, bottom = draw.multiline_textbbox((0, 0), text, self._font, spacing=self.letters // 4)
        return math.ceil(right - left), math.ceil(bottom) if text else 0

    def write(
        self, draw: ImageDraw, at: tuple[int, int], text: str, anchor: str, ink: tuple[int, int, int] = _INK
    ) -> None:
        """Write at a place that `anchor` names in Pillow's terms: `md` is the middle of the last line's foot."""
        align = {"l": "left", "m": "center", "r": "right"}[anchor[0]]
        draw.multiline_text(at, text, ink, self._font, anchor, spacing=self.letters // 4, align=align)
