"""Find objects in pictures with a detection transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nodes.artifacts import Boxes, Image
from nodes.base import Model, Node
from nodes.errors import InputError, nearest
from nodes.resident import Place, held
from nodes.vision import Vision, load_vision, seen

Row = tuple[float, str, NDArray[np.float32]]
"""One object: score, label, xyxy in pixels."""


class Detect(Node):
    """Find objects in an image: boxes in pixels (xyxy), labels and scores, best first.

    DETR (Carion et al. 2020, "End-to-End Object Detection with Transformers"), RT-DETRv2 and the other models that
    transformers loads for object detection. `threshold` is the score above which an object is kept, `labels` the kinds
    kept (all when empty), `max_objects` how many of the best. Boxes are clipped to the picture, and those without area
    are dropped. No object is not an error: the result has no box, and its info says so.

    Raises:
        InputError: the model knows no kind of that name.
        ModelError: the model is absent or does not detect objects.
    """

    version: ClassVar[str] = "2"
    model: Model = Model(role="detect")
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    labels: tuple[str, ...] = ()
    max_objects: Annotated[int, Field(ge=1)] | None = None

    def prepare(self) -> None:
        with held(self.model, _load):
            pass

    def run(self, image: Image) -> Boxes:
        return self.run_batch([image])[0]

    def run_batch(self, image: list[Image]) -> list[Boxes]:
        """One result for each picture, of whatever shapes."""
        with held(self.model, _load) as detector:
            names = detector.model.config.id2label
            for label in self.labels:
                if label not in names.values():
                    raise InputError(f'Detect.labels: the model knows no "{label}"{nearest(label, names.values())}')

            found = detector.batched(image, lambda inputs, some: _objects(detector, inputs, some, self.threshold))
        return [self._boxes(rows, picture) for rows, picture in zip(found, image, strict=True)]

    def _boxes(self, rows: Sequence[Row], picture: Image) -> Boxes:
        size = np.array([picture.width, picture.height] * 2, np.float32)
        kept = []
        for score, label, corners in rows:
            x1, y1, x2, y2 = (round(float(corner), 2) for corner in np.clip(corners, 0, size))
            if (not self.labels or label in self.labels) and x2 > x1 and y2 > y1:
                kept.append((-round(score, 3), label, (x1, y1, x2, y2)))
        kept = sorted(kept)[: self.max_objects]
        boxes = Boxes(
            np.array([corners for _, _, corners in kept], np.float32).reshape(-1, 4),
            tuple(label for _, label, _ in kept),
            np.array([-score for score, _, _ in kept], np.float32),
        )
        return boxes if len(boxes) else boxes.with_info(note="no object found")


def _objects(detector: Vision, inputs: Any, pictures: Sequence[Image], threshold: float) -> list[list[Row]]:
    """The objects of each picture whose score is above the threshold."""
    output = detector.model(**inputs)
    output.logits, output.pred_boxes = output.logits.float().cpu(), output.pred_boxes.float().cpu()
    sizes = [seen(picture).shape[:2] for picture in pictures]
    results = detector.processor.post_process_object_detection(output, threshold=threshold, target_sizes=sizes)
    names = detector.model.config.id2label
    return [
        [
            (float(score), names[int(kind)], corners)
            for score, kind, corners in zip(
                result["scores"].numpy(), result["labels"].numpy(), result["boxes"].numpy(), strict=True
            )
        ]
        for result in results
    ]


def _load(place: Place) -> Vision:
    detector = load_vision(place, "AutoModelForObjectDetection")
    if place.light and (head := getattr(detector.model, "bbox_predictor", None)):
        # DETR's last step is a sigmoid, which in float32 rounds the last few of a batch's numbers in another way.
        plain = head.forward
        head.forward = lambda states: plain(states).double()
    return detector
