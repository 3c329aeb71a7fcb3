"""A sheet of pictures has each in its place, and labels that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nodes import Image, Masks
from nodes.grid import Sheet, cell_side, grid, thumbnail, writable

WHITE = [255, 255, 255]


def plain(height: int, width: int, *colour: int) -> Image:
    return Image(np.full((height, width, len(colour)), colour, np.uint8))


def place(sheet: Image, *colour: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all pixels of a colour."""
    ys, xs = np.nonzero((sheet.pixels == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def ink(pixels: NDArray[np.uint8]) -> int:
    """How many pixels are dark: the letters of labels."""
    return int((pixels.max(axis=2) < 100).sum())


COLOURS = {(row, column): (200, 100 + 20 * row, 100 + 20 * column) for row in range(2) for column in range(3)}


@pytest.mark.parametrize("side", [64, 128, 512, 1024])
def test_pictures_stand_in_columns_and_rows_under_their_labels(side: int) -> None:
    rows = [[plain(side, side, *COLOURS[row, column]) for column in range(3)] for row in range(2)]
    sheet = grid(["scale 1", "scale 2", "scale 3"], ["seed 7", "seed 8"], [Sheet("", rows)])
    gap = max(8, side // 48)
    (x, y, *_), step = place(sheet, *COLOURS[0, 0]), side + gap
    for (row, column), colour in COLOURS.items():
        left, top = x + column * step, y + row * step
        assert place(sheet, *colour) == (left, top, left + side, top + side)
        assert (sheet.pixels[top : top + side, left : left + side] == colour).all(), "a picture is left as it is"
    letters = min(max(side // 12, 13), 48)
    for column in range(3):
        assert ink(sheet.pixels[:y, x + column * step :][:, :side]) > letters * letters // 3, "a label on top"
    for row in range(2):
        assert ink(sheet.pixels[y + row * step :][:side, :x]) > letters * letters // 3, "a label on the left"
    assert ink(sheet.pixels) == ink(sheet.pixels[:y, x:]) + ink(sheet.pixels[y:, :x]), "no label over a picture"
    assert (sheet.pixels[:y, :x] == WHITE).all()
    assert sheet.pixels.shape[:2] == (y + 2 * step, x + 3 * step)


def test_an_empty_label_takes_no_room() -> None:
    sheet = grid([""], [""], [Sheet("", [[plain(20, 30, 9, 9, 9)]])])
    assert sheet.pixels.shape == (36, 46, 3)
    assert place(sheet, 9, 9, 9) == (8, 8, 38, 28)


def test_sheets_stand_below_each_other_each_with_its_title_and_labels() -> None:
    reds, blues = [[plain(40, 40, 255, 0, 0)]], [[plain(40, 40, 0, 0, 255)]]
    sheet = grid(["a 1"], ["b 1"], [Sheet("steps 4", reds), Sheet("steps 8", blues)])
    red, blue = place(sheet, 255, 0, 0), place(sheet, 0, 0, 255)
    assert (red[0], red[2]) == (blue[0], blue[2])
    above_red, above_blue = sheet.pixels[: red[1]], sheet.pixels[red[3] : blue[1]]
    assert ink(above_red) > 50
    assert ink(above_blue) > 50
    assert not (above_red[-20:] - above_blue[-20:]).any(), "the same column labels"


def test_where_there_is_no_picture_words_say_so() -> None:
    sheet = grid(["a 1", "a 2"], [""], [Sheet("", [[plain(64, 64, 255, 0, 0), "failed"]])])
    left, top, right, _ = place(sheet, 255, 0, 0)
    cell = sheet.pixels[top : top + 64, right + 8 :][:, :64]
    assert (cell[0] == 240).all() and (cell[:, 0] == 240).all() and (cell[-1] == 240).all()
    assert 20 < (cell < 200).all(axis=2).sum() < 300, "letters in the middle"
    assert (sheet.pixels[top : top + 64, right + 8 + 64 :] == WHITE).all()
    assert left == 8


def test_a_long_label_is_wrapped_and_pictures_stay_in_the_middle_of_their_columns() -> None:
    words = "prompt " + "a panda on a blue background " * 12
    sheet = grid([words, "prompt b"], [words, "prompt b"], [Sheet("", [[plain(32, 32, 255, 0, 0), "failed"]] * 2)])
    assert sheet.width < 700
    left, top, right, bottom = place(sheet, 255, 0, 0)
    assert (right - left, ink(sheet.pixels[:top]) > 300, ink(sheet.pixels[top:bottom, :left]) > 300) == (32, True, True)


def test_cells_shrink_so_that_many_pictures_stay_one_that_can_be_viewed() -> None:
    assert [cell_side(*shape) for shape in ((1, 1), (3, 2), (4, 4), (10, 10), (100, 1), (1, 100), (100, 100), (10_000, 1))] == [
        1024, 1024, 1024, 409, 163, 163, 40, 8,
    ]
    rows = [[thumbnail(plain(1024, 1024, 200, 10 * row, 10), cell_side(10, 10))] * 10 for row in range(10)]
    sheet = grid([f"guidance_scale {n}" for n in range(10)], [f"seed {n}" for n in range(10)], [Sheet("", rows)])
    assert max(sheet.width, sheet.height) < 5000
    assert place(sheet, 200, 90, 10)[3] - place(sheet, 200, 90, 10)[1] == 409


def test_a_thumbnail_keeps_its_shape_shows_white_through_and_is_not_enlarged() -> None:
    assert thumbnail(plain(100, 200, 7), 50).pixels.tolist() == plain(25, 50, 7, 7, 7).pixels.tolist()
    assert thumbnail(plain(4, 4, 0, 0, 255, 0), 50).pixels.tolist() == plain(4, 4, *WHITE).pixels.tolist()
    layers = np.zeros((2, 4, 4), np.uint8)
    layers[0, 0], layers[1, :, 0] = 255, 255
    union = thumbnail(Masks(layers, ("a", "b"), np.ones(2, np.float32)), 50).pixels
    assert union[..., 1].tolist() == [[255] * 4] + [[255, 0, 0, 0]] * 3


def test_letters_that_the_font_lacks_are_known() -> None:
    assert [writable(text) for text in ("a frog", "Café über", "猫", "a 猫", "3 × 4")] == ["a frog", "Cafe uber", "", "", ""]
