"""Nodes that cost next to nothing, so that what is seen is the engine: `photoloom run … --nodes light_nodes.py`."""

import numpy as np

from nodes import Image, Masks, Node


class Invert(Node):
    """Each value turned into its opposite."""

    def run(self, image: Image) -> Image:
        return Image(255 - image.pixels)


class Threshold(Node):
    """White where a value is above `level`, else black."""

    level: int = 128

    def run(self, image: Image) -> Image:
        return Image(np.where(image.pixels > self.level, 255, 0).astype(np.uint8))


class Middle(Node):
    """A mask of the square in the middle, half as wide as the picture."""

    def run(self, image: Image) -> Masks:
        layer = np.zeros((1, image.height, image.width), np.uint8)
        layer[:, image.height // 4 : image.height * 3 // 4, image.width // 4 : image.width * 3 // 4] = 255
        return Masks(layer, ("",), np.ones(1, np.float32))
