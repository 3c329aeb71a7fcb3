"""Read pictures. Which files there are is the engine's business."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from nodes.artifacts import Image
from nodes.base import Source
from nodes.pictures import SUFFIXES, read_picture


class Load(Source):
    """Read a picture: upright, 8 bits a channel, sRGB.

    `path` is a file, a folder or a pattern with `*`, `**` and `?`; each file gives one Image (H, W, 1, 3 or 4). The
    EXIF rotation is applied, an embedded colour profile is converted to sRGB, transparency is kept, 16-bit grey is
    scaled to 8 bits, palettes and CMYK become RGB, and an animation gives its first frame.

    Raises:
        InputError: the file is absent, no picture, truncated, or too large.
    """

    version: ClassVar[str] = "1"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def run(self, file: Path) -> Image:
        return Image.from_pil(read_picture(file))
