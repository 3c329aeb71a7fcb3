"""Embed tells what looks alike."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from nodes import Boxes, Crop, Embed, Embedding, Image
from nodes.errors import ModelError
from tests.nodes.conftest import Example


@pytest.fixture(scope="module")
def embed(toybox: Mapping[str, str]) -> Embed:
    return Embed.model_validate({"model": toybox["embed"]})


def cosine(a: Embedding, b: Embedding) -> float:
    x, y = a.vector.astype(float), b.vector.astype(float)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def crop(example: Example, index: int = 0) -> Image:
    boxes = Boxes(example.boxes, example.labels, np.ones(len(example.labels), np.float32))
    return Crop(square=True).run(example.image, boxes).images[index]


def test_two_cats_are_more_alike_than_a_cat_and_another_thing(embed: Embed, examples: dict[str, Example]) -> None:
    names = ("cat-blue.png", "cat-pink.png", "rocket-purple.png", "frog-pink.jpg", "burger-pizza-watermelon-white.jpg")
    cat, other_cat, *others = embed.run_batch([crop(examples[name]) for name in names])
    assert all(cosine(cat, other_cat) > cosine(cat, other) for other in others)


def test_a_picture_alone_gives_what_it_gives_among_others(embed: Embed, examples: dict[str, Example]) -> None:
    pictures = [example.image for example in examples.values()]
    for picture, among in zip(pictures[:8], embed.run_batch(pictures)[:8], strict=True):
        alone = embed.run(picture)
        assert alone.patches is not None and among.patches is not None
        assert np.abs(alone.vector - among.vector).max() < 0.0015
        assert np.abs(alone.patches - among.patches).max() < 0.0015


def test_the_vector_is_layer_normed_and_the_patches_are_a_grid(embed: Embed, examples: dict[str, Example]) -> None:
    found = embed.run(examples["cat-blue.png"].image)
    patches: NDArray[np.float32] | None = found.patches
    assert patches is not None
    assert patches.ndim == 3 and patches.shape[2] == len(found.vector) and patches.shape[0] * patches.shape[1] > 1
    assert np.linalg.norm(found.vector) > 1


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (300, 1, 4), (2, 3, 1)])
def test_any_shape_of_picture_works(embed: Embed, shape: tuple[int, ...]) -> None:
    assert np.isfinite(embed.run(Image(np.zeros(shape, np.uint8))).vector).all()


def test_a_model_of_another_kind_is_refused(toybox: Mapping[str, str]) -> None:
    with pytest.raises(ModelError) as error:
        Embed.model_validate({"model": toybox["detect"]}).run(Image(np.zeros((9, 9, 3), np.uint8)))
    assert str(error.value) == (
        f'model "{toybox["detect"]}" cannot be loaded for the role "embed": '
        'expected a model of type "dinov2", got "detr"'
    )
