"""Load gives upright 8-bit sRGB pictures, and says what it cannot read."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil
from PIL import ImageCms

from nodes import Image, Load
from nodes.errors import InputError
from tests.nodes.conftest import Example


def load(file: Path) -> Image:
    return Load(path=str(file)).run(file)


def refused(file: Path) -> str:
    with pytest.raises(InputError) as error:
        load(file)
    return str(error.value)


def test_exif_rotation_is_applied(examples: dict[str, Example]) -> None:
    turned = examples["sunflower-cactus-orange.jpg"]
    with pil.open(turned.file) as stored:
        assert stored.size == (128, 176)
    assert (turned.image.width, turned.image.height) == (176, 128)


def test_alpha_and_greyness_are_kept(examples: dict[str, Example]) -> None:
    assert examples["robot-yellow.png"].image.pixels.shape == (128, 128, 4)
    assert examples["avocado-purple.png"].image.pixels.shape == (128, 128, 1)


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    pil.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(load(tmp_path / "a.png").pixels, pixels)


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    pil.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert load(tmp_path / "deep.png").pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_palette_with_transparency_becomes_rgba(tmp_path: Path) -> None:
    picture = pil.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putdata([0, 1])
    picture.save(tmp_path / "p.png", transparency=1)
    assert load(tmp_path / "p.png").pixels.tolist() == [[[255, 0, 0, 255], [0, 255, 0, 0]]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    pil.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "c.tif")
    assert load(tmp_path / "c.tif").pixels[0, 0].tolist() == [255, 0, 0]


def test_an_embedded_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # a profile in which red is green
    swapped = srgb.replace("sRGB".encode("utf-16-be"), "Test".encode("utf-16-be"))
    swapped = swapped.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    picture = pil.new("RGB", (2, 2), (200, 100, 50))
    picture.save(tmp_path / "s.png", icc_profile=srgb)
    assert load(tmp_path / "s.png").pixels[0, 0].tolist() == [200, 100, 50]
    picture.save(tmp_path / "swapped.png", icc_profile=swapped)
    assert load(tmp_path / "swapped.png").pixels[0, 0] == pytest.approx([100, 200, 50], abs=2)
    picture.save(tmp_path / "broken.png", icc_profile=b"no profile")
    assert load(tmp_path / "broken.png").pixels[0, 0].tolist() == [200, 100, 50]


def test_what_is_no_picture_is_said(tmp_path: Path) -> None:
    text = tmp_path / "a.png"
    text.write_text("no picture")
    assert refused(text) == f"{text}: not a picture Pillow can read: unknown format"
    assert refused(tmp_path / "none.png") == f"{tmp_path / 'none.png'}: no such file"


def test_a_truncated_picture_is_said(tmp_path: Path, examples: dict[str, Example]) -> None:
    cut = tmp_path / "cut.jpg"
    whole = examples["cat-green.jpg"].file.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    assert refused(cut).startswith(f"{cut}: not a picture Pillow can read: ")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    data = io.BytesIO()
    pil.new("1", (20_000, 20_000)).save(data, "PNG")
    (tmp_path / "bomb.png").write_bytes(data.getvalue())
    assert refused(tmp_path / "bomb.png") == f"{tmp_path / 'bomb.png'}: more than 178956970 pixels"


def test_a_large_photo_below_the_limit_is_no_warning(tmp_path: Path) -> None:
    pil.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    assert load(tmp_path / "large.png").width == 10_000


def test_floating_point_has_no_range(tmp_path: Path) -> None:
    pil.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tif")
    assert refused(tmp_path / "f.tif") == (
        f"{tmp_path / 'f.tif'}: a floating-point picture has no known range; save it with 8 or 16 bits a channel"
    )
