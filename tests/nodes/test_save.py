"""Save gives files that hold the picture."""

import io

import numpy as np
import pytest
from PIL import Image as pil

from nodes import File, Image, Save
from nodes.errors import InputError
from tests.nodes.conftest import Example


def opened(file: File) -> pil.Image:
    return pil.open(io.BytesIO(file.data.tobytes()))


@pytest.mark.parametrize(
    ("save", "suffix"), [(Save(), ".png"), (Save(format="tiff"), ".tif"), (Save(format="webp", lossless=True), ".webp")]
)
@pytest.mark.parametrize("channels", [3, 4])
def test_lossless_formats_keep_every_pixel(save: Save, suffix: str, channels: int) -> None:
    picture = Image(np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8))
    file = save.run(picture)
    assert file.suffix == suffix
    assert np.array_equal(Image.from_pil(opened(file)).pixels, picture.pixels)


def test_grey_stays_grey(examples: dict[str, Example]) -> None:
    grey = examples["avocado-purple.png"].image
    assert opened(Save(format="jpeg").run(grey)).mode == "L"
    assert np.array_equal(Image.from_pil(opened(Save().run(grey))).pixels, grey.pixels)


def test_jpeg_lays_transparency_on_white() -> None:
    clear = Image(np.full((16, 16, 4), [200, 0, 0, 0], np.uint8))
    file = Save(format="jpeg").run(clear)
    assert file.suffix == ".jpg"
    assert np.asarray(opened(file)).min() >= 253


def test_less_quality_is_less_data(examples: dict[str, Example]) -> None:
    for kind in ("jpeg", "webp"):
        sizes = [
            len(Save.model_validate({"format": kind, "quality": q}).run(examples["cat-blue.png"].image).data)
            for q in (20, 95)
        ]
        assert sizes[0] < sizes[1] / 2


def test_the_same_picture_gives_the_same_bytes(examples: dict[str, Example]) -> None:
    picture = examples["cat-blue.png"].image
    assert Save().run(picture) == Save().run(picture.with_info(note="made another way"))


def test_a_size_that_the_format_cannot_hold_is_said() -> None:
    with pytest.raises(InputError, match="^Save: 20000×1 pixels do not fit webp: "):
        Save(format="webp").run(Image(np.zeros((1, 20_000, 3), np.uint8)))
