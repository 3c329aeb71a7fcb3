"""Segment cuts out what boxes and points show."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from nodes import Boxes, Image, Segment
from nodes.errors import InputError, ModelError
from tests.nodes.conftest import Example

Iou = Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]


@pytest.fixture(scope="module")
def segment(toybox: Mapping[str, str]) -> Segment:
    return Segment.model_validate({"model": toybox["segment"]})


def true_boxes(example: Example) -> Boxes:
    return Boxes(example.boxes, example.labels, np.ones(len(example.labels), np.float32))


def test_masks_from_boxes_are_those_of_the_truth(
    segment: Segment, examples: dict[str, Example], mask_iou: Iou
) -> None:
    found = []
    for example in list(examples.values())[::3]:
        masks = segment.run(example.image, true_boxes(example))
        assert masks.labels == example.labels
        assert masks.layers.shape == example.masks.layers.shape
        assert ((masks.scores >= 0) & (masks.scores <= 1)).all()
        found += [mask_iou(a, b) for a, b in zip(masks.layers, example.masks.layers, strict=True)]
    assert np.mean(found) > 0.85


def test_a_point_on_the_object_finds_it(segment: Segment, examples: dict[str, Example], mask_iou: Iou) -> None:
    example = examples["fox-grey.png"]
    x1, y1, x2, y2 = example.boxes[0].tolist()
    masks = segment.model_copy(update={"points": (((x1 + x2) / 2, (y1 + y2) / 2),)}).run(example.image)
    assert masks.labels == ("",)
    assert mask_iou(masks.layers[0], example.masks.layers[0]) > 0.7


def test_points_go_with_each_box(segment: Segment, examples: dict[str, Example], mask_iou: Iou) -> None:
    example = examples["dog-cat-orange.png"]
    pointed = segment.model_copy(update={"points": ((2.0, 2.0),), "point_labels": (0,)})
    masks = pointed.run(example.image, true_boxes(example))
    assert masks.labels == ("dog", "cat")
    for a, b in zip(masks.layers, example.masks.layers, strict=True):
        assert mask_iou(a, b) > 0.5


def test_multimask_takes_the_best_by_predicted_iou(segment: Segment, examples: dict[str, Example]) -> None:
    example = examples["cat-blue.png"]
    best = segment.run(example.image, true_boxes(example))
    single = segment.model_copy(update={"multimask": False}).run(example.image, true_boxes(example))
    assert best.layers.shape == single.layers.shape == (1, 128, 128)
    assert best != single


def test_no_box_gives_no_mask_of_the_pictures_size(segment: Segment) -> None:
    none = Boxes(np.zeros((0, 4), np.float32), (), np.zeros(0, np.float32))
    masks = segment.run(Image(np.zeros((20, 30, 3), np.uint8)), none)
    assert masks.layers.shape == (0, 20, 30)
    assert masks.union.tolist() == np.zeros((20, 30)).tolist()
    assert masks.info == {"note": "no box: no mask"}


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (300, 1, 4), (2, 3, 1)])
def test_any_shape_of_picture_works(segment: Segment, shape: tuple[int, ...]) -> None:
    boxes = Boxes(np.array([[0, 0, shape[1], shape[0]]], np.float32), ("all",), np.ones(1, np.float32))
    assert segment.run(Image(np.zeros(shape, np.uint8)), boxes).layers.shape == (1, *shape[:2])


def test_neither_boxes_nor_points_is_said(segment: Segment) -> None:
    with pytest.raises(InputError) as error:
        segment.run(Image(np.zeros((20, 30, 3), np.uint8)))
    assert str(error.value) == "Segment: nothing says what to cut out; wire boxes, or give points"


def test_a_point_outside_the_picture_is_said(segment: Segment) -> None:
    with pytest.raises(InputError) as error:
        segment.model_copy(update={"points": ((40.0, 5.5),)}).run(Image(np.zeros((20, 30, 3), np.uint8)))
    assert str(error.value) == "Segment.points: (40, 5.5) lies outside the picture of 30×20"


def test_labels_and_points_must_be_as_many() -> None:
    with pytest.raises(ValidationError, match="point_labels: expected one for each of 1 points, got 2"):
        Segment(points=((1.0, 2.0),), point_labels=(1, 0))


def test_a_model_of_another_kind_is_refused(toybox: Mapping[str, str]) -> None:
    point = Segment.model_validate({"model": toybox["detect"], "points": ((1.0, 1.0),)})
    with pytest.raises(ModelError) as error:
        point.run(Image(np.zeros((20, 30, 3), np.uint8)))
    assert str(error.value) == (
        f'model "{toybox["detect"]}" cannot be loaded for the role "segment": '
        'expected a model of type "sam", got "detr"'
    )
