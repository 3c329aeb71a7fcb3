"""Cut out objects: from boxes or points to masks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from nodes.artifacts import Boxes, Image, Masks
from nodes.base import Model, Node
from nodes.errors import InputError
from nodes.resident import Place, held
from nodes.vision import Vision, load_vision, seen


class Segment(Node):
    """Masks of the objects that boxes or points show: SAM (Kirillov et al. 2023, "Segment Anything").

    With `boxes`, one mask for each box, in their order and with their labels; with `points` alone, one mask of what all
    of them describe; with both, all points go with each box. `points` are (x, y) in pixels, and `point_labels` says
    for each whether it lies inside (1) or outside (0) of the object; by default all lie inside. With `multimask` the
    model proposes three masks and the one with the best predicted IoU is taken; without, it gives one. The scores are
    the predicted IoU, clipped to 0..1. No box is not an error: the result has no mask, and its info says so.

    The image encoder sees each picture once, and several pictures together; the decoder takes all boxes of a picture in
    one pass, and one picture at a time, since it is small and its sums depend on how much they are done with.

    Raises:
        InputError: neither boxes nor points, or a point outside the picture.
        ModelError: the model is absent or is not SAM.
    """

    version: ClassVar[str] = "2"
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

    def prepare(self) -> None:
        with held(self.model, _load):
            pass

    def run(self, image: Image, boxes: Boxes | None = None) -> Masks:
        return self.run_batch([image], [boxes])[0]

    def run_batch(self, image: list[Image], boxes: list[Boxes | None]) -> list[Masks]:
        """One result for each picture with its boxes."""
        for picture, found in zip(image, boxes, strict=True):
            self._checked(picture, found)
        wanted = [i for i, found in enumerate(boxes) if found is None or len(found)]
        masks = [_none(picture) for picture in image]
        if wanted:
            with held(self.model, _load) as sam:
                pairs = [(image[i], boxes[i]) for i in wanted]
                for i, made in zip(wanted, sam.place.spread(pairs, lambda some: self._masks(sam, some)), strict=True):
                    masks[i] = made
        return masks

    def _checked(self, image: Image, boxes: Boxes | None) -> None:
        if boxes is None and not self.points:
            raise InputError("Segment: nothing says what to cut out; wire boxes, or give points")
        for x, y in self.points:
            if not (0 <= x <= image.width and 0 <= y <= image.height):
                raise InputError(
                    f"Segment.points: ({x:g}, {y:g}) lies outside the picture of {image.width}×{image.height}"
                )

    def _masks(self, sam: Vision, pairs: Sequence[tuple[Image, Boxes | None]]) -> list[Masks]:
        """The masks of some pictures, which the encoder sees together."""
        import torch

        library: Any = import_module("transformers")
        processor = library.SamProcessor(sam.processor)
        prepared = [
            processor(images=[seen(picture)], return_tensors="pt", **self._prompts(boxes)) for picture, boxes in pairs
        ]
        with torch.inference_mode():
            pixels = torch.cat([each["pixel_values"] for each in prepared]).to(sam.place.device, sam.place.dtype)
            encoded = sam.model.get_image_embeddings(pixels)
            return [
                self._decoded(sam, picture, boxes, each, encoded[i : i + 1])
                for i, ((picture, boxes), each) in enumerate(zip(pairs, prepared, strict=True))
            ]

    def _prompts(self, boxes: Boxes | None) -> dict[str, Any]:
        """What the processor is to scale to the model's picture: for each box all points, or the points alone."""
        prompts: dict[str, Any] = {} if boxes is None else {"input_boxes": [boxes.xyxy.tolist()]}
        if self.points:
            count = 1 if boxes is None else len(boxes)
            prompts["input_points"] = [[[list(point) for point in self.points]] * count]
            prompts["input_labels"] = [[list(self.point_labels or (1,) * len(self.points))] * count]
        return prompts

    def _decoded(self, sam: Vision, picture: Image, boxes: Boxes | None, prepared: Any, encoded: Any) -> Masks:
        """The best mask for each box, or for the points, with its predicted IoU."""
        import torch

        names = [name for name in ("input_boxes", "input_points", "input_labels") if name in prepared]
        given = {name: prepared[name].to(sam.place.device) for name in names}
        given = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
        output = sam.model(image_embeddings=encoded, multimask_output=self.multimask, **given)
        quality, proposals = output.iou_scores[0].float().cpu(), output.pred_masks[0].float().cpu()
        best = quality.argmax(dim=1)
        layers = np.empty((len(best), picture.height, picture.width), np.uint8)
        for i in range(len(best)):  # one at a time: at the picture's own size they are large
            [mask] = sam.processor.post_process_masks(
                [proposals[i, best[i]][None, None]], prepared["original_sizes"], prepared["reshaped_input_sizes"]
            )
            layers[i] = mask[0, 0, : picture.height, : picture.width].numpy() * np.uint8(255)
        scores = quality[torch.arange(len(best)), best].numpy().clip(0, 1)
        return Masks(layers, ("",) if boxes is None else boxes.labels, scores)


def _none(picture: Image) -> Masks:
    empty = Masks(np.zeros((0, picture.height, picture.width), np.uint8), (), np.zeros(0, np.float32))
    return empty.with_info(note="no box: no mask")


def _load(place: Place) -> Vision:
    return load_vision(place, "SamModel", ("sam",))
