"""Inpaint repaints what the mask covers, and leaves every other pixel as it was."""

from collections.abc import Mapping

import numpy as np
import pytest
from pydantic import ValidationError

from nodes import Detect, Image, Inpaint, Masks
from nodes.errors import InputError
from nodes.inpaint import faded, model_size, surroundings, whole_cells, widened
from tests.nodes.conftest import Example


def inpaint(toybox: Mapping[str, str], **params: object) -> Inpaint:
    given = {"prompt": "a rocket", "num_inference_steps": 2, "seed": 7, **params}
    return Inpaint.model_validate({"model": toybox["inpaint"], **given})


def one(layer: np.ndarray) -> Masks:
    return Masks(layer[None].astype(np.uint8), ("",), np.ones(1, np.float32))


def disc(height: int, width: int, y: int, x: int, radius: int) -> Masks:
    rows, columns = np.ogrid[:height, :width]
    return one(np.where((rows - y) ** 2 + (columns - x) ** 2 <= radius**2, 255, 0))


def reach(mask: Masks, pixels: int) -> np.ndarray:
    """bool (H, W): within `pixels` of the mask, along both axes."""
    return widened(mask.union, pixels) > 0


def test_the_object_becomes_the_one_asked_for(toybox: Mapping[str, str], examples: dict[str, Example]) -> None:
    detect = Detect.model_validate({"model": toybox["detect"], "threshold": 0.5})
    wanted = [("cat-blue.png", "rocket"), ("dog-green.png", "frog"), ("fox-grey.png", "apple")]
    right = 0
    for name, kind in wanted:
        example = examples[name]
        prompt = f"a {kind} on a {example.backdrop} background"
        made = inpaint(toybox, prompt=prompt, num_inference_steps=20).run(example.image, example.masks)
        outside = ~reach(example.masks, 9)
        assert outside.any() and np.array_equal(made.pixels[outside], example.image.pixels[outside])
        found = detect.run(made).labels
        assert example.labels[0] not in found
        right += kind in found
    assert right == 3


