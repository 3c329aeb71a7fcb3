"""Generate paints what was asked for, and the same again for the same seed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.store import Store
from nodes import Detect, Generate, Image
from nodes.generate import Generated

BACKDROPS = {"blue": (110, 165, 240), "yellow": (248, 218, 120), "pink": (250, 160, 200)}
"""Colours that `models.scenes` draws under these names."""


@pytest.fixture(scope="module")
def detect(toybox: Mapping[str, str]) -> Detect:
    return Detect.model_validate({"model": toybox["detect"], "threshold": 0.5})


def generate(toybox: Mapping[str, str], **params: object) -> Generated:
    return Generate.model_validate({"model": toybox["generate"], **params}).run()


def corners(image: Image) -> np.ndarray:
    """The mean colour of the upper corners."""
    rgb = image.rgb
    return np.concatenate([rgb[:12, :12].reshape(-1, 3), rgb[:12, -12:].reshape(-1, 3)]).mean(axis=0)


def test_the_object_and_the_backdrop_are_those_asked_for(toybox: Mapping[str, str], detect: Detect) -> None:
    wanted = [("cat", "blue"), ("rocket", "yellow"), ("frog", "pink")]
    right = 0
    for kind, backdrop in wanted:
        [image] = generate(toybox, prompt=f"a {kind} on a {backdrop} background", seed=3).images
        right += kind in detect.run(image).labels
        distances = {name: np.abs(corners(image) - colour).sum() for name, colour in BACKDROPS.items()}
        assert min(distances, key=lambda name: distances[name]) == backdrop
    assert right >= 2


def test_count_makes_the_pictures_of_the_next_seeds_each_as_if_alone(toybox: Mapping[str, str]) -> None:
    params = {"prompt": "a cat", "num_inference_steps": 2}
    several = generate(toybox, **params, seed=7, count=3)
    for offset in range(3):
        alone = generate(toybox, **params, seed=7 + offset)
        assert alone.images[0] == several.images[offset]
        assert alone.latents[0] == several.latents[offset]
        assert several.images[offset].info["seed"] == 7 + offset
    assert several.images[0] != several.images[1]


def test_in_a_pipeline_each_picture_is_an_element_and_the_same(toybox: Mapping[str, str], tmp_path: Path) -> None:
    node = Generate.model_validate(
        {"model": toybox["generate"], "prompt": "a cat", "num_inference_steps": 2, "seed": 7, "count": 3}
    )
    execution = Execution(Pipeline("x", [node.step("made")]).graph(), Store(tmp_path), batch=2)
    assert execution.run().steps["made"].ran == 3
    made = node.run()
    for output, wanted in (("images", made.images), ("latents", made.latents)):
        assert [(id_, value) for _, id_, value in execution.values("made", output)] == list(zip("012", wanted, strict=True))


def test_the_info_tells_what_makes_the_picture_again(toybox: Mapping[str, str]) -> None:
    [image] = generate(toybox, prompt="a cat", num_inference_steps=2, guidance_scale=3.0, seed=2**63 - 1).images
    assert image.info == {
        "prompt": "a cat", "negative_prompt": "", "seed": 2**63 - 1, "num_inference_steps": 2, "guidance_scale": 3.0,
        "scheduler": "EulerDiscreteScheduler", "width": 128, "height": 128, "model": "sdxl",
    }


def test_width_and_height_are_those_asked_for(toybox: Mapping[str, str]) -> None:
    made = generate(toybox, prompt="a cat", num_inference_steps=1, width=136, height=72)
    assert made.images[0].pixels.shape == (72, 136, 3)
    assert made.latents[0].tensor.shape == (4, 18, 34)


def test_denoising_end_stops_on_the_way(toybox: Mapping[str, str]) -> None:
    made = generate(toybox, prompt="a cat", num_inference_steps=5, denoising_end=0.6)
    assert made.images[0].info["num_inference_steps"] == 3
    assert made.images[0].info["denoising_end"] == 0.6


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"width": 100}, "Input should be a multiple of 8"),
        ({"num_inference_steps": 0}, "Input should be greater than or equal to 1"),
        ({"seed": -1}, "Input should be greater than or equal to 0"),
        ({"denoising_end": 1.0}, "Input should be less than 1"),
        ({"scheduler": "eular"}, "Input should be 'euler'"),
    ],
)
def test_a_param_out_of_bounds_is_said_when_the_node_is_made(params: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Generate.model_validate({"prompt": "a cat", **params})
