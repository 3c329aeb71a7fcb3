"""Show many pictures as one."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, field_validator

from nodes.artifacts import MAX_BYTES, Image
from nodes.base import Node
from nodes.errors import InputError


class ContactSheet(Node):
    """All pictures of a list on one sheet, from left to right and top to bottom.

    Each is scaled down, never up, to fit a square of `cell` pixels and stands in its middle, `gap` pixels from the
    next; `columns` is by default the number that makes the sheet about square. Transparency shows the `background`,
    a colour by name or `#rrggbb`. An empty list gives one empty cell, and the info says so.

    Raises:
        InputError: the sheet would be too large.
    """

    version: ClassVar[str] = "1"
    tolerates_missing: ClassVar[bool] = True
    columns: Annotated[int, Field(ge=1)] | None = None
    cell: Annotated[int, Field(ge=8, le=4096)] = 128
    gap: Annotated[int, Field(ge=0, le=1024)] = 8
    background: str = "white"

    @field_validator("background")
    @classmethod
    def _known_colour(cls, value: str) -> str:
        _rgb(value)
        return value

    def run(self, images: list[Image]) -> Image:
        from PIL import Image as pil

        count = len(images)
        columns = self.columns or max(1, math.ceil(math.sqrt(count)))
        columns, rows = min(columns, max(count, 1)), max(1, math.ceil(count / columns))
        step = self.cell + self.gap
        width, height = columns * step + self.gap, rows * step + self.gap
        if width * height * 3 > MAX_BYTES or max(width, height) > 65_500:
            raise InputError(
                f"ContactSheet: {count} pictures make a sheet of {width}×{height} pixels; use smaller cells"
            )
        sheet = pil.new("RGB", (width, height), _rgb(self.background))
        for index, image in enumerate(images):
            picture = image.pil if image.pixels.shape[2] != 1 else image.pil.convert("RGB")
            picture.thumbnail((self.cell, self.cell), pil.Resampling.LANCZOS)
            left = self.gap + index % columns * step + (self.cell - picture.width) // 2
            top = self.gap + index // columns * step + (self.cell - picture.height) // 2
            sheet.paste(picture, (left, top), picture if picture.mode == "RGBA" else None)
        made = Image(np.asarray(sheet))
        return made if count else made.with_info(note="no picture: an empty sheet")


def _rgb(colour: str) -> tuple[int, int, int]:
    from PIL import ImageColor

    red, green, blue = ImageColor.getrgb(colour)[:3]
    return red, green, blue
