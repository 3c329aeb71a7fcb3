"""Detect finds what is there, and only that."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nodes import Boxes, Detect, Image
from nodes.errors import InputError, ModelError
from tests.nodes.conftest import Example

Iou = Callable[[NDArray[np.float32], NDArray[np.float32]], float]


@pytest.fixture(scope="module")
def detect(toybox: Mapping[str, str]) -> Detect:
    return Detect.model_validate({"model": toybox["detect"]})


@pytest.fixture(scope="module")
def found(detect: Detect, examples: dict[str, Example]) -> dict[str, Boxes]:
    results = detect.run_batch([example.image for example in examples.values()])
    return dict(zip(examples, results, strict=True))


def test_boxes_and_kinds_are_those_of_the_truth(
    found: dict[str, Boxes], examples: dict[str, Example], box_iou: Iou
) -> None:
    hits, wanted, given = 0, 0, 0
    for name, example in examples.items():
        boxes = found[name]
        free = set(range(len(boxes)))
        for truth, label in zip(example.boxes, example.labels, strict=True):
            match = [i for i in free if boxes.labels[i] == label and box_iou(boxes.xyxy[i], truth) > 0.5]
            free -= set(match[:1])
            hits += bool(match)
        wanted, given = wanted + len(example.labels), given + len(boxes)
    assert hits / wanted >= 0.85
    assert hits / given >= 0.80


def test_the_cat_is_where_it_is(found: dict[str, Boxes], examples: dict[str, Example], box_iou: Iou) -> None:
    boxes = found["cat-blue.png"]
    assert boxes.labels[0] == "cat"
    assert box_iou(boxes.xyxy[0], examples["cat-blue.png"].boxes[0]) > 0.8


@pytest.mark.parametrize("name", [
    "dog-cat-orange.png", "car-ball-grey.png", "turtle-orange.png", "sunflower-cactus-orange.jpg",
])
def test_objects_in_pictures_that_are_not_square_are_where_they_are(
    name: str, found: dict[str, Boxes], examples: dict[str, Example], box_iou: Iou
) -> None:
    example, boxes = examples[name], found[name]
    assert sorted(boxes.labels) == sorted(example.labels)
    for label, truth in zip(example.labels, example.boxes, strict=True):
        assert box_iou(boxes.xyxy[boxes.labels.index(label)], truth) > 0.85


def test_a_picture_alone_gives_what_it_gives_among_others(
    detect: Detect, found: dict[str, Boxes], examples: dict[str, Example]
) -> None:
    for name in ("cat-blue.png", "dog-cat-orange.png", "car-ball-grey.png", "burger-pizza-watermelon-white.jpg"):
        assert detect.run(examples[name].image) == found[name]


def test_boxes_are_best_first_within_the_picture(found: dict[str, Boxes], examples: dict[str, Example]) -> None:
    for name, boxes in found.items():
        image = examples[name].image
        assert (np.diff(boxes.scores) <= 0).all()
        assert (boxes.xyxy >= 0).all() and (boxes.xyxy <= [image.width, image.height] * 2).all()


def test_only_the_asked_kinds_are_kept(detect: Detect, examples: dict[str, Example]) -> None:
    picture = examples["dog-cat-orange.png"].image
    assert detect.model_copy(update={"labels": ("cat",)}).run(picture).labels == ("cat",)


def test_max_objects_keeps_the_best(detect: Detect, examples: dict[str, Example]) -> None:
    picture = examples["cat-cat-purple.png"].image
    both, one = detect.run(picture), detect.model_copy(update={"max_objects": 1}).run(picture)
    assert len(both) == 2 and len(one) == 1
    assert one.xyxy.tolist() == both.xyxy[:1].tolist()


def test_nothing_there_is_no_error(detect: Detect) -> None:
    blank = detect.run(Image(np.full((128, 128, 3), 200, np.uint8)))
    assert len(blank) == 0 and blank.xyxy.shape == (0, 4)
    assert blank.info == {"note": "no object found"}


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (300, 1, 4), (2, 3, 1), (64, 200, 3)])
def test_any_shape_of_picture_works(detect: Detect, shape: tuple[int, ...]) -> None:
    everything = detect.model_copy(update={"threshold": 0.0})
    boxes = everything.run(Image(np.full(shape, 90, np.uint8)))
    assert (boxes.xyxy <= [shape[1], shape[0]] * 2).all()


def test_a_typo_in_a_label_names_the_nearest(detect: Detect, examples: dict[str, Example]) -> None:
    with pytest.raises(InputError) as error:
        detect.model_copy(update={"labels": ("catt",)}).run(examples["cat-blue.png"].image)
    assert str(error.value) == 'Detect.labels: the model knows no "catt"; did you mean "cat"?'


def test_a_model_of_another_kind_is_refused(toybox: Mapping[str, str], examples: dict[str, Example]) -> None:
    with pytest.raises(ModelError, match='cannot be loaded for the role "detect": '):
        Detect.model_validate({"model": toybox["embed"]}).run(examples["cat-blue.png"].image)


def test_a_node_without_a_model_says_what_to_give(examples: dict[str, Example]) -> None:
    with pytest.raises(ModelError) as error:
        Detect().run(examples["cat-blue.png"].image)
    assert str(error.value) == (
        'no model is named for the role "detect": give the node a model, a hub id or a folder'
    )


def test_a_damaged_model_is_said(toybox: Mapping[str, str], examples: dict[str, Example], tmp_path: Path) -> None:
    broken = tmp_path / "detr"
    shutil.copytree(toybox["detect"], broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=f'^model "{broken}" cannot be loaded for the role "detect": '):
        Detect.model_validate({"model": str(broken)}).run(examples["cat-blue.png"].image)


def test_another_architecture_of_the_field_is_read_from_its_folder(tmp_path: Path) -> None:
    """RT-DETRv2 with random weights: the photo set's kind of detector."""
    import torch
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrV2Config(
        backbone_config=backbone, encoder_in_channels=[24, 32, 40], encoder_hidden_dim=32, d_model=32,
        decoder_in_channels=[32] * 3, num_queries=20, encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_layers=2,
        num_labels=5, decoder_attention_heads=2, encoder_attention_heads=2, num_denoising=0,
    )
    RTDetrV2ForObjectDetection(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "RTDetrImageProcessor", "do_resize": true, "size": {"height": 128, "width": 128}}'
    )
    picture = Image(np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8))
    found = Detect.model_validate({"model": str(tmp_path), "threshold": 0.01}).run(picture)
    assert len(found) == 20
    assert (found.xyxy[:, :2] >= 0).all() and (found.xyxy[:, 2:] <= (160, 100)).all()
    assert (np.diff(found.scores) <= 0).all()
