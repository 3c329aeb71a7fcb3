"""The work that every peer does: a chain of nodes that each invert a 512 × 512 picture, with every result kept on disk."""

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def arguments() -> tuple[int, Path]:
    """How many nodes, and the folder for what is kept."""
    return int(sys.argv[1]), Path(sys.argv[2])


def source() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)


def step(image: Pixels, index: int) -> Pixels:
    return 255 - image + np.uint8(index % 2)


def report(seconds: float, image: Pixels, **more: float) -> None:
    """Say how long the chain took, without the process's start, and a sum that must be the same for all."""
    print(json.dumps({"seconds": seconds, "sum": int(image.sum()), **more}))
