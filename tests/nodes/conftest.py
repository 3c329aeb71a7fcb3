"""The example pictures with their truth, and measures to compare with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as pil

from nodes import Image, Load, Masks
from nodes.models import SETS

EXAMPLES = Path(__file__).parents[2] / "models" / "toybox" / "examples"


@dataclass(frozen=True)
class Example:
    """A picture and what is in it: boxes float32 (N, 4) xyxy, N labels, N masks, the backdrop's name."""

    file: Path
    image: Image
    boxes: NDArray[np.float32]
    labels: tuple[str, ...]
    masks: Masks
    backdrop: str


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small are quicker on one thread, above all beside other work."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toybox() -> Mapping[str, str]:
    """Folders of the toybox models by role."""
    return SETS["toybox"]


@pytest.fixture(scope="session")
def examples() -> dict[str, Example]:
    """All example pictures by file name."""
    found = {}
    for name, entry in json.loads((EXAMPLES / "truth.json").read_text("utf-8")).items():
        file = EXAMPLES / name
        with pil.open(EXAMPLES / "truth" / f"{file.stem}.png") as instances:
            numbers = np.asarray(instances)
        count = len(entry["labels"])
        layers = np.stack([np.where(numbers == i + 1, 255, 0).astype(np.uint8) for i in range(count)])
        masks = Masks(layers, tuple(entry["labels"]), np.ones(count, np.float32))
        boxes = np.asarray(entry["boxes"], np.float32)
        image = Load(path=str(file)).run(file)
        found[name] = Example(file, image, boxes, tuple(entry["labels"]), masks, entry["backdrop"])
    return found


@pytest.fixture(scope="session")
def box_iou() -> Callable[[NDArray[np.float32], NDArray[np.float32]], float]:
    """Intersection over union of two boxes in xyxy."""

    def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        shared = float(np.prod(np.clip(high - low, 0, None)))
        return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)

    return iou


@pytest.fixture(scope="session")
def mask_iou() -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]:
    """Intersection over union of two masks (H, W)."""

    def iou(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
        return float(((a > 0) & (b > 0)).sum() / max(1, ((a > 0) | (b > 0)).sum()))

    return iou
