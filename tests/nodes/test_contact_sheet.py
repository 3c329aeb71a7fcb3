"""ContactSheet puts each picture in its place."""

import numpy as np
import pytest
from pydantic import ValidationError

from nodes import ContactSheet, Image
from nodes.errors import InputError


def plain(height: int, width: int, *colour: int) -> Image:
    return Image(np.full((height, width, len(colour)), colour, np.uint8))


def test_pictures_stand_in_rows_from_left_to_right() -> None:
    pictures = [plain(10, 10, shade, 0, 0) for shade in (50, 100, 150)]
    sheet = ContactSheet(columns=2, cell=10, gap=2).run(pictures)
    assert sheet.pixels.shape == (26, 26, 3)
    assert [int(sheet.pixels[y, x, 0]) for y, x in ((2, 2), (2, 14), (14, 2))] == [50, 100, 150]
    assert sheet.pixels[14, 14].tolist() == sheet.pixels[0, 0].tolist() == [255, 255, 255]


def test_a_wide_picture_is_scaled_down_and_centred_and_a_small_one_not_scaled_up() -> None:
    sheet = ContactSheet(columns=2, cell=16, gap=0, background="#102030").run([plain(8, 32, 9, 9, 9), plain(2, 2, 7)])
    assert (sheet.pixels[6:10, :16] == 9).all()
    assert (sheet.pixels[:6, :16] == [16, 32, 48]).all()
    assert (sheet.pixels[:, 16:] == 7).all(axis=2).sum() == 4


def test_transparency_shows_the_background() -> None:
    sheet = ContactSheet(cell=8, gap=0, background="blue").run([plain(8, 8, 255, 0, 0, 0)])
    assert (sheet.pixels == [0, 0, 255]).all()


def test_an_empty_list_gives_an_empty_sheet_and_says_so() -> None:
    sheet = ContactSheet(cell=8, gap=1).run([])
    assert sheet.pixels.shape == (10, 10, 3) and (sheet.pixels == 255).all()
    assert sheet.info == {"note": "no picture: an empty sheet"}


def test_an_unknown_colour_is_said_when_the_node_is_made() -> None:
    with pytest.raises(ValidationError, match="unknown color specifier: 'bleu'"):
        ContactSheet(background="bleu")


def test_a_sheet_that_is_too_large_is_said() -> None:
    with pytest.raises(InputError) as error:
        ContactSheet(columns=1, cell=4096, gap=0).run([plain(1, 1, 0)] * 100)
    assert str(error.value) == "ContactSheet: 100 pictures make a sheet of 4096×409600 pixels; use smaller cells"