def test_a_plain_model_of_four_channels_paints_too(toybox: Mapping[str, str], examples: dict[str, Example]) -> None:
    example = examples["cat-blue.png"]
    node = Inpaint.model_validate({"model": toybox["generate"], "prompt": "a rocket", "num_inference_steps": 4, "seed": 7})
    made = node.run(example.image, example.masks)
    outside = ~reach(example.masks, 9)
    assert np.array_equal(made.pixels[outside], example.image.pixels[outside])
    assert (made.pixels[example.masks.union > 0] != example.image.pixels[example.masks.union > 0]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("name", [
    "avocado-purple.png", "robot-yellow.png", "car-ball-grey.png", "turtle-orange.png",
    "burger-pizza-watermelon-white.jpg",
])
def test_pixels_outside_are_identical_for_any_kind_and_shape(
    toybox: Mapping[str, str], examples: dict[str, Example], name: str
) -> None:
    picture = examples[name].image
    mask = disc(picture.height, picture.width, picture.height // 2, picture.width // 3, 14)
    made = inpaint(toybox).run(picture, mask)
    assert made.pixels.shape == picture.pixels.shape
    outside = ~reach(mask, 9)
    assert np.array_equal(made.pixels[outside], picture.pixels[outside])
    assert (made.pixels[mask.union > 0] != picture.pixels[mask.union > 0]).any(axis=1).mean() > 0.8
    if picture.pixels.shape[2] == 4:
        assert np.array_equal(made.pixels[..., 3], picture.pixels[..., 3])


def test_a_mask_at_the_corner_of_a_large_picture_works(toybox: Mapping[str, str]) -> None:
    picture = Image(np.random.default_rng(0).integers(0, 256, (333, 501, 3), dtype=np.uint8))
    mask = disc(333, 501, 330, 498, 20)
    made = inpaint(toybox, mask_blur=0, mask_expand=0).run(picture, mask)
    inside = mask.union > 0
    assert np.array_equal(made.pixels[~inside], picture.pixels[~inside])
    assert (made.pixels[inside] != picture.pixels[inside]).any(axis=1).mean() > 0.9


def test_several_layers_count_as_their_union(toybox: Mapping[str, str], examples: dict[str, Example]) -> None:
    example = examples["dog-cat-orange.png"]
    assert inpaint(toybox).run(example.image, example.masks) == inpaint(toybox).run(
        example.image, one(example.masks.union)
    )


def test_invert_keeps_the_object_and_repaints_the_rest(
    toybox: Mapping[str, str], examples: dict[str, Example]
) -> None:
    example = examples["cat-blue.png"]
    made = inpaint(toybox, prompt="a cat on a yellow background", invert=True).run(example.image, example.masks)
    core = widened(example.masks.union, -5) > 0
    assert core.sum() > 500 and np.array_equal(made.pixels[core], example.image.pixels[core])
    background = ~reach(example.masks, 4)
    assert (made.pixels[background] != example.image.pixels[background]).any(axis=1).mean() > 0.8


def test_the_same_seed_gives_the_same_bytes(toybox: Mapping[str, str], examples: dict[str, Example]) -> None:
    first, second = examples["cat-blue.png"], examples["cat-pink.png"]
    alone = inpaint(toybox).run(first.image, first.masks)
    inpaint(toybox).run(second.image, second.masks)
    assert inpaint(toybox).run(first.image, first.masks) == alone
    assert inpaint(toybox, seed=8).run(first.image, first.masks) != alone


def test_the_info_tells_the_effective_steps(toybox: Mapping[str, str], examples: dict[str, Example]) -> None:
    example = examples["cat-blue.png"]
    made = inpaint(toybox, strength=0.5, num_inference_steps=4).run(example.image, example.masks)
    assert {name: made.info[name] for name in ("seed", "num_inference_steps", "strength", "scheduler")} == {
        "seed": 7, "num_inference_steps": 2, "strength": 0.5, "scheduler": "EulerDiscreteScheduler",
    }


@pytest.mark.parametrize("invert", [False, True])
def test_no_mask_passes_the_picture_on_and_says_so(examples: dict[str, Example], invert: bool) -> None:
    picture = examples["robot-yellow.png"].image
    node = Inpaint(prompt="a rocket", invert=invert)  # needs no model
    empty = Masks(np.zeros((0, 128, 128), np.uint8), (), np.zeros(0, np.float32))
    for mask in (None, empty, one(np.zeros((128, 128)))):
        passed = node.run(picture, mask)
        assert passed == picture
        assert passed.info == {"note": "no mask: passed unchanged"}


def test_a_mask_of_another_size_is_said() -> None:
    with pytest.raises(InputError) as error:
        Inpaint(prompt="a rocket").run(Image(np.zeros((20, 30, 3), np.uint8)), one(np.zeros((30, 20))))
    assert str(error.value) == "Inpaint: the mask is 20×30 pixels and the picture 30×20"


def test_a_strength_that_leaves_no_step_is_said() -> None:
    with pytest.raises(ValidationError) as error:
        Inpaint(prompt="a rocket", strength=0.1, num_inference_steps=5)
    assert "strength 0.1 of 5 steps leaves none; num_inference_steps must be at least 10" in str(error.value)


# --- the parts ---


def test_widened_grows_by_exactly_so_many_pixels_and_shrinks_likewise() -> None:
    dot = np.zeros((21, 21), np.uint8)
    dot[10, 10] = 255
    for by in (1, 2, 5, 7):
        rows, columns = np.nonzero(widened(dot, by))
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10 - by, 10 + by, 10 - by, 10 + by)
        assert len(rows) == (2 * by + 1) ** 2
        assert np.array_equal(widened(widened(dot, by), -by), dot)
    assert widened(dot, 100).all()


@pytest.mark.parametrize("over", [1, 2, 3, 4, 9])
def test_the_fade_lies_outside_the_mask_and_ends(over: int) -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 255
    soft = faded(mask, over)
    assert (soft[20:40, 20:40] == 255).all()
    assert not soft[widened(mask, over + 1) == 0].any()
    assert (np.diff(soft[30, 40:].astype(int)) <= 0).all() and 0 < soft[30, 40] < 255


def test_a_small_picture_goes_as_a_whole_and_of_a_large_one_the_surroundings() -> None:
    weight = np.zeros((100, 128), np.uint8)
    weight[10:20, 10:20] = 255
    assert surroundings(weight, 32, 128) == (0, 0, 128, 100)
    weight = np.zeros((1000, 2000), np.uint8)
    weight[400:500, 600:660] = 255
    assert surroundings(weight, 32, 128) == (548, 368, 712, 532)  # square: 100 + 2 × 32
    assert surroundings(weight, 0, 1024) == (374, 194, 886, 706)  # half the model's side at least
    weight[990:, 1990:] = 255
    assert surroundings(weight, 32, 128) == (536, 0, 2000, 1000)


def test_the_models_size_keeps_the_shape_and_the_area() -> None:
    assert model_size(500, 500, 128) == (128, 128)
    assert model_size(3000, 2000, 1024) == (1256, 840)
    assert model_size(1, 300, 128) == (64, 256)


def test_a_latent_that_is_touched_is_repainted_whole() -> None:
    inside = np.zeros((8, 12), np.bool_)
    inside[5, 6] = True
    cells = whole_cells(inside, 4)
    assert cells.dtype == np.uint8 and cells.sum() == 16 * 255 and (cells[4:8, 4:8] == 255).all()
