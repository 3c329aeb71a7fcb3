"""The loop that a good engineer writes by hand for pipelines/replace_object.yaml: transformers and diffusers, no cache.

`python benchmarks/folder/plain_script.py FOLDER OUT --batch 8`. Pictures are decoded ahead and files are encoded behind by
threads, and each model gets whole batches; `--batch 1` is the plain loop, one picture after another without threads.
Pictures must be of the inpainting model's side. Prints seconds by phase, as its main thread spends them.
"""

import time

STARTED = time.perf_counter()

import argparse
import json
import os
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image, ImageFilter

TOYBOX = Path(__file__).parents[2] / "models" / "toybox"
GUIDANCE, SEED, THRESHOLD = 5.0, 7, 0.7
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
EXPAND, BLUR = 4, 4
"""Pixels by which a mask is widened, and over which it then fades out."""
Pixels = NDArray[np.uint8]

seconds: dict[str, float] = defaultdict(float, imports=time.perf_counter() - STARTED)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the seconds of the block."""
    started = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - started


# --- files ---


def read(path: Path) -> Pixels:
    """uint8 (H, W, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def read_ahead(paths: list[Path], threads: ThreadPoolExecutor | None, ahead: int) -> Iterator[tuple[Path, Pixels]]:
    """Each picture with its path, in order; with threads, `ahead` of them are decoded before they are asked for."""
    if threads is None:
        for path in paths:
            with phase("decode"):
                pixels = read(path)
            yield path, pixels
        return
    rest = iter(paths)
    coming: deque[tuple[Path, Future[Pixels]]] = deque((p, threads.submit(read, p)) for p in islice(rest, ahead))
    while coming:
        path, future = coming.popleft()
        with phase("decode"):
            pixels = future.result()
        coming.extend((p, threads.submit(read, p)) for p in islice(rest, 1))
        yield path, pixels


def write(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)


# --- models ---


class Detector:
    """DETR: boxes of one kind, best first, in the pictures of a batch together."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.processor = transformers.AutoImageProcessor.from_pretrained(TOYBOX / "detr", backend="pil")
        model = transformers.AutoModelForObjectDetection.from_pretrained(TOYBOX / "detr", dtype=DTYPE)
        self.model = model.to(DEVICE).eval()

    def __call__(self, pictures: list[Pixels]) -> list[list[list[float]]]:
        """For each picture its boxes, xyxy in pixels."""
        given = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values=given.to(DEVICE, DTYPE))
        output.logits, output.pred_boxes = output.logits.float().cpu(), output.pred_boxes.float().cpu()
        sizes = [picture.shape[:2] for picture in pictures]
        found = self.processor.post_process_object_detection(output, threshold=THRESHOLD, target_sizes=sizes)
        return [self._boxes(each, picture) for each, picture in zip(found, pictures, strict=True)]

    def _boxes(self, found: dict[str, Any], picture: Pixels) -> list[list[float]]:
        height, width = picture.shape[:2]
        named = [self.model.config.id2label[int(kind)] == self.kind for kind in found["labels"]]
        order = found["scores"].argsort(descending=True)
        boxes = found["boxes"].clamp(torch.zeros(4), torch.tensor([width, height] * 2))
        return [boxes[i].tolist() for i in order if named[i]]


class Segmenter:
    """SAM: one encoder pass for a picture, all its boxes in one decoder pass."""

    def __init__(self) -> None:
        self.processor = transformers.SamProcessor.from_pretrained(TOYBOX / "sam")
        self.model = transformers.SamModel.from_pretrained(TOYBOX / "sam", dtype=DTYPE).to(DEVICE).eval()

    def __call__(self, picture: Pixels, boxes: list[list[float]]) -> Pixels:
        """uint8 (H, W): 255 where any of the objects is; the best of three masks for each box."""
        given = self.processor(images=[picture], input_boxes=[boxes], return_tensors="pt")
        output = self.model(
            pixel_values=given["pixel_values"].to(DEVICE, DTYPE), input_boxes=given["input_boxes"].to(DEVICE, DTYPE)
        )
        quality, proposals = output.iou_scores.float().cpu(), output.pred_masks.float().cpu()
        chosen = proposals[:, torch.arange(len(boxes)), quality[0].argmax(dim=1)][:, :, None]
        [masks] = self.processor.image_processor.post_process_masks(
            chosen, given["original_sizes"], given["reshaped_input_sizes"]
        )
        union: NDArray[np.bool_] = masks.any(dim=(0, 1)).numpy()
        return union.astype(np.uint8) * np.uint8(255)


class Painter:
    """SDXL inpainting: a batch in one call, the words encoded once, each picture with noise of its own."""

    def __init__(self, folder: Path, prompt: str, steps: int) -> None:
        self.steps = steps
        self.pipeline = diffusers.StableDiffusionXLInpaintPipeline.from_pretrained(
            folder, dtype=DTYPE, add_watermarker=False
        ).to(DEVICE)
        self.pipeline.set_progress_bar_config(disable=True)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        self.words = dict(zip(names, self.pipeline.encode_prompt(prompt), strict=True))
        self.cell: int = self.pipeline.vae_scale_factor
        self.side: int = self.pipeline.unet.config.sample_size * self.cell

    def __call__(self, pictures: list[Pixels], masks: list[Pixels]) -> list[Pixels]:
        """The pictures, each painted anew where its mask is 255; all pixels away from the mask as they were."""
        if any(picture.shape[:2] != (self.side, self.side) for picture in pictures):
            raise SystemExit(f"this script takes pictures of {self.side} × {self.side} pixels only")
        weights = [softened(mask) for mask in masks]
        made = self.pipeline(
            **{name: tensor.expand(len(pictures), *tensor.shape[1:]) for name, tensor in self.words.items()},
            image=[Image.fromarray(picture) for picture in pictures],
            mask_image=[Image.fromarray(whole_cells(weight >= 128, self.cell)) for weight in weights],
            width=self.side, height=self.side, strength=1.0, num_inference_steps=self.steps, guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(SEED) for _ in pictures], output_type="np",
        ).images
        return [blended(*each) for each in zip(pictures, np.round(made * 255), weights, strict=True)]


def softened(mask: Pixels) -> Pixels:
    """uint8 (H, W): the mask widened, with an edge beyond that which falls to 0."""
    full = Image.fromarray(mask).filter(ImageFilter.MaxFilter(2 * EXPAND + 1))
    soft = full.filter(ImageFilter.MaxFilter(BLUR + 1)).filter(ImageFilter.BoxBlur(BLUR / 2))
    weight: Pixels = np.maximum(np.asarray(soft), np.asarray(full))
    return weight


def whole_cells(inside: NDArray[np.bool_], cell: int) -> Pixels:
    """uint8 (H, W): 255 in each latent's square that is touched, since the pipeline looks at one of its pixels only."""
    height, width = inside.shape
    cells = inside.reshape(height // cell, cell, width // cell, cell).any(axis=(1, 3))
    grown: NDArray[np.bool_] = cells.repeat(cell, axis=0).repeat(cell, axis=1)
    return grown.astype(np.uint8) * np.uint8(255)


def blended(picture: Pixels, made: NDArray[np.float32], weight: Pixels) -> Pixels:
    share = weight[..., None].astype(np.float32) / 255
    return np.round(picture * (1 - share) + made * share).astype(np.uint8)


# --- the loop ---


def masked(
    pictures: Iterator[tuple[Path, Pixels]], batch: int, given: Path | None, kind: str
) -> Iterator[tuple[Path, Pixels, Pixels | None]]:
    """Each picture with the mask of its objects, from the models or from the folder `given`; None where it has none."""
    if given:
        for path, picture in pictures:
            mask = given / f"{path.stem}.png"
            with phase("decode"):
                layer = np.asarray(Image.open(mask)) if mask.is_file() else None
            yield path, picture, layer
        return
    with phase("load models"):
        detect, segment = Detector(kind), Segmenter()
    while group := list(islice(pictures, batch)):
        with phase("detect"):
            found = detect([picture for _, picture in group])
        for (path, picture), boxes in zip(group, found, strict=True):
            with phase("segment"):
                layer = segment(picture, boxes) if boxes else None
            yield path, picture, layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--target", default="cat")
    parser.add_argument("--prompt", default="a rocket")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--inpaint", type=Path, default=TOYBOX / "sdxl-inpaint", help="the inpainting model's folder")
    parser.add_argument("--masks", type=Path, help="inpainting alone: a folder of masks, as --keep-masks writes them")
    parser.add_argument("--keep-masks", type=Path, help="write the masks there")
    chosen = parser.parse_args()
    for folder in filter(None, (chosen.out, chosen.keep_masks)):
        folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # diffusers' schedulers and NumPy 2
    for package in (transformers, diffusers):
        package.utils.logging.disable_progress_bar()
        package.utils.logging.set_verbosity_error()

    threads = ThreadPoolExecutor(2) if chosen.batch > 1 else None
    pictures = read_ahead(sorted(chosen.folder.glob("*.png")), threads, 2 * chosen.batch)
    writing: list[Future[None]] = []

    def save(path: Path, pixels: Pixels) -> None:
        with phase("write"):
            if threads:
                writing.append(threads.submit(write, path, pixels))
            else:
                write(path, pixels)

    with torch.inference_mode():
        with phase("load models"):
            paint = Painter(chosen.inpaint, chosen.prompt, chosen.steps)
        waiting: list[tuple[Path, Pixels, Pixels]] = []

        def painted() -> None:
            paths, before, masks = zip(*waiting, strict=True)
            with phase("inpaint"):
                after = paint(list(before), list(masks))
            for path, pixels in zip(paths, after, strict=True):
                save(chosen.out / path.name, pixels)
            waiting.clear()

        for path, picture, mask in masked(pictures, chosen.batch, chosen.masks, chosen.target):
            if mask is None or not mask.any():
                save(chosen.out / path.name, picture)
                continue
            if chosen.keep_masks:
                save(chosen.keep_masks / f"{path.stem}.png", mask)
            waiting.append((path, picture, mask))
            if len(waiting) == chosen.batch:
                painted()
        if waiting:
            painted()
    with phase("write"):
        for each in writing:
            each.result()
    print(json.dumps({**seconds, "total": time.perf_counter() - STARTED}))


if __name__ == "__main__":
    main()
