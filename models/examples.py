"""Writes the example pictures: held-out scenes in the forms that files come in, with their truth.

Run as `python -m models.examples`; it writes `models/toybox/examples/`, with `truth.json` and `truth/<stem>.png`, whose
pixels hold the number of the object there, counted from 1, and 0 for the backdrop.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.scenes import HELD_OUT, Scene, draw_scene, load_sprites

FOLDER = Path(__file__).parent / "toybox" / "examples"
ORIENTATION = 0x0112
"""The EXIF tag that says how a stored picture must be turned."""


@dataclass(frozen=True)
class Example:
    """One file: what its scene holds, its size in pixels, and the form it is kept in."""

    kinds: tuple[str, ...]
    backdrop: str
    width: int = 128
    height: int = 128
    form: str = "png"

    @property
    def stem(self) -> str:
        return "-".join((*self.kinds, self.backdrop))

    @property
    def filename(self) -> str:
        return f"{self.stem}.{'jpg' if self.form in ('jpg', 'rotated') else 'png'}"


EXAMPLES: tuple[Example, ...] = (
    Example(("cat",), "blue"),
    Example(("cat",), "pink"),
    Example(("cat",), "green", form="jpg"),
    Example(("cat", "cat"), "purple"),
    Example(("cat", "apple"), "white"),
    Example(("dog", "cat"), "orange", 192, 128),
    Example(("dog",), "green"),
    Example(("dog", "apple"), "green", form="jpg"),
    Example(("fox",), "grey"),
    Example(("panda", "gift"), "yellow"),
    Example(("frog",), "pink", form="jpg"),
    Example(("pig", "donut"), "blue"),
    Example(("turtle",), "orange", 128, 176),
    Example(("car", "ball"), "grey", 160, 96),
    Example(("rocket",), "purple"),
    Example(("rocket", "star"), "blue", form="jpg"),
    Example(("robot",), "yellow", form="rgba"),
    Example(("burger", "pizza", "watermelon"), "white", 512, 512, "jpg"),
    Example(("sunflower", "cactus"), "orange", 176, 128, "rotated"),
    Example(("mushroom",), "white"),
    Example(("strawberry", "banana"), "pink"),
    Example(("avocado",), "purple", form="grey"),
    Example(("apple", "banana", "strawberry", "donut"), "green"),
    Example(("ball", "turtle", "frog"), "yellow"),
)


def draw_example(sprites: Mapping[str, Image.Image], example: Example, first_seed: int) -> Scene:
    """The scene of the first seed, from `first_seed` on, that has every object and the backdrop asked for."""
    for seed in range(first_seed, first_seed + 1000):
        scene = draw_scene(sprites, seed, example.width, example.height, kinds=example.kinds)
        if scene.labels == example.kinds and scene.backdrop == example.backdrop:
            return scene
    raise ValueError(f"no scene from seed {first_seed} on shows {example.stem}")


def save_picture(scene: Scene, example: Example, path: Path) -> None:
    picture = Image.fromarray(scene.pixels)
    if example.form == "rotated":
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        picture.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=exif)
    elif example.form == "jpg":
        picture.save(path, quality=95)
    else:
        modes = {"rgba": "RGBA", "grey": "L", "png": "RGB"}
        picture.convert(modes[example.form]).save(path, optimize=True)


def write_examples(folder: Path = FOLDER) -> None:
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    sprites = load_sprites()
    truth = {}
    for index, example in enumerate(EXAMPLES):
        scene = draw_example(sprites, example, HELD_OUT + 500_000 + 1000 * index)
        save_picture(scene, example, folder / example.filename)
        instances = np.zeros((example.height, example.width), np.uint8)
        for number, mask in enumerate(scene.masks, start=1):
            instances[mask > 0] = number
        Image.fromarray(instances).save(folder / "truth" / f"{example.stem}.png", optimize=True)
        truth[example.filename] = {
            "width": example.width, "height": example.height, "boxes": scene.boxes.tolist(),
            "labels": list(scene.labels), "backdrop": scene.backdrop, "caption": scene.caption,
        }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in truth.items())
    (folder / "truth.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    write_examples()
    print(f"{len(EXAMPLES)} pictures in {FOLDER}")
