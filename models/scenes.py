"""Draws seeded scenes with their truth: objects of 24 kinds on softly lit backdrops in eight named colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

KINDS: tuple[str, ...] = (
    "apple", "banana", "strawberry", "pizza", "burger", "donut", "avocado", "watermelon", "mushroom", "cat", "dog", "fox",
    "panda", "frog", "pig", "turtle", "car", "rocket", "ball", "gift", "cactus", "sunflower", "star", "robot",
)
CODE_POINTS: dict[str, str] = dict(zip(KINDS, (
    "1f34e", "1f34c", "1f353", "1f355", "1f354", "1f369", "1f951", "1f349", "1f344", "1f431", "1f436", "1f98a",
    "1f43c", "1f438", "1f437", "1f422", "1f697", "1f680", "26bd", "1f381", "1f335", "1f33b", "2b50", "1f916",
), strict=True))
BACKDROPS: dict[str, tuple[int, int, int]] = {
    "pink": (250, 160, 200), "blue": (110, 165, 240), "green": (130, 205, 145), "yellow": (248, 218, 120),
    "purple": (180, 150, 225), "orange": (250, 180, 115), "white": (245, 243, 245), "grey": (140, 142, 152),
}
HELD_OUT = 1_000_000
"""Scenes with this seed and above are never trained on."""

Sprites = Mapping[str, Image.Image]


@dataclass(frozen=True)
class Scene:
    """A picture and its truth: `pixels` uint8 (H, W, 3), `boxes` float32 (N, 4) xyxy pixels tight around what is seen of each
    object, `masks` uint8 (N, H, W) with 255 inside, `labels`, the backdrop's name, and a caption."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    masks: NDArray[np.uint8]
    labels: tuple[str, ...]
    backdrop: str
    caption: str


