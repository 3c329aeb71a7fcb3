"""What the toybox trainers share: a bank of drawn scenes, augmentation, the clock, checkpoints and averages.

It knows scenes and tensors, but no architecture.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from models.scenes import BACKDROPS, KINDS, Scene, draw_scene, load_sprites

CANVAS = 128
MOST_OBJECTS = 4
MODELS = Path(__file__).parent
WORK = MODELS / "work"
TOYBOX = MODELS / "toybox"
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Bank:
    """Drawn scenes as tensors, each in the upper left of a square canvas.

    Shapes: pixels (N, 128, 128, 3) uint8; sizes (N, 2) height and width; inside (N, 128, 128) uint8, whose bit i
    says that the pixel belongs to object i; boxes (N, 4, 4) xyxy pixels; labels (N, 4), −1 where there is no object.
    """

    pixels: Tensor
    sizes: Tensor
    inside: Tensor
    boxes: Tensor
    labels: Tensor
    backdrops: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def counts(self) -> Tensor:
        return (self.labels >= 0).sum(1)


def scene_size(seed: int) -> tuple[int, int]:
    """Width and height for a seed: six in ten square, the others up to 16:9 in either direction."""
    draw = np.random.default_rng([seed, 77])
    if draw.random() < 0.6:
        return CANVAS, CANVAS
    shorter = int(draw.integers(72, CANVAS))
    return (CANVAS, shorter) if draw.random() < 0.5 else (shorter, CANVAS)


def pack(scenes: list[Scene]) -> Bank:
    bank = Bank(
        pixels=torch.zeros(len(scenes), CANVAS, CANVAS, 3, dtype=torch.uint8),
        sizes=torch.zeros(len(scenes), 2, dtype=torch.int64),
        inside=torch.zeros(len(scenes), CANVAS, CANVAS, dtype=torch.uint8),
        boxes=torch.zeros(len(scenes), MOST_OBJECTS, 4),
        labels=torch.full((len(scenes), MOST_OBJECTS), -1, dtype=torch.int64),
        backdrops=torch.zeros(len(scenes), dtype=torch.int64),
    )
    names = list(BACKDROPS)
    for row, scene in enumerate(scenes):
        height, width = scene.pixels.shape[:2]
        bank.pixels[row, :height, :width] = torch.from_numpy(scene.pixels)
        bank.sizes[row] = torch.tensor([height, width])
        bank.backdrops[row] = names.index(scene.backdrop)
        for index, label in enumerate(scene.labels[:MOST_OBJECTS]):
            bit = (scene.masks[index] > 127).astype(np.uint8) << index
            bank.inside[row, :height, :width] |= torch.from_numpy(bit)
            bank.boxes[row, index] = torch.from_numpy(np.asarray(scene.boxes[index], dtype=np.float32))
            bank.labels[row, index] = KINDS.index(label)
    return bank


def load_bank(count: int = 16_000) -> Bank:
    """The training scenes (seeds 0 to count − 1), drawn once and kept in `models/work/`."""
    path = WORK / f"scenes-{count}.safetensors"
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        sprites = load_sprites()
        parts = []
        for start in range(0, count, 1000):
            seeds = range(start, min(start + 1000, count))
            parts.append(pack([draw_scene(sprites, seed, *scene_size(seed)) for seed in seeds]))
            print(f"drew {seeds.stop} scenes", flush=True)
        joined = {field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Bank)}
        unfinished = path.with_suffix(".part")
        save_file(joined, unfinished)
        unfinished.replace(path)
    return Bank(**load_file(path))


@dataclass(frozen=True)
class Batch:
    """Augmented scenes: pixels (B, 3, 128, 128) normalized, valid (B, 128, 128) 1 where there is picture, boxes
    (B, 4, 4) xyxy in canvas pixels, labels (B, 4), inside (B, 128, 128) bits, sizes (B, 2) height and width."""

    pixels: Tensor
    valid: Tensor
    boxes: Tensor
    labels: Tensor
    inside: Tensor
    sizes: Tensor


def augment(bank: Bank, rows: Tensor, random: torch.Generator) -> Batch:
    """Flips, moves, scales and stretches scenes so that each object stays in the picture, and changes their colours."""
    count = len(rows)
    sizes, boxes, labels = bank.sizes[rows].float(), bank.boxes[rows], bank.labels[rows]
    real = labels >= 0
    far = 1e4
    low = torch.where(real[..., None], boxes[..., :2], far).amin(1)
    high = torch.where(real[..., None], boxes[..., 2:], -far).amax(1)
    whole = sizes.flip(1)

    # A window of the scene, from a little outside it to just around all objects, becomes the new picture.
    draw = torch.rand(count, 12, generator=random)
    moved = draw[:, 0:1] < 0.75
    start = torch.where(moved, (low + 0.08 * whole) * draw[:, 1:3] - 0.08 * whole, torch.zeros_like(low))
    stop = torch.where(moved, high + (1.08 * whole - high) * draw[:, 3:5], whole)
    wide = torch.maximum(stop - start, whole * 0.6)
    start = torch.minimum(start, stop - wide).minimum(low)
    stop = torch.maximum(start + wide, high)
    wide = stop - start
    stretch = torch.exp((draw[:, 5:6] - 0.5) * 0.45)
    ratio = (wide * torch.cat([stretch, 1 / stretch], 1)).clamp(min=1)
    new = (CANVAS * ratio / ratio.amax(1, keepdim=True)).round().clamp(min=56)

    ticks = torch.arange(CANVAS) + 0.5
    places = start[:, :, None] + ticks * (wide / new)[:, :, None]
    flipped = (draw[:, 6] < 0.5)[:, None]
    xs = torch.where(flipped, (start[:, 0:1] + stop[:, 0:1]) - places[:, 0], places[:, 0])
    xs = xs.clamp(min=0.5).minimum(whole[:, 0:1] - 0.5)
    ys = places[:, 1].clamp(min=0.5).minimum(whole[:, 1:2] - 0.5)
    grid = torch.stack([xs[:, None, :].expand(-1, CANVAS, -1), ys[:, :, None].expand(-1, -1, CANVAS)], -1)
    grid = grid / (CANVAS / 2) - 1

    raw = rough_pixels(bank.pixels[rows], draw[:, 7], random)
    pixels = functional.grid_sample(raw.permute(0, 3, 1, 2).float() / 255, grid, align_corners=False)
    rows_at, columns_at = ys.long(), xs.long()
    inside = bank.inside[rows][torch.arange(count)[:, None, None], rows_at[:, :, None], columns_at[:, None, :]]
    valid = (ticks[None, None, :] < new[:, 0, None, None]) & (ticks[None, :, None] < new[:, 1, None, None])
    pixels = recolour(pixels, random)
    pixels = (pixels - MEAN) / STD * valid[:, None]
    inside = inside * valid

    scale = (new / wide).repeat(1, 2)[:, None, :]
    placed = (boxes - start.repeat(1, 2)[:, None, :]) * scale
    mirrored = torch.stack(
        [new[:, 0:1] - placed[..., 2], placed[..., 1], new[:, 0:1] - placed[..., 0], placed[..., 3]], -1
    )
    placed = torch.where(flipped[..., None], mirrored, placed)
    placed = torch.minimum(placed.clamp(min=0), new.repeat(1, 2)[:, None, :]) * real[..., None]
    return Batch(pixels, valid.float(), placed, labels, inside, new.flip(1).long())


def rough_pixels(pixels: Tensor, chance: Tensor, random: torch.Generator) -> Tensor:
    """Sends one picture in eight through JPEG; uint8 (B, H, W, 3) in and out."""
    rough = pixels.clone()
    for row in torch.nonzero(chance < 0.12).flatten().tolist():
        quality = int(torch.randint(25, 90, (1,), generator=random))
        rough[row] = torch.from_numpy(jpeg(pixels[row].numpy(), quality))
    return rough


def jpeg(pixels: np.ndarray[Any, np.dtype[np.uint8]], quality: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from io import BytesIO

    kept = BytesIO()
    Image.fromarray(pixels).save(kept, "JPEG", quality=quality)
    return np.array(Image.open(kept))


def recolour(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and a little hue; some pictures become grey, soft or noisy. Values 0 to 1."""
    count = len(pixels)
    draw = torch.rand(count, 10, generator=random)

    def between(column: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * draw[:, column]).view(-1, 1, 1, 1)

    grey = pixels.mean(1, keepdim=True)
    saturation = torch.where((draw[:, 0] < 0.08).view(-1, 1, 1, 1), 0.0, between(1, 0.6, 1.3))
    mixed = grey + (pixels - grey) * saturation
    mixed = (mixed - 0.5) * between(2, 0.8, 1.2) + 0.5 + between(3, -0.12, 0.12)
    tint = 1 + (torch.rand(count, 3, 1, 1, generator=random) - 0.5) * 0.16
    mixed = mixed * tint
    soft = draw[:, 4] < 0.1
    if soft.any():
        mixed[soft] = functional.avg_pool2d(mixed[soft], 3, 1, 1, count_include_pad=False)
    noisy = draw[:, 5] < 0.2
    if noisy.any():
        strength = between(6, 0.0, 0.08)[noisy]
        mixed[noisy] = mixed[noisy] + strength * torch.randn(mixed[noisy].shape, generator=random)
    return mixed.clamp(0, 1)


