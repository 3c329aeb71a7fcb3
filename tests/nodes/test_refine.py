"""Refine goes over a picture, or goes on with latents."""

from collections.abc import Mapping

import numpy as np
import pytest
from pydantic import ValidationError

from nodes import Generate, Image, Latents, Refine
from nodes.errors import InputError
from tests.nodes.conftest import Example


def refine(toybox: Mapping[str, str], **params: object) -> Refine:
    given = {"prompt": "a cat on a blue background", "num_inference_steps": 10, **params}
    return Refine.model_validate({"model": toybox["refine"], **given})


def distance(a: Image, b: Image) -> float:
    return float(np.abs(a.rgb.astype(int) - b.rgb).mean())


def test_a_little_strength_changes_little_and_much_changes_more(
    toybox: Mapping[str, str], examples: dict[str, Example]
) -> None:
    picture = examples["cat-blue.png"].image
    little, much = (refine(toybox, strength=strength).run(picture) for strength in (0.2, 0.9))
    assert 0 < distance(little, picture) < distance(much, picture)
    assert distance(little, picture) < 15
    assert little.info["num_inference_steps"] == 2 and little.info["strength"] == 0.2


@pytest.mark.parametrize("name", ["avocado-purple.png", "robot-yellow.png", "sunflower-cactus-orange.jpg"])
def test_size_alpha_and_greyness_are_kept(
    toybox: Mapping[str, str], examples: dict[str, Example], name: str
) -> None:
    picture = examples[name].image
    picture = Image(picture.pixels[:101, :77])
    made = refine(toybox, num_inference_steps=4).run(picture)
    assert made.pixels.shape == picture.pixels.shape
    assert np.array_equal(made.pixels[..., 3:], picture.pixels[..., 3:])


def test_latents_are_taken_up_where_generate_left_them(toybox: Mapping[str, str]) -> None:
    base = Generate.model_validate({
        "model": toybox["generate"], "prompt": "a cat on a blue background", "num_inference_steps": 10, "seed": 1,
    })
    whole = base.run().images[0]
    begun = base.model_copy(update={"denoising_end": 0.8}).run()
    finished = refine(toybox, denoising_start=0.8).run(latents=begun.latents[0])
    assert begun.images[0].info["num_inference_steps"] == 8
    assert finished.info["num_inference_steps"] == 2 and finished.info["denoising_start"] == 0.8
    assert distance(finished, whole) < distance(begun.images[0], whole) + 10


def test_the_same_seed_gives_the_same_bytes(toybox: Mapping[str, str], examples: dict[str, Example]) -> None:
    picture = examples["cat-blue.png"].image
    assert refine(toybox, seed=3).run(picture) == refine(toybox, seed=3).run(picture)
    assert refine(toybox, seed=3).run(picture) != refine(toybox, seed=4).run(picture)


def test_exactly_one_of_image_and_latents() -> None:
    picture, latents = Image(np.zeros((8, 8, 3), np.uint8)), Latents(np.zeros((4, 2, 2), np.float32), 1.0)
    for given, word in (({}, "neither"), ({"image": picture, "latents": latents}, "both")):
        with pytest.raises(InputError) as error:
            Refine().run(**given)
        assert str(error.value) == f"Refine: wire either image or latents, not {word}"


def test_denoising_start_goes_with_latents_and_only_with_them(toybox: Mapping[str, str]) -> None:
    with pytest.raises(InputError) as error:
        refine(toybox).run(latents=Latents(np.zeros((4, 32, 32), np.float32), 1.0))
    assert str(error.value) == (
        "Refine: latents need denoising_start, the denoising_end that they were made with"
    )
    with pytest.raises(InputError) as error:
        refine(toybox, denoising_start=0.8).run(Image(np.zeros((8, 8, 3), np.uint8)))
    assert str(error.value) == "Refine: denoising_start goes on with latents; for an image give strength"


def test_latents_of_another_family_are_said(toybox: Mapping[str, str]) -> None:
    said = r"^Refine: the latents \(16 channels, scaling 99\) are not of this model's space \(4 channels, "
    with pytest.raises(InputError, match=said):
        refine(toybox, denoising_start=0.8).run(latents=Latents(np.zeros((16, 4, 4), np.float32), 99.0))


def test_a_strength_that_leaves_no_step_is_said() -> None:
    with pytest.raises(ValidationError) as error:
        Refine(num_inference_steps=3)
    assert "strength 0.3 of 3 steps leaves none; num_inference_steps must be at least 4" in str(error.value)
    assert Refine(num_inference_steps=3, denoising_start=0.5).strength == 0.3
