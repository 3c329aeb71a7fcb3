"""Paste undoes Crop, and changes nothing outside of the places."""

import numpy as np
import pytest

from nodes import Boxes, Crop, Image, Paste
from nodes.errors import InputError

RANDOM = np.random.default_rng(7)
PICTURE = Image(RANDOM.integers(0, 256, (30, 40, 3), np.uint8))


def boxes(*rows: tuple[float, float, float, float]) -> Boxes:
    return Boxes(np.array(rows, np.float32), ("cat",) * len(rows), np.ones(len(rows), np.float32))


def grey(value: int, width: int = 1, height: int = 1) -> Image:
    return Image(np.full((height, width, 3), value, np.uint8))


BLACK = Image(np.zeros((30, 40, 3), np.uint8))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_crop_cut_out_and_nobody_changed_is_put_back_exactly(channels: int) -> None:
    picture = Image(RANDOM.integers(0, 256, (30, 40, channels), np.uint8))
    crops, places = Crop(padding=0.3, square=True).run(picture, boxes((2.5, 3.1, 11, 20), (8, 10, 30, 30), (39, 0, 40, 1)))
    assert Paste().run(picture, crops, places) == picture


def test_outside_of_the_places_each_pixel_stays_what_it_is() -> None:
    pasted = Paste().run(PICTURE, [grey(255), grey(0)], [boxes((0, 0, 12, 12)), boxes((20, 5, 33, 29))])
    outside = np.ones((30, 40), bool)
    outside[0:12, 0:12] = outside[5:29, 20:33] = False
    assert (pasted.pixels[outside] == PICTURE.pixels[outside]).all()
    assert (pasted.pixels[6, 6] == 255).all() and (pasted.pixels[15, 26] == 0).all()


def test_a_crop_fades_in_over_the_feather_inside_its_edge() -> None:
    pasted = Paste(feather=4).run(BLACK, [grey(200)], [boxes((10, 4, 30, 24))]).pixels[..., 0]
    assert pasted[14, 8:16].tolist() == [0, 0, 40, 80, 120, 160, 200, 200]
    assert pasted[14, 24:32].tolist() == [200, 200, 160, 120, 80, 40, 0, 0]
    assert pasted[2:10, 20].tolist() == [0, 0, 40, 80, 120, 160, 200, 200]
    assert (Paste(feather=0).run(BLACK, [grey(200)], [boxes((10, 4, 30, 24))]).pixels[4:24, 10:30] == 200).all()


def test_an_edge_on_the_pictures_border_is_not_feathered() -> None:
    assert (Paste().run(BLACK, [grey(200)], [boxes((0, 0, 40, 30))]).pixels == 200).all()
    pasted = Paste(feather=4).run(BLACK, [grey(200)], [boxes((0, 0, 20, 20))]).pixels[..., 0]
    assert pasted[0, 14:21].tolist() == [200, 200, 160, 120, 80, 40, 0]


def test_a_small_crop_keeps_a_middle_of_its_own() -> None:
    pasted = Paste(feather=50).run(BLACK, [grey(200)], [boxes((10, 10, 18, 18))]).pixels[..., 0]
    assert pasted[14, 10:18].tolist() == [67, 133, 200, 200, 200, 200, 133, 67]
    assert (Paste().run(BLACK, [grey(200)], [boxes((10, 10, 13, 13))]).pixels[10:13, 10:13] == 200).all()


def test_a_crop_of_another_size_is_scaled_to_its_place() -> None:
    half = Image(np.concatenate([grey(0, 16, 32).pixels, grey(240, 16, 32).pixels], axis=1))
    pasted = Paste(feather=0).run(PICTURE, [half], [boxes((10, 10, 26, 26))]).pixels[..., 0]
    assert (pasted[10:26, 10:15] == 0).all() and (pasted[10:26, 21:26] == 240).all()


def test_later_crops_lie_on_top() -> None:
    pasted = Paste(feather=0).run(BLACK, [grey(100), grey(200)], [boxes((0, 0, 20, 20)), boxes((10, 10, 30, 30))])
    assert [int(pasted.pixels[y, x, 0]) for y, x in ((5, 5), (15, 15), (25, 25))] == [100, 200, 200]


def test_greyness_and_alpha_are_the_pictures() -> None:
    place = boxes((0, 0, 40, 30))
    red = Image(np.full((5, 5, 4), (255, 0, 0, 10), np.uint8))
    assert (Paste().run(Image(BLACK.pixels[..., :1]), [red], [place]).pixels == 76).all()
    clear = Image(RANDOM.integers(0, 256, (30, 40, 4), np.uint8))
    pasted = Paste().run(clear, [red], [place]).pixels
    assert (pasted[..., :3] == (255, 0, 0)).all() and (pasted[..., 3] == clear.pixels[..., 3]).all()


def test_without_crops_the_picture_passes_unchanged_and_says_so() -> None:
    pasted = Paste().run(PICTURE, [], [])
    assert pasted == PICTURE
    assert pasted.info["note"] == "no crops: passed unchanged"


@pytest.mark.parametrize(("places", "text"), [
    ([], "Paste: 1 crops but 0 places; each crop needs its place"),
    ([boxes((0, 0, 1, 1), (0, 0, 2, 2))], "Paste: place 0 has 2 boxes; expected the one box that the crop was cut from"),
    ([boxes((0, 0, 41, 2))], "Paste: place 0 (0, 0, 41, 2) is not a box of whole pixels inside the picture of 40×30"),
    ([boxes((0, 0, 4.5, 2))], "Paste: place 0 (0, 0, 4.5, 2) is not a box of whole pixels inside the picture of 40×30"),
    ([boxes((3, 3, 3, 5))], "Paste: place 0 (3, 3, 3, 5) is not a box of whole pixels inside the picture of 40×30"),
], ids=["count", "two boxes", "outside", "half a pixel", "no area"])  # fmt: skip
def test_a_place_that_is_none_is_said(places: list[Boxes], text: str) -> None:
    with pytest.raises(InputError) as error:
        Paste().run(PICTURE, [grey(1)], places)
    assert str(error.value) == text
