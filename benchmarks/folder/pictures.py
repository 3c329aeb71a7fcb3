"""The folders that are worked on: drawn scenes, most of them with a cat, or noise. The same number gives the same pixels.

`python benchmarks/folder/pictures.py FOLDER COUNT` writes scenes; `--noise` writes noise of 64 × 64 pixels, without sprites.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]


def write_scenes(folder: Path, count: int) -> list[Path]:
    """`count` scenes of 128 × 128 pixels as PNG, seven of eight with a cat, beside none to two other objects.

    Raises:
        FileNotFoundError: the objects to draw with are not there; `make sprites` brings them.
    """
    sys.path.insert(0, str(ROOT))
    from models.scenes import HELD_OUT, KINDS, draw_scene, load_sprites

    folder.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites(ROOT / "models" / "sprites")
    others = [kind for kind in KINDS if kind != "cat"]
    written = []
    for index in range(count):
        beside = tuple(others[(index + i) % len(others)] for i in range(index % 3))
        kinds = ("cat" if index % 8 != 7 else others[index % len(others)], *beside)
        scene = draw_scene(sprites, HELD_OUT + 700_000 + index, kinds=kinds)
        written.append(folder / f"scene-{index:05d}.png")
        Image.fromarray(scene.pixels).save(written[-1])
    return written


def write_noise(folder: Path, count: int, side: int = 64) -> None:
    """`count` pictures of noise as PNG, `side` × `side` pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"noise-{index:05d}.png", compress_level=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--noise", action="store_true")
    chosen = parser.parse_args()
    (write_noise if chosen.noise else write_scenes)(chosen.folder, chosen.count)
