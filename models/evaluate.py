"""Measures the exported toybox models on held-out scenes, through the genuine Hugging Face classes only."""

import argparse
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, DetrForObjectDetection, Dinov2Model, SamModel, SamProcessor

from models.scenes import HELD_OUT, Scene, draw_scene, load_sprites
from models.training import TOYBOX, scene_size

GOALS: dict[str, dict[str, float]] = {
    "detr": {"precision": 0.95, "recall": 0.95},
    "sam": {"mean IoU from boxes": 0.92, "mean IoU from a centre point": 0.88},
    "dino": {"precision@1 of the kind": 0.97},
    "text_to_image": {"object asked for is found": 0.95, "backdrop's colour": 0.98},
    "inpainting": {"object asked for is in the mask": 0.90, "pixels outside are the same": 1.00},
}


@lru_cache(maxsize=2)
def held_out(count: int) -> tuple[Scene, ...]:
    """Scenes never trained on: four in ten not square, and one in five drawn at twice the size."""
    sprites = load_sprites()
    scenes = []
    for index in range(count):
        width, height = scene_size(HELD_OUT + index)
        scale = 2 if index % 5 == 4 else 1
        scenes.append(draw_scene(sprites, HELD_OUT + index, width * scale, height * scale))
    return tuple(scenes)


def box_overlaps(found: NDArray[Any], true: NDArray[Any]) -> NDArray[Any]:
    """IoU of every found box with every true one, (N, 4) and (M, 4) xyxy → (N, M)."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), -1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], -1) for boxes in (found, true)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9))


def measure_detr(count: int = 500, folder: Path = TOYBOX / "detr", grey: bool = False) -> dict[str, float]:
    """Precision and recall at score 0.7: right class and IoU of at least 0.5, each object found once."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")  # type: ignore[no-untyped-call]
    model = DetrForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    found = true = right = placed = 0
    overlaps: list[float] = []
    for scene in held_out(count):
        picture = Image.fromarray(scene.pixels)
        if grey:
            picture = picture.convert("L").convert("RGB")
        with torch.inference_mode():
            outputs = model(**processor(images=picture, return_tensors="pt"))
        result = processor.post_process_object_detection(outputs, 0.7, [(picture.height, picture.width)])[0]
        names = [model.config.id2label[label] for label in result["labels"].tolist()]
        table = box_overlaps(result["boxes"].numpy(), scene.boxes)
        found, true = found + len(names), true + len(scene.labels)
        free = set(range(len(scene.labels)))
        for index in result["scores"].argsort(descending=True).tolist():
            best = max(free, key=lambda other: table[index, other], default=None)
            if best is None or table[index, best] < 0.5:
                continue
            placed += 1
            if names[index] == scene.labels[best]:
                free.remove(best)
                right += 1
                overlaps.append(float(table[index, best]))
    return {
        "precision": right / max(found, 1),
        "recall": right / true,
        "mean IoU of found boxes": float(np.mean(overlaps)) if overlaps else 0.0,
        "right class of placed boxes": right / max(placed, 1),
    }


def centre_point(mask: NDArray[np.uint8]) -> list[float]:
    """The pixel of the object that lies nearest to the middle of its mask, x and y."""
    ys, xs = np.nonzero(mask > 127)
    nearest = np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2)
    return [float(xs[nearest]), float(ys[nearest])]


