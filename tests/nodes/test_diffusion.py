"""Schedulers by name, and calls that leave no trace."""

from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest

from nodes import Generate, Model
from nodes.diffusion import SCHEDULERS, SchedulerName, load_parts
from nodes.errors import ModelError
from nodes.resident import held
from nodes.running import listening


def small(toybox: Mapping[str, str], **params: object) -> Generate:
    """A quick picture: 64 pixels, 3 steps."""
    given = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 3, "seed": 5, **params}
    return Generate.model_validate({"model": toybox["generate"], **given})


def test_every_scheduler_name_has_its_class() -> None:
    import diffusers

    assert set(get_args(SchedulerName)) == set(SCHEDULERS)
    assert all(hasattr(diffusers, class_name) for class_name, _ in SCHEDULERS.values())


@pytest.mark.parametrize("name", get_args(SchedulerName))
def test_every_scheduler_makes_a_picture(toybox: Mapping[str, str], name: str) -> None:
    picture = small(toybox, scheduler=name).run().images[0]
    assert picture.info["scheduler"] == SCHEDULERS[name][0]
    assert picture.info["scheduler_name"] == name
    assert picture.info["num_inference_steps"] == (4 if name == "pndm" else 3)
    assert picture.pixels.std() > 5


def test_a_call_leaves_no_trace_in_the_next(toybox: Mapping[str, str]) -> None:
    before = small(toybox).run().images[0]
    other = small(toybox, scheduler="dpm++_2m_karras", num_inference_steps=5).run().images[0]
    assert small(toybox).run().images[0] == before != other


def test_two_roles_share_the_weights_of_one_folder(toybox: Mapping[str, str]) -> None:
    with held(Model(role="generate", source=toybox["generate"]), load_parts) as one:
        pass
    with held(Model(role="inpaint", source=toybox["generate"]), load_parts) as other:
        assert one is other


def test_progress_counts_the_steps(toybox: Mapping[str, str]) -> None:
    heard: list[tuple[int, int]] = []
    with listening(lambda done, total: heard.append((done, total))):
        small(toybox).run()
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_a_prompt_that_is_too_long_is_said(toybox: Mapping[str, str]) -> None:
    note = small(toybox, prompt="a cat " * 100 + "on the moon").run().images[0].info["note"]
    assert isinstance(note, str)
    assert note.startswith("the model reads only the beginning of the prompt; left out: ")
    assert note.endswith("on the moon")


def test_a_negative_prompt_changes_the_picture(toybox: Mapping[str, str]) -> None:
    plain, without = small(toybox).run().images[0], small(toybox, negative_prompt="a dog").run().images[0]
    assert np.abs(plain.pixels.astype(int) - without.pixels).mean() > 1
    assert without.info["negative_prompt"] == "a dog"


def test_a_folder_that_is_not_sdxl_is_refused(toybox: Mapping[str, str]) -> None:
    with pytest.raises(ModelError) as error:
        small({"generate": toybox["detect"]}).run()
    assert str(error.value) == (
        f'model "{toybox["detect"]}" cannot be loaded for the role "generate": '
        "expected an SDXL model (a StableDiffusionXL… in model_index.json), got none"
    )
