"""Crop cuts out the pixels that a box touches."""

import numpy as np
import pytest

from nodes import Boxes, Crop, Image
from nodes.errors import InputError

PICTURE = Image(np.arange(20 * 30, dtype=np.uint32).astype(np.uint8).reshape(20, 30, 1))


def boxes(*rows: tuple[float, float, float, float]) -> Boxes:
    return Boxes(np.array(rows, np.float32), ("cat",) * len(rows), np.full(len(rows), 0.5, np.float32))


def test_the_pixels_are_those_of_the_picture() -> None:
    [crop], _ = Crop().run(PICTURE, boxes((3, 4, 10, 9)))
    assert np.array_equal(crop.pixels, PICTURE.pixels[4:9, 3:10])


def test_each_crop_tells_its_place_label_and_score() -> None:
    found = Boxes(np.array([[3.2, 4.9, 9.1, 8.5], [20, 10, 30, 20]]), ("cat", "dog"), np.array([0.9, 0.8]))
    crops, places = Crop(padding=0.5, square=True).run(PICTURE, found)
    assert [place.xyxy.tolist() for place in places] == [[[0, 0, 13, 13]], [[15, 5, 30, 20]]]
    assert [(*place.labels, *place.scores.round(3).tolist()) for place in places] == [
        ("cat", pytest.approx(0.9)), ("dog", pytest.approx(0.8)),
    ]
    for crop, place in zip(crops, places, strict=True):
        left, top, right, bottom = place.xyxy[0].astype(int)
        assert np.array_equal(crop.pixels, PICTURE.pixels[top:bottom, left:right])


def test_a_pixel_that_is_touched_is_in() -> None:
    [crop], _ = Crop().run(PICTURE, boxes((3.2, 4.9, 9.1, 8.5)))
    assert np.array_equal(crop.pixels, PICTURE.pixels[4:9, 3:10])


def test_padding_is_a_share_of_the_box_and_ends_at_the_picture() -> None:
    [crop], _ = Crop(padding=0.5).run(PICTURE, boxes((2, 4, 12, 8)))
    assert np.array_equal(crop.pixels, PICTURE.pixels[2:10, 0:17])


def test_square_widens_the_shorter_side_and_moves_inside() -> None:
    [crop], _ = Crop(square=True).run(PICTURE, boxes((5, 0, 15, 4)))
    assert np.array_equal(crop.pixels, PICTURE.pixels[0:10, 5:15])
    [whole], _ = Crop(square=True).run(PICTURE, boxes((0, 5, 30, 8)))
    assert whole.pixels.shape == (20, 30, 1)


def test_a_box_without_area_gives_one_pixel() -> None:
    [crop], _ = Crop().run(PICTURE, boxes((30, 20, 30, 20)))
    assert np.array_equal(crop.pixels, PICTURE.pixels[19:20, 29:30])


def test_size_scales_the_crop_and_not_its_place() -> None:
    wide = Image(np.repeat(np.array([[0, 0, 90, 90]], np.uint8), 2, axis=0)[..., None])
    for box, shape in (((0, 0, 4, 2), (32, 64, 1)), ((0, 0, 1, 2), (64, 32, 1)), ((0, 0, 2, 2), (64, 64, 1))):
        [crop], [place] = Crop(size=64).run(wide, boxes(box))
        assert crop.pixels.shape == shape
        assert place.xyxy.tolist() == [list(box)]
    [crop], _ = Crop(size=64).run(wide, boxes((0, 0, 4, 2)))
    assert crop.pixels[:, :16].mean() < 5 and crop.pixels[:, 48:].mean() > 85
    [same], _ = Crop(size=7).run(PICTURE, boxes((3, 4, 10, 9)))
    assert np.array_equal(same.pixels, PICTURE.pixels[4:9, 3:10])


def test_no_box_gives_no_crop() -> None:
    assert Crop().run(PICTURE, Boxes(np.zeros((0, 4), np.float32), (), np.zeros(0, np.float32))) == ([], [])


def test_a_box_outside_the_picture_is_said() -> None:
    with pytest.raises(InputError) as error:
        Crop().run(PICTURE, boxes((1, 1, 2, 2), (31, 0, 40, 5)))
    assert str(error.value) == "Crop: box 1 (31, 0, 40, 5) lies outside the picture of 30×20"