def measure_sam(count: int = 500, folder: Path = TOYBOX / "sam") -> dict[str, float]:
    """Mean IoU with the true mask of the mask that the model believes best, of three."""
    processor = SamProcessor.from_pretrained(folder, backend="pil")
    model = SamModel.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    overlaps: dict[str, list[float]] = {"boxes": [], "a centre point": [], "both": []}
    errors: list[float] = []
    for scene in held_out(count):
        boxes = {"input_boxes": [scene.boxes.tolist()]}
        points = {"input_points": [[[centre_point(mask)] for mask in scene.masks]]}
        for name, prompt in {"boxes": boxes, "a centre point": points, "both": boxes | points}.items():
            inputs = processor(images=Image.fromarray(scene.pixels), return_tensors="pt", **prompt)
            inputs = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
            sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
            with torch.inference_mode():
                outputs = model(**inputs)
            masks = processor.image_processor.post_process_masks(outputs.pred_masks, *sizes)[0].numpy()
            for drawn, scores, mask in zip(masks, outputs.iou_scores[0], scene.masks, strict=True):
                best, inside = drawn[int(scores.argmax())], mask > 127
                overlaps[name].append(float((best & inside).sum() / max((best | inside).sum(), 1)))
                errors.append(abs(overlaps[name][-1] - float(scores.max())))
    measured = {f"mean IoU from {name}": float(np.mean(values)) for name, values in overlaps.items()}
    return measured | {"error of the predicted IoU": float(np.mean(errors))}


def object_crops(count: int) -> Iterator[tuple[Image.Image, str, str, int]]:
    """Crops of objects with up to 15 % of margin on each side: picture, kind, backdrop, scene."""
    random = np.random.default_rng(HELD_OUT)
    for number, scene in enumerate(held_out(count)):
        picture = Image.fromarray(scene.pixels)
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            size = np.tile(box[2:] - box[:2], 2)
            wider = box + np.array([-1, -1, 1, 1]) * size * random.uniform(0, 0.15, 4)
            left, top = np.floor(np.maximum(wider[:2], 0)).astype(int)
            right, bottom = np.ceil(np.minimum(wider[2:], picture.size)).astype(int)
            yield picture.crop((left, top, right, bottom)), label, scene.backdrop, number


def measure_dino(count: int = 500, folder: Path = TOYBOX / "dino") -> dict[str, float]:
    """Precision@1: is the most alike crop (cosine of the CLS vectors) of another scene of the same kind?"""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")  # type: ignore[no-untyped-call]
    model = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    crops, kinds, backdrops, numbers = zip(*object_crops(count), strict=True)
    vectors: list[Tensor] = []
    for start in range(0, len(crops), 64):
        with torch.inference_mode():
            inputs = processor(images=list(crops[start : start + 64]), return_tensors="pt")
            vectors.append(model(**inputs).last_hidden_state[:, 0])
    unit = torch.nn.functional.normalize(torch.cat(vectors), dim=1)
    scene = torch.tensor(numbers)
    alike = (unit @ unit.T).masked_fill(scene[:, None] == scene[None], -2)
    nearest = alike.argmax(1).tolist()
    same_kind = [kinds[one] == kinds[other] for one, other in enumerate(nearest)]
    same_both = [same and backdrops[i] == backdrops[nearest[i]] for i, same in enumerate(same_kind)]
    return {
        "precision@1 of the kind": float(np.mean(same_kind)),
        "precision@1 of kind and backdrop": float(np.mean(same_both)),
    }


def measurements() -> dict[str, Callable[[int], dict[str, float]]]:
    """What can be measured, by name. SDXL's part is imported only when it is asked for."""

    def later(name: str) -> Callable[[int], dict[str, float]]:
        def measure(count: int) -> dict[str, float]:
            from importlib import import_module

            measured: dict[str, float] = getattr(import_module("models.evaluate_sdxl"), name)()
            return measured

        return measure

    return {
        "detr": measure_detr,
        "sam": measure_sam,
        "dino": measure_dino,
        "text_to_image": later("measure_text_to_image"),
        "inpainting": later("measure_inpainting"),
        "refiner": later("measure_refiner"),
    }


def main() -> None:
    known = measurements()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--only", default=",".join(known), help="some of: " + ",".join(known))
    chosen = parser.parse_args()
    print("| model | figure | measured | goal |\n|---|---|---|---|")
    for name in chosen.only.split(","):
        for figure, value in known[name](chosen.scenes).items():
            goal = GOALS.get(name, {}).get(figure)
            print(f"| {name} | {figure} | {value:.3f} | {'' if goal is None else f'≥ {goal:.2f}'} |", flush=True)


if __name__ == "__main__":
    main()
