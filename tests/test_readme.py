"""Every command and every example of the README, run as a reader would."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil

from flows.pipeline import Pipeline
from flows.spec import parse, read
from tests.conftest import EXAMPLES, ROOT, Workplace, ask_server

README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


COMMANDS = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
PHOTOLOOM = [command for command in COMMANDS if command.startswith("photoloom ")]
PYTHON, OWN_NODE, SCHEDULE = blocks("python")
PIPELINE, OWN_PIPELINE, OPTIONS = blocks("yaml")


@pytest.fixture
def reader(workplace: Workplace) -> Workplace:
    """The project's folder as a reader has it, with one of the example pictures only."""
    shutil.copytree(ROOT / "pipelines", workplace.folder / "pipelines")
    examples = workplace.folder / "models" / "toybox" / "examples"
    examples.mkdir(parents=True)
    shutil.copy(EXAMPLES / "cat-blue.png", examples)
    (workplace.folder / "inbox" / "cats").mkdir(parents=True)
    shutil.copy(EXAMPLES / "cat-green.jpg", workplace.folder / "inbox" / "cats")
    (workplace.folder / "my_nodes.py").write_text(OWN_NODE)
    (workplace.folder / "posterize.yaml").write_text(OWN_PIPELINE)
    return workplace


def python(reader: Workplace, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=reader.folder, env={**reader.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def test_all_commands_are_known_here() -> None:
    assert set(COMMANDS) - set(PHOTOLOOM) == {"make demo", "make test", ". .venv/bin/activate"}
    assert len(PHOTOLOOM) >= 9
    for target in ("demo", "test", "bench"):
        shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert {"demo": "replace_object.yaml", "test": "pytest", "bench": "benchmarks/"}[target] in shown


def test_the_commands_do_what_is_said(reader: Workplace) -> None:
    out = {}
    for command in PHOTOLOOM:
        ran = reader.photoloom(*shlex.split(command)[1:])
        assert ran.returncode == (2 if "--models photo" in command else 0), command + ran.stderr
        out[command] = ran.stdout + ran.stderr

    def said(part: str) -> str:
        return next(text for command, text in out.items() if part in command)

    assert re.search(r"^edited +1 ran .*prompt changed: \"a rocket\" → \"a frog\"$", said("a frog"), re.M)
    assert re.search(r"^masks +1 cached", said("a frog"), re.M)
    assert re.search(r"^boxes +1 run\n    cat-blue: labels changed: ", said("plan"), re.M)
    assert re.search(r"^edited: 1 in outputs/replace-object/", said("inbox"), re.M)
    assert "hf download PekingU/rtdetr_v2_r50vd" in said("--models photo")
    assert said("check") == "replace-object: 4 steps, all right\n"
    assert said("graph").startswith("flowchart LR\n")
    assert "strength: number = 1.0, > 0, ≤ 1" in said("nodes Inpaint")
    assert len(re.findall(r"^drafts__guidance_scale_\d__seed_\d +1 ran", said("--sweep"), re.M)) == 8
    (grid,) = (reader.folder / "outputs" / "generate-and-refine").glob("*/grid/refined/0.png")
    with pil.open(grid) as ours, pil.open(ROOT / "docs" / "pictures" / "sweep.png") as shown:
        assert ours.size == shown.size
    (few,) = (reader.folder / "outputs" / "posterize").glob("*/few/cat-blue.png")
    with pil.open(few) as picture:
        assert set(np.unique(np.asarray(picture))) <= {0, 85, 170, 255}


def test_the_yaml_is_the_shipped_pipeline() -> None:
    assert parse(PIPELINE) == read(ROOT / "pipelines" / "replace_object.yaml")


def test_a_models_options_are_those_that_there_are() -> None:
    text = f"name: x\n{OPTIONS}steps:\n  made: {{node: Generate, prompt: x, model: models/toybox/sdxl}}\n"
    models = Pipeline.from_yaml(text).graph().models
    assert set(models["inpaint"]) == {"source", "dtype", "vae_tiling", "offload"}


def test_the_python_form_gives_the_same_steps(reader: Workplace) -> None:
    ran = python(reader, PYTHON)
    out, err = ran.communicate(timeout=200)
    assert ran.returncode == 0, err
    first, yaml = out.split("\n", 1)
    assert re.fullmatch(r"\(128, 128, 3\) outputs/replace-object/.+/report\.md", first)
    ours, shipped = parse(yaml), read(ROOT / "pipelines" / "replace_object.yaml")
    assert list(ours.steps) == list(shipped.steps)
    assert ours.steps["masks"] == shipped.steps["masks"]
    assert ours.outputs == shipped.outputs


def test_an_own_node_is_short() -> None:
    assert len(OWN_NODE.strip().splitlines()) < 15


def test_a_pipeline_is_served_on_a_schedule(reader: Workplace) -> None:
    serving = python(reader, SCHEDULE)
    try:
        deployment = deployed(reader, serving, "nightly")
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=60)
    assert deployment["name"] == "nightly"
    assert [each["schedule"]["cron"] for each in deployment["schedules"]] == ["0 2 * * *"]
    assert deployment["parameters"] == {"photos": "inbox/*.jpg"}
    assert set(deployment["parameter_openapi_schema"]["properties"]) == {"photos", "target", "prompt"}


def deployed(reader: Workplace, serving: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """The server's deployment of a name, as soon as there is one."""
    body = {"deployments": {"name": {"any_": [name]}}}
    ends = time.monotonic() + 60
    while time.monotonic() < ends and serving.poll() is None:
        found: list[dict[str, Any]] = ask_server(reader.environment, "deployments/filter", body)
        if found:
            return found[0]
        time.sleep(0.2)
    raise AssertionError(serving.communicate(timeout=10)[1] if serving.poll() is not None else "no deployment appeared")


def test_the_pictures_are_there() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        with pil.open(ROOT / Path(path)) as picture:
            assert picture.width >= 500
