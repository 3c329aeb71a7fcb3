"""Read masks that were drawn by hand or by another program."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from nodes.artifacts import Artifact, Image, Masks
from nodes.base import Source
from nodes.pictures import SUFFIXES, read_picture


class LoadMask(Source):
    """Read a picture as a mask: white is inside.

    Each file gives Masks of one layer, label "" and score 1: inside where the luminance (ITU-R BT.601) is 128 or more,
    transparent pixels seen on black. With `like` it reads, for each element of that step, the file that `path` names by
    its picture's `{folder}`, `{name}`, `{stem}` and by the element's `{id}`; else `path` is a file, a folder or a
    pattern, as for Load.

    Raises:
        InputError: the file is absent, no picture, truncated, or too large.
    """

    version: ClassVar[str] = "1"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def run(self, file: Path, like: Artifact | None = None) -> Masks:
        from PIL import Image as pil

        picture = Image.from_pil(read_picture(file)).pil
        if picture.mode == "RGBA":
            picture = pil.alpha_composite(pil.new("RGBA", picture.size, "black"), picture)
        inside = np.asarray(picture.convert("L")) >= 128
        return Masks(np.where(inside, 255, 0).astype(np.uint8)[None], ("",), np.ones(1, np.float32))
