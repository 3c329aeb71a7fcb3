"""LoadMask: white is inside."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil

from nodes import LoadMask, Masks
from nodes.errors import InputError


def load(file: Path) -> Masks:
    return LoadMask(path=str(file)).run(file)


def test_inside_is_where_the_luminance_is_128_or_more(tmp_path: Path) -> None:
    pil.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    mask = load(tmp_path / "m.png")
    assert mask.layers.tolist() == [[[0, 0, 255, 255]]]
    assert (mask.labels, mask.scores.tolist()) == (("",), [1.0])


def test_colours_count_by_their_luminance(tmp_path: Path) -> None:
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    pil.fromarray(np.array([colours], np.uint8)).save(tmp_path / "m.png")
    assert load(tmp_path / "m.png").layers.tolist() == [[[0, 255, 0, 255]]]


def test_one_bit_sixteen_bits_and_palettes_are_read(tmp_path: Path) -> None:
    pil.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "one.png")
    pil.fromarray(np.array([[32767, 65535]], np.uint16)).save(tmp_path / "deep.png")
    palette = pil.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 250, 250, 250])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png")
    for name in ("one", "deep", "palette"):
        assert load(tmp_path / f"{name}.png").layers.tolist() == [[[0, 255]]], name


def test_what_is_transparent_is_outside(tmp_path: Path) -> None:
    pil.fromarray(np.array([[[255, 255, 255, 0], [255, 255, 255, 255], [0, 0, 0, 255]]], np.uint8)).save(tmp_path / "m.png")
    assert load(tmp_path / "m.png").layers.tolist() == [[[0, 255, 0]]]


def test_an_absent_mask_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path / "tom.png")
    assert str(error.value) == f"{tmp_path}/tom.png: no such file"
