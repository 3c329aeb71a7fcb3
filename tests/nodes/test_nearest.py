"""Nearest ranks by cosine, and reads no more than it needs."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from nodes import Embedding, Image, Nearest
from nodes.errors import InputError


def embedding(*numbers: float) -> Embedding:
    return Embedding(np.array(numbers, np.float32))


def picture(grey: int) -> Image:
    return Image(np.full((1, 1, 1), grey, np.uint8))


class Lazy(Sequence[Image]):
    """Pictures that remember which of them were read."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.read.append(index)
        return picture(index)

    def __iter__(self) -> Iterator[Image]:
        raise AssertionError("all pictures read")


def test_the_most_similar_come_first_whatever_their_length() -> None:
    candidates = [embedding(0, 1), embedding(5, 5), embedding(2, 0), embedding(-1, 0)]
    found = Nearest(count=3).run(embedding(1, 0), candidates, [picture(i) for i in range(4)])
    assert [int(image.pixels[0, 0, 0]) for image in found.images] == [2, 1, 0]
    assert [(score.value, score.name) for score in found.scores] == [
        (1.0, "cosine similarity"), (0.707, "cosine similarity"), (0.0, "cosine similarity"),
    ]


def test_of_equals_the_earlier_comes_first() -> None:
    candidates = [embedding(0, 1), embedding(3, 0), embedding(1, 0), embedding(2, 0)]
    found = Nearest(count=2).run(embedding(1, 0), candidates, [picture(i) for i in range(4)])
    assert [int(image.pixels[0, 0, 0]) for image in found.images] == [1, 2]


def test_only_the_chosen_pictures_are_read() -> None:
    images = Lazy(50)
    candidates = [embedding(1, i) for i in range(50)]
    Nearest(count=2).run(embedding(1, 0), candidates, images)  # type: ignore[arg-type]
    assert images.read == [0, 1]


def test_fewer_candidates_give_fewer_results_and_none_give_none() -> None:
    assert len(Nearest().run(embedding(1, 0), [embedding(1, 1)], [picture(0)]).images) == 1
    assert Nearest().run(embedding(1, 0), [], []) == ([], [])


def test_lists_that_differ_in_length_are_said() -> None:
    with pytest.raises(InputError) as error:
        Nearest().run(embedding(1, 0), [embedding(1, 1)], [])
    assert str(error.value) == "Nearest: 1 candidates but 0 images; each candidate needs its image"


def test_embeddings_of_two_models_are_said() -> None:
    with pytest.raises(InputError) as error:
        Nearest().run(embedding(1, 0), [embedding(1, 0, 0)], [picture(0)])
    assert str(error.value) == (
        "Nearest: candidate 0 has 3 numbers and the query 2; both must come from the same model"
    )
