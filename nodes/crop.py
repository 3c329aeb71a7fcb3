"""Cut boxes out of a picture."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from nodes.artifacts import Boxes, Image
from nodes.base import Node
from nodes.errors import InputError


class Crops(NamedTuple):
    """Pictures cut out of one, and where each comes from: one box of whole pixels, with its label and score."""

    images: list[Image]
    places: list[Boxes]


class Crop(Node):
    """One picture for each box, in the order of the boxes: all pixels that the box touches; and its place, for `Paste`.

    `padding` widens the box on each side by that share of its own width and height; `square` then widens the shorter
    side to the longer one, moved inside the picture where it would leave it. What still reaches beyond the picture is
    cut off. `size` scales each crop (Lanczos) until its longer side has that many pixels, so that a model sees small
    objects at the size it was made for; the place stays that in the picture.

    Raises:
        InputError: a box lies outside the picture.
    """

    version: ClassVar[str] = "2"
    padding: Annotated[float, Field(ge=0, le=10)] = 0.0
    square: bool = False
    size: Annotated[int, Field(ge=1, le=8192)] | None = None

    def run(self, image: Image, boxes: Boxes) -> Crops:
        crops = Crops([], [])
        rows = zip(boxes.xyxy.tolist(), boxes.labels, boxes.scores.tolist(), strict=True)
        for index, (box, label, score) in enumerate(rows):
            x1, y1, x2, y2 = (round(corner, 2) for corner in box)
            if x2 < 0 or y2 < 0 or x1 > image.width or y1 > image.height:
                raise InputError(
                    f"Crop: box {index} ({x1:g}, {y1:g}, {x2:g}, {y2:g}) lies outside the picture "
                    f"of {image.width}×{image.height}"
                )
            wider, higher = (x2 - x1) * self.padding, (y2 - y1) * self.padding
            left, right = _span(x1 - wider, x2 + wider, image.width)
            top, bottom = _span(y1 - higher, y2 + higher, image.height)
            if self.square:
                side = max(right - left, bottom - top)
                left, right = _widened(left, right, side, image.width)
                top, bottom = _widened(top, bottom, side, image.height)
            crops.images.append(self._scaled(Image(image.pixels[top:bottom, left:right])))
            place = np.array([[left, top, right, bottom]], np.float32)
            crops.places.append(Boxes(place, (label,), np.array([score], np.float32)))
        return crops

    def _scaled(self, crop: Image) -> Image:
        from PIL import Image as pil

        longer = max(crop.width, crop.height)
        if self.size in (None, longer):
            return crop
        width, height = (max(1, round(side * self.size / longer)) for side in (crop.width, crop.height))
        return Image.from_pil(crop.pil.resize((width, height), pil.Resampling.LANCZOS))


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    """The whole pixels, at least one, that low..high touches within 0..length."""
    start = min(max(math.floor(low), 0), length - 1)
    return start, max(min(math.ceil(high), length), start + 1)


def _widened(low: int, high: int, side: int, length: int) -> tuple[int, int]:
    """low..high about its middle to `side` pixels, moved inside 0..length, or all of it."""
    side = min(side, length)
    start = min(max((low + high - side) // 2, 0), length - side)
    return start, start + side