class Average:
    """Exponential moving average of everything in a model's state, buffers included."""

    def __init__(self, model: nn.Module, decay: float = 0.998) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


@dataclass(frozen=True)
class Tick:
    """One training step: its number and how much of the training time is over, 0 to 1."""

    step: int
    progress: float


class Training:
    """Drives one model's training by the clock and goes on from the last checkpoint.

    `minutes` counts all runs together, in processor time, so that a busy machine shortens no training. The learning
    rate warms up, stays, and falls to nearly nothing as a cosine over the second half.
    """

    def __init__(self, name: str, model: nn.Module, minutes: float, rate: float, decay: float = 0.998) -> None:
        self.path = WORK / f"{name}.safetensors"
        self.model, self.minutes, self.rate = model, minutes, rate
        matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
        self.step, self.spent = 0, 0.0
        self.average = Average(model, decay)
        self.sums: dict[str, float] = {}
        self.summed = 0
        if self.path.exists():
            self._load()
            print(f"goes on from step {self.step} after {self.spent:.1f} minutes", flush=True)

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        parts = {"model": self.model.state_dict(), "average": self.average.state}
        parts |= {f"optimizer.{index}": kept for index, kept in self.optimizer.state_dict()["state"].items()}
        # Copied: weights that a model has under two names, or in another order of memory, are refused as they are.
        tensors = {
            f"{part}/{name}": value.detach().clone(memory_format=torch.contiguous_format)
            for part, kept in parts.items() for name, value in kept.items()
        }
        save_file(tensors, unfinished, {"step": str(self.step), "minutes": repr(self.spent)})
        os.replace(unfinished, self.path)

    def _load(self) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(self.path).items():
            part, name = key.split("/", 1)
            parts.setdefault(part, {})[name] = tensor
        with safe_open(self.path, "pt") as kept:
            told = kept.metadata()
        self.step, self.spent = int(told["step"]), float(told["minutes"])
        self.model.load_state_dict(parts.pop("model"))
        self.average.state = parts.pop("average")
        groups = self.optimizer.state_dict()["param_groups"]
        state = {int(part.removeprefix("optimizer.")): kept for part, kept in parts.items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def ticks(self) -> Iterator[Tick]:
        """Yields until the time is up; saves every two minutes and reports every twenty seconds."""
        began = reported = saved = time.monotonic()
        last = time.process_time()
        while self.spent < self.minutes:
            progress = self.spent / self.minutes
            falling = 0.5 + 0.5 * math.cos(math.pi * max(0.0, progress - 0.5) * 2)
            rate = self.rate * max(falling, 0.01) * min(1.0, (self.step + 1) / 200)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            yield Tick(self.step, progress)
            self.step += 1
            now, used = time.monotonic(), time.process_time()
            self.spent += (used - last) / 60 / torch.get_num_threads()
            last = used
            if now - reported > 20:
                means = "  ".join(f"{name} {value / self.summed:.3f}" for name, value in self.sums.items())
                print(f"{self.spent:6.1f} min  step {self.step:6d}  rate {rate:.1e}  {means}", flush=True)
                self.sums, self.summed, reported = {}, 0, now
            if now - saved > 120:
                self.save()
                saved = now
        self.save()
        print(f"{self.step} steps in {self.spent:.1f} minutes, {(time.monotonic() - began) / 60:.1f} now", flush=True)

    def learn(self, loss: Tensor, **shown: float) -> None:
        """One optimizer step on `loss`, with gradients clipped, and the average moved."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model, self.step)
        self.summed += 1
        for name, value in {"loss": float(loss.detach()), **shown}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


def arguments(description: str | None, minutes: float, **flags: str) -> argparse.Namespace:
    """What a trainer is called with; `flags` are further ones of its own, by name, with their help. With `--minutes 0` it
    exports its last checkpoint."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=minutes, help="training time of all runs together")
    parser.add_argument("--threads", type=int, default=1)
    for name, told in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=told)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def make_portable(folder: Path) -> None:
    """Make a model folder fit to be shared: readable by all (weights are written with mode 0600), and without the path that
    diffusers notes in each config."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
