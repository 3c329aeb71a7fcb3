"""Put crops back where they were cut out."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nodes.artifacts import Boxes, Image
from nodes.base import Node
from nodes.errors import InputError
from nodes.pictures import like, resized


class Paste(Node):
    """Put crops back into the picture that `Crop` cut them out of, whatever was done to them since.

    `crops` and `places` go together: each place is one box of whole pixels, as `Crop` gives it. A crop of another size
    is scaled to its place (Lanczos); it gives its colours, and the picture keeps its alpha and its greyness. Over
    `feather` pixels inside a crop's edge (at most a quarter of its shorter side) it fades into what is there, but not
    where the edge is the picture's own. Later crops lie on top of earlier ones. Outside all places the pixels stay
    what they are; without crops the picture passes unchanged and its info says so.

    Raises:
        InputError: the lists differ in length, or a place is not one box of whole pixels inside the picture.
    """

    version: ClassVar[str] = "1"
    aligned: ClassVar[bool] = True
    feather: Annotated[int, Field(ge=0, le=1024)] = 4

    def run(self, image: Image, crops: list[Image], places: list[Boxes]) -> Image:
        if len(crops) != len(places):
            raise InputError(f"Paste: {len(crops)} crops but {len(places)} places; each crop needs its place")
        if not len(crops):
            return image.with_info(note="no crops: passed unchanged")
        pixels = image.pixels.copy()
        for index, (crop, place) in enumerate(zip(crops, places, strict=True)):
            left, top, right, bottom = _corners(image, place, index)
            there = Image(pixels[top:bottom, left:right])
            colours = like(there, resized(crop.rgb, there.width, there.height)).astype(np.float32)
            feather = min(self.feather, there.width // 4, there.height // 4)
            share = np.minimum.outer(
                _fade(top, bottom, image.height, feather), _fade(left, right, image.width, feather)
            )[..., None]
            pixels[top:bottom, left:right] = np.round(there.pixels * (1 - share) + colours * share)
        return Image(pixels)


def _corners(image: Image, place: Boxes, index: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a place, in whole pixels."""
    if len(place) != 1:
        raise InputError(f"Paste: place {index} has {len(place)} boxes; expected the one box that the crop was cut from")
    left, top, right, bottom = (round(corner) for corner in place.xyxy[0].tolist())
    inside = 0 <= left < right <= image.width and 0 <= top < bottom <= image.height
    if not inside or [left, top, right, bottom] != place.xyxy[0].tolist():
        corners = ", ".join(f"{corner:g}" for corner in place.xyxy[0].tolist())
        raise InputError(
            f"Paste: place {index} ({corners}) is not a box of whole pixels inside the picture of {image.width}×{image.height}"
        )
    return left, top, right, bottom


def _fade(low: int, high: int, length: int, feather: int) -> NDArray[np.float32]:
    """float32 (high - low,): the crop's share of each pixel along one side, 1 but for `feather` pixels at either end that
    is not an end of the picture."""
    steps = np.arange(1, high - low + 1)
    full = np.full_like(steps, feather + 1)
    rising = full if low == 0 else steps
    falling = full if high == length else steps[::-1]
    return (np.minimum(np.minimum(rising, falling), full) / (feather + 1)).astype(np.float32)
