"""Cut out objects: from boxes or points to masks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from nodes.artifacts import Boxes, Image, Masks
from nodes.base import Model, Node
from nodes.errors import InputError
from nodes.models import Place, held
from nodes.vision import Vision, load_vision, seen


class Segment(Node):
    """Masks of the objects that boxes or points show: SAM (Kirillov et al. 2023, "Segment Anything").

    With `boxes`, one mask for each box, in their order and with their labels; with `points` alone, one mask of what all
    of them describe; with both, all points go with each box. `points` are (x, y) in pixels, and `point_labels` says
    for each whether it lies inside (1) or outside (0) of the object; by default all lie inside. With `multimask` the
    model proposes three masks and the one with the best predicted IoU is taken; without, it gives one. The scores are
    the predicted IoU, clipped to 0..1. No box is not an error: the result has no mask, and its info says so.

    Pictures go through the model one at a time (the encoder once for each picture): in a batch the last bits of the
    arithmetic differ, and with them single pixels along the edges.

    Raises:
        InputError: neither boxes nor points, or a point outside the picture.
        ModelError: the model is absent or is not SAM.
    """

    version: ClassVar[str] = "1"
    model: Model = Model(role="segment")
    points: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[Literal[0, 1], ...] = ()
    multimask: bool = True

    @model_validator(mode="after")
    def _as_many_labels_as_points(self) -> Self:
        if self.point_labels and len(self.point_labels) != len(self.points):
            raise ValueError(
                f"point_labels: expected one for each of {len(self.points)} points, got {len(self.point_labels)}"
            )
        return self

    def run(self, image: Image, boxes: Boxes | None = None) -> Masks:
        if boxes is None and not self.points:
            raise InputError("Segment: nothing says what to cut out; wire boxes, or give points")
        for x, y in self.points:
            if not (0 <= x <= image.width and 0 <= y <= image.height):
                raise InputError(
                    f"Segment.points: ({x:g}, {y:g}) lies outside the picture of {image.width}×{image.height}"
                )
        if boxes is not None and not len(boxes):
            empty = Masks(np.zeros((0, image.height, image.width), np.uint8), (), np.zeros(0, np.float32))
            return empty.with_info(note="no box: no mask")
        with held(self.model, _load) as sam:
            layers, scores = _masks(
                sam, image, None if boxes is None else boxes.xyxy.tolist(), self.points,
                self.point_labels or (1,) * len(self.points), self.multimask,
            )
        return Masks(layers, ("",) if boxes is None else boxes.labels, scores)


def _masks(
    sam: Vision, picture: Image, boxes: list[list[float]] | None, points: Sequence[tuple[float, float]],
    point_labels: Sequence[int], multimask: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """uint8 (N, H, W) and float32 (N,): the best mask for each box, or for the points, and its predicted IoU."""
    import torch

    count = 1 if boxes is None else len(boxes)
    prompts: dict[str, Any] = {}
    if boxes is not None:
        prompts["input_boxes"] = [boxes]
    if points:
        prompts["input_points"] = [[[list(point) for point in points]] * count]
        prompts["input_labels"] = [[list(point_labels)] * count]
    library: Any = import_module("transformers")
    found = library.SamProcessor(sam.processor)(images=[seen(picture)], return_tensors="pt", **prompts)
    given = {name: found[name].to(sam.place.device) for name in prompts}
    given = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    with torch.inference_mode():
        encoded = sam.model.get_image_embeddings(found["pixel_values"].to(sam.place.device, sam.place.dtype))
        output = sam.model(image_embeddings=encoded, multimask_output=multimask, **given)
        quality, proposals = output.iou_scores[0].float().cpu(), output.pred_masks[0].float().cpu()
        best = quality.argmax(dim=1)
        layers = np.empty((count, picture.height, picture.width), np.uint8)
        for i in range(count):  # one at a time: at the picture's own size they are large
            [mask] = sam.processor.post_process_masks(
                [proposals[i, best[i]][None, None]], found["original_sizes"], found["reshaped_input_sizes"]
            )
            layers[i] = mask[0, 0, : picture.height, : picture.width].numpy() * np.uint8(255)
    return layers, quality[torch.arange(count), best].numpy().clip(0, 1)


def _load(place: Place) -> Vision:
    return load_vision(place, "SamModel", ("sam",))
