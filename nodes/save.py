"""Encode pictures as files of a chosen format."""

from __future__ import annotations

import io
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from nodes.artifacts import File, Image
from nodes.base import Sink
from nodes.errors import InputError

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}


class Save(Sink):
    """A picture as a file: `png`, `jpeg`, `webp` or `tiff`, written under `name` (`{id}`: the element's id).

    `quality` (1..100) is for JPEG and WebP; `lossless` makes WebP lossless, and the quality then is its effort. PNG and
    TIFF always are lossless. JPEG has no transparency: it is laid on white.

    Raises:
        InputError: the format cannot hold a picture of that size.
    """

    version: ClassVar[str] = "1"
    format: Literal["png", "jpeg", "webp", "tiff"] = "png"
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    lossless: bool = False

    def run(self, image: Image) -> File:
        from PIL import Image as pil

        picture = image.pil
        if self.format == "jpeg" and picture.mode == "RGBA":
            ground = pil.new("RGBA", picture.size, "white")
            picture = pil.alpha_composite(ground, picture).convert("RGB")
        options: dict[str, dict[str, Any]] = {
            "png": {},
            "jpeg": {"quality": self.quality, "subsampling": "4:4:4" if self.quality >= 90 else "4:2:0"},
            "webp": {"quality": self.quality, "lossless": self.lossless, "exact": self.lossless},
            "tiff": {"compression": "tiff_deflate"},
        }
        data = io.BytesIO()
        try:
            picture.save(data, self.format.upper(), **options[self.format])
        except (OSError, ValueError) as error:
            raise InputError(f"Save: {image.width}×{image.height} pixels do not fit {self.format}: {error}") from error
        return File(np.frombuffer(data.getvalue(), np.uint8), SUFFIXES[self.format])
