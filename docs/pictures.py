"""Draws the pictures of the README: `.venv/bin/python docs/pictures.py` runs the pipelines that they show."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image as pil
from PIL import ImageDraw

from flows import Pipeline
from nodes import Boxes, ContactSheet, Image, Masks

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "models" / "toybox" / "examples"
NAMES = ("cat-blue", "cat-pink", "cat-apple-white")
ENLARGED = 2
INK = (225, 29, 72)


def main() -> None:
    pictures = [picture for name in NAMES for picture in row(EXAMPLES / f"{name}.png")]
    sheet = ContactSheet(columns=4, cell=256).run([Image.from_pil(picture) for picture in pictures])
    sheet.pil.save(HERE / "pictures" / "replace_object.png", optimize=True)
    with pil.open(grid()) as picture:
        picture.save(HERE / "pictures" / "sweep.png", optimize=True)


def grid() -> Path:
    """The grid of the README's sweep."""
    pipeline = Pipeline.from_yaml(HERE.parent / "pipelines" / "generate_and_refine.yaml")
    result = pipeline.run({"count": 1}, sweep={"guidance_scale": [1, 2, 4, 8], "seed": [7, 8]})
    return Path(result.summary["grids"][0]["path"])


def row(path: Path) -> list[pil.Image]:
    """A picture, its boxes, its masks and what became of it, as pixels of the real run."""
    pipeline = Pipeline.from_yaml(HERE.parent / "pipelines" / "replace_object.yaml")
    result = pipeline.run({"photos": str(path)})
    photo, boxes, masks, edited = (result[name][0] for name in ("photo", "boxes", "masks", "edited"))
    plain = enlarged(cast(Image, photo).pil.convert("RGB"))
    return [
        plain,
        with_boxes(plain, cast(Boxes, boxes)),
        with_masks(plain, cast(Masks, masks)),
        enlarged(cast(Image, edited).pil.convert("RGB")),
    ]


def enlarged(picture: pil.Image) -> pil.Image:
    return picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), pil.Resampling.LANCZOS)


def with_boxes(picture: pil.Image, boxes: Boxes) -> pil.Image:
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    for box, label, score in zip(boxes.xyxy, boxes.labels, boxes.scores, strict=True):
        left, top, right, bottom = (float(edge) * ENLARGED for edge in box)
        pen.rectangle((left, top, right, bottom), outline=INK, width=2)
        pen.text((left + 5, max(top - 14, 2)), f"{label} {score:.2f}", fill=INK)
    return drawn


def with_masks(picture: pil.Image, masks: Masks) -> pil.Image:
    inside = pil.fromarray(masks.union).resize(picture.size, pil.Resampling.NEAREST)
    pixels, where = np.asarray(picture).astype(float), np.asarray(inside) > 0
    pixels[where] = 0.45 * pixels[where] + 0.55 * np.asarray(INK)
    return pil.fromarray(pixels.round().astype(np.uint8))


if __name__ == "__main__":
    main()
