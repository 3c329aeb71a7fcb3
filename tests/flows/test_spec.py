"""What YAML says is what is read, and what is written reads back equal."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from flows.pipeline import Pipeline
from flows.spec import Param, Spec, StepSpec, dump, parse, value_of
from nodes import Detect, Generate, Inpaint, Load, Save, Segment
from nodes.errors import PipelineError
from tests.conftest import ROOT

SHIPPED = sorted((ROOT / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("true", True), ("FALSE", False),
        ("~", None), ("null", None),
        ("12", 12), ("-7", -7), ("007", 7), ("0x1F", 31), ("0o17", 15), ("0b1", "0b1"), ("-0x1", "-0x1"),
        ("1_000", "1_000"), ("1:30", "1:30"),
        ("1e3", 1000.0), ("1.5", 1.5), (".5", 0.5), ("-.inf", -math.inf),
        ("1.", 1.0), ("1.e3", 1000.0), ("2026-11-24", "2026-11-24"),
        ('"12"', "12"), ("'it''s'", "it's"), ('"a\\nb"', "a\nb"), ("[1, no, [a]]", [1, "no", ["a"]]), ("a rocket", "a rocket"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(written: str, value: object) -> None:
    spec = parse(f"name: a\nsteps: {{s: {{node: Load, key: {written}}}}}\n")
    found = spec.steps["s"].keys["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_text_over_several_lines() -> None:
    head = "name: a\nsteps:\n  s:\n    node: Generate\n"
    spec = parse(head + "    prompt: >\n      a red\n      rocket\n    negative: |\n      x\n      y\n")
    assert spec.steps["s"].keys == {"prompt": "a red rocket\n", "negative": "x\ny\n"}


AWKWARD = ("no", "12", "1e3", "~", "", " a ", "a: b", "# c", "${x}", "- d", "it's", 'say "hi"', "über 猫 🚀", "a\nb\n", "[1]",
           "2026-11-24", "true", "0x10", "<<", "&a", "*a", "!b", "%", "@", "`", "\\", "\t", "null", "=", "a#b", "y")


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_survive_writing(text: str) -> None:
    spec = Spec(
        "awkward", text, "toybox", {"x": Param(text), "y": Param(1, "int", {"ge": 0}, (1, 2), help=text)},
        {"s": StepSpec("Generate", {"prompt": text, "words": [text, {"k": text}]})}, ("s",),
    )
    assert parse(dump(spec)) == spec
    assert yaml.safe_load(dump(spec))["steps"]["s"]["prompt"] == text, "other readers see the same"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_pipelines_survive_writing(path: Path) -> None:
    spec = Pipeline.from_yaml(path).spec
    assert parse(dump(spec)) == spec
    assert dump(parse(dump(spec))) == dump(spec)


def test_python_and_yaml_are_one_pipeline() -> None:
    photo = Load(path="in/*.png").step("photo")
    boxes = Detect(labels=("cat", "dog"), threshold=0.8).step("boxes", image=photo)
    masks = Segment().step("masks", image=photo, boxes=boxes)
    edited = Inpaint(prompt="a rocket", seed=7).step("edited", image=photo, mask=masks)
    kept = Save(format="webp", quality=80).step("kept", image=edited)
    made = Pipeline("cats", outputs=[kept, masks])
    text = """
name: cats
steps:
  photo: {node: Load, path: "in/*.png"}
  boxes: {node: Detect, image: photo, labels: [cat, dog], threshold: 0.8}
  masks: {node: Segment, image: photo, boxes: boxes}
  edited: {node: Inpaint, image: photo, mask: masks, prompt: a rocket, seed: 7}
  kept: {node: Save, image: edited, format: webp, quality: 80}
outputs: [kept, masks]
"""
    read = Pipeline.from_yaml(text)
    assert made == read
    assert Pipeline.from_yaml(made.to_yaml()) == made
    assert made.graph().steps == read.graph().steps


def test_one_changed_param_makes_another_pipeline() -> None:
    assert Pipeline("a", [Generate(prompt="x", seed=1).step("s")]) != Pipeline("a", [Generate(prompt="x", seed=2).step("s")])


@pytest.mark.parametrize(
    ("text", "param", "value"),
    [
        ("12", Param("a cat"), "12"), ("no", Param("yes"), "no"), ("12", Param(1), 12), ("1e3", Param(0.5), 1000.0),
        ("false", Param(True), False), ("[cat, 12]", Param(["dog"]), ["cat", 12]), ("a, b", Param(["dog"]), "a, b"),
        ("~", Param(None), None), ("[", Param([1]), "["), ("7", Param("x", "str"), "7"), ("", Param("x"), ""),
    ],
)
def test_a_value_on_the_command_line_is_read_by_its_param(text: str, param: Param, value: object) -> None:
    assert value_of(text, param) == value


def test_positions_are_those_of_the_file() -> None:
    spec = parse("name: a\nsteps:\n  s:\n    node: Load\n    path: x\n", "p.yaml")
    assert str(spec.problem("wrong", "steps", "s", "path")).startswith("p.yaml:5:5: wrong")
    assert str(spec.problem("wrong", "steps", "s", "nowhere")).startswith("p.yaml:3:3: wrong")


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(PipelineError) as caught:
        parse("nam: a\nsteps: {1: {node: Load}, s: 3, t: {noed: Load}}\noutputs: x\n")
    assert len(caught.value.problems) == 6
