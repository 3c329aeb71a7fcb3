"""Artifacts check themselves, and their canonical bytes are safetensors files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from nodes import Boxes, Embedding, Image, Latents, Masks, Score, Text
from nodes.artifacts import Artifact, File, decode, encode
from nodes.errors import ArtifactError

VALUES: list[Artifact] = [
    Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)),
    Image(np.zeros((1, 1, 1), np.uint8)),
    Boxes(np.array([[1, 2, 3, 4.5]]), ("cat",), np.array([0.5])),
    Boxes(np.zeros((0, 4)), (), np.zeros(0)),
    Masks(np.full((2, 3, 5), 255, np.uint8), ("a", "b"), np.ones(2)),
    Masks(np.zeros((0, 3, 5), np.uint8), (), np.zeros(0)),
    Embedding(np.ones(4, np.float32), np.zeros((2, 2, 4), np.float32)),
    Embedding(np.ones(4, np.float32)),
    Text("Zwölf ☃ \n lines"),
    Score(0.25, "similarity"),
    Latents(np.ones((4, 2, 2), np.float32), 0.5),
    File(np.frombuffer(b"any bytes", np.uint8), ".webp"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_the_bytes_are_those_that_safetensors_writes_and_read_back_equal(value: Artifact) -> None:
    head = json.dumps([type(value).__name__, value.fields()], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert encode(value) == save(value.arrays(), metadata={"photoloom": head})
    assert decode(encode(value)) == value
    assert type(decode(encode(value))) is type(value)


def test_what_is_said_about_a_value_is_not_part_of_its_contents() -> None:
    plain = Text("a cat")
    assert encode(plain.with_info(seed=7)) == encode(plain)
    assert plain.with_info(seed=7) == plain != Text("a dog")


def test_pixels_cannot_be_changed_afterwards() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    image = Image(pixels)
    pixels[:] = 9
    assert not image.pixels.any()
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0, 0] = 1


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Image(np.zeros((2, 2, 2), np.uint8)), "Image.pixels: expected (H, W, 1, 3 or 4) with H, W ≥ 1, got (2, 2, 2)"),
    (lambda: Image(np.zeros((2, 2, 3))), "Image.pixels: expected uint8 (H, W, C), got float64 (2, 2, 3)"),
    (lambda: Image(np.zeros((0, 2, 3), np.uint8)), "Image.pixels: expected (H, W, 1, 3 or 4) with H, W ≥ 1, got (0, 2, 3)"),
])  # fmt: skip
def test_a_wrong_array_is_refused_with_its_shape(make: object, message: str) -> None:
    with pytest.raises(ArtifactError) as error:
        make()  # type: ignore[operator]
    assert str(error.value) == message


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\xff" * 64, encode(VALUES[0])[:-1]])
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="not a stored value"):
        decode(data)
