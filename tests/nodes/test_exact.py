"""The same bytes whatever goes together, with the toybox models: the promise of `nodes.exact` and `Place.spread`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil

from nodes import Detect, Embed, Generate, Image, Inpaint, Model, Refine, Segment, resident
from nodes.artifacts import Artifact, encode
from nodes.exact import ROWS, exact
from tests.conftest import EXAMPLES

NAMES = ("cat-blue", "fox-grey", "robot-yellow", "mushroom-white")
FEW = {"num_inference_steps": 2, "seed": 7, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pictures() -> list[Image]:
    found = []
    for name in NAMES:
        with pil.open(EXAMPLES / f"{name}.png") as picture:
            found.append(Image.from_pil(picture))
    return found


@pytest.fixture(params=[1, 3], ids=["one core", "three cores"])
def on_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """As many shares of a batch as there are cores."""
    monkeypatch.setattr(resident, "cores", lambda: request.param)
    yield request.param


def grouped(work: Callable[..., list[Any]], size: int, *lists: list[Any]) -> list[bytes]:
    """What `work` gives for groups of that size, as bytes."""
    found: list[bytes] = []
    for start in range(0, len(lists[0]), size):
        for value in work(*(each[start : start + size] for each in lists)):
            values: list[Artifact] = [value] if isinstance(value, Artifact) else [v for some in value for v in some]
            found.append(b"".join(map(encode, values)))
    return found


def test_every_model_gives_the_same_bytes_in_any_grouping_on_any_number_of_cores(
    pictures: list[Image], toybox: Mapping[str, str], on_cores: int
) -> None:
    def model(role: str) -> Model:
        return Model(role=role, source=toybox[role])

    count = len(pictures)
    detect, segment = Detect(model=model("detect")), Segment(model=model("segment"))
    boxes = [detect.run(picture) for picture in pictures]
    masks = [segment.run(picture, found) for picture, found in zip(pictures, boxes, strict=True)]
    prompts = ["a rocket", "a frog", "a rocket", "a dog"]
    work: dict[str, tuple[Callable[..., list[Any]], list[list[Any]]]] = {
        "Detect": (detect.run_batch, [pictures]),
        "Segment": (segment.run_batch, [pictures, boxes]),
        "Embed": (Embed(model=model("embed")).run_batch, [pictures]),
        "Inpaint": (Inpaint(model=model("inpaint"), prompt="", **FEW).run_batch, [pictures, masks, prompts]),
        "Refine": (
            Refine(model=model("refine"), strength=0.7, **FEW).run_batch, [pictures, [None] * count, prompts],
        ),
        "Generate": (Generate(model=model("generate"), prompt="", **FEW).run_batch, [prompts, [7, 8, 7, 9]]),
    }
    for name, (run_batch, lists) in work.items():
        alone = grouped(run_batch, 1, *lists)
        same = [a == b for a, b in zip(alone, grouped(run_batch, 3, *lists), strict=True)]
        assert all(same), f"{name}: {same}"


def test_pictures_of_one_call_are_equal_on_one_core_and_on_three(
    toybox: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Generate(model=Model(role="generate", source=toybox["generate"]), prompt="a cat", count=3, **FEW)
    made = []
    for cores in (1, 3):
        monkeypatch.setattr(resident, "cores", lambda cores=cores: cores)
        made.append([encode(image) for image in generate.run().images])
    assert made[0] == made[1]


def test_exact_layers_are_the_layers_and_do_not_depend_on_the_batch() -> None:
    import torch

    torch.manual_seed(0)
    layers = {
        "linear": (torch.nn.Linear(40, 24), (40,)),
        "convolution": (torch.nn.Conv2d(8, 16, 3, padding=1), (8, 8, 8)),
        "1 × 1": (torch.nn.Conv2d(8, 16, 1), (8, 8, 8)),
        "without bias": (torch.nn.Conv2d(8, 16, 1, bias=False), (8, 8, 8)),
        "transposed": (torch.nn.ConvTranspose2d(8, 4, 2, stride=2), (8, 8, 8)),
    }
    for name, (layer, shape) in layers.items():
        x = torch.randn(ROWS + 3, *shape)
        with torch.inference_mode():
            plain = layer(x)
            exact(layer)
            together, alone = layer(x), torch.cat([layer(each[None]) for each in x])
        assert np.abs((plain - together).numpy()).max() < 1e-5, name
        assert torch.equal(together, alone), name