def load_sprites(folder: Path = Path("models/sprites")) -> dict[str, Image.Image]:
    """The 24 objects as RGBA pictures of 256 px.

    Raises:
        FileNotFoundError: they are not there; `make sprites` brings them.
    """
    missing = [kind for kind in KINDS if not (folder / f"{kind}.webp").is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {missing[0]}.webp; bring the objects with: make sprites")
    sprites = {}
    for kind in KINDS:
        sprite = Image.open(folder / f"{kind}.webp").convert("RGBA")
        sprites[kind] = sprite.crop(sprite.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    return sprites


def caption_of(labels: Sequence[str], backdrop: str) -> str:
    """`a cat and an apple on a blue background`."""
    named = [f"{'an' if label[0] in 'aeiou' else 'a'} {label}" for label in labels]
    objects = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    return f"{objects} on {'an' if backdrop[0] in 'aeiou' else 'a'} {backdrop} background"


@lru_cache(maxsize=64)
def _grid(width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x / width, y / height


def _backdrop(random: np.random.Generator, colour: tuple[int, int, int], width: int, height: int) -> NDArray[np.float32]:
    """A wall, softly lit from one place, that turns into a floor."""
    x, y = _grid(width, height)
    base = np.asarray(colour, np.float32) + random.uniform(-7, 7, 3).astype(np.float32)
    cx, cy = random.uniform(0.2, 0.8), random.uniform(0.0, 0.5)
    light = 18 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.25) - 8
    horizon = random.uniform(0.55, 0.8)
    floor = 1 / (1 + np.exp(-(y - horizon) / 0.03))
    shade = light + floor * (-14 + 16 * (y - horizon))
    picture: NDArray[np.float32] = base[None, None] + shade[..., None].astype(np.float32)
    return picture


def _placed(random: np.random.Generator, sprite: Image.Image, size: float) -> Image.Image:
    """The object turned, mirrored and scaled so that its longer side is `size` pixels."""
    angle = float(np.clip(random.normal(0, 12), -25, 25))
    if random.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    around = max(sprite.size)
    draft = min(around, max(32, int(size * 2)))
    if draft < around:
        sprite = sprite.resize([max(1, round(side * draft / around)) for side in sprite.size], Image.Resampling.BOX)
    sprite = sprite.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    sprite = sprite.crop(sprite.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    scale = size / max(sprite.size)
    return sprite.resize([max(2, round(side * scale)) for side in sprite.size], Image.Resampling.LANCZOS)


def _overlap(box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> float:
    """The largest share of either box that another one covers."""
    worst = 0.0
    for other in others:
        w = min(box[2], other[2]) - max(box[0], other[0])
        h = min(box[3], other[3]) - max(box[1], other[1])
        if w > 0 and h > 0:
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
            worst = max(worst, w * h / min(areas))
    return worst


def draw_scene(
    sprites: Sprites, seed: int, width: int = 128, height: int = 128,
    count: int | None = None, kinds: Sequence[str] | None = None,
) -> Scene:
    """Draw the scene of a seed: 1 to 4 objects, or `count`, or one of each of `kinds` in that order.

    Objects hide little of each other and lie within the picture; the same arguments give the same pixels.
    """
    random = np.random.default_rng(seed)
    wanted = count or (len(kinds) if kinds else int(random.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1])))
    labels = list(kinds) if kinds else [KINDS[i] for i in random.choice(len(KINDS), wanted, replace=random.random() < 0.15)]
    backdrop = list(BACKDROPS)[int(random.integers(len(BACKDROPS)))]
    picture = _backdrop(random, BACKDROPS[backdrop], width, height)
    side = min(width, height)
    low, high = {1: (0.4, 0.88), 2: (0.3, 0.5), 3: (0.25, 0.42)}.get(wanted, (0.22, 0.36))
    masks: list[NDArray[np.uint8]] = []
    taken: list[tuple[float, ...]] = []
    kept: list[str] = []
    for label in labels:
        for attempt in range(40):
            size = side * random.uniform(low, high) * 0.97**attempt
            object_ = _placed(random, sprites[label], size)
            w, h = object_.size
            if w > width - 2 or h > height - 2:
                continue
            left, top = int(random.integers(1, width - w)), int(random.integers(1, height - h))
            if _overlap((left, top, left + w, top + h), taken) <= 0.12:
                break
        else:
            continue
        taken.append((left, top, left + w, top + h))
        kept.append(label)
        alpha = np.zeros((height, width), np.float32)
        pixels = np.asarray(object_, np.float32)
        alpha[top : top + h, left : left + w] = pixels[..., 3] / 255
        _shadow(picture, left, top, w, h, side)
        inside = picture[top : top + h, left : left + w]
        inside += (pixels[..., :3] - inside) * (pixels[..., 3:] / 255)
        solid = np.where(alpha > 0.5, 255, 0).astype(np.uint8)
        masks = [mask & ~solid for mask in masks] + [solid]
    boxes = [(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) for ys, xs in (np.nonzero(mask) for mask in masks)]
    return Scene(
        np.clip(np.round(picture), 0, 255).astype(np.uint8), np.asarray(boxes, np.float32).reshape(-1, 4),
        np.stack(masks), tuple(kept), backdrop, caption_of(kept, backdrop),
    )


def _shadow(picture: NDArray[np.float32], left: int, top: int, w: int, h: int, side: int) -> None:
    """Darken the floor under an object, in a soft ellipse."""
    height, width = picture.shape[:2]
    radius = max(1.0, side * 0.025)
    rx, ry = w * 0.45, max(2.0, h * 0.08)
    x0, x1 = max(0, int(left - 3 * radius)), min(width, int(left + w + 3 * radius))
    y0, y1 = max(0, int(top + h - ry * 2 - 3 * radius)), min(height, int(top + h + ry * 2 + 3 * radius))
    if x1 <= x0 or y1 <= y0:
        return
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    inside = ((x - left - w / 2) / rx) ** 2 + ((y - top - h + ry * 0.3) / ry) ** 2 < 1
    soft = Image.fromarray((inside * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    picture[y0:y1, x0:x1] *= 1 - 0.38 * (np.asarray(soft, np.float32)[..., None] / 255)
