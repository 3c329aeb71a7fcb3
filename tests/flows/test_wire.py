"""What crosses between a flow and a worker, and what a worker refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from flows import wire
from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.plan import Call
from flows.store import Ref, Store
from flows.worker import work
from tests.toys import Ponder

TEXT = """
name: x
steps:
  photo: {node: Grey, path: "photos"}
  number: {node: Measure, image: photo}
  pondered: {node: Ponder, image: photo, model: model, words: "it is ${number.words}", seconds: 0}
"""


def execution(tmp_path: Path, text: str = TEXT) -> Execution:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    return Execution(Pipeline.from_yaml(text).graph(), Store(tmp_path / "store"))


def test_a_step_and_its_calls_are_the_same_on_the_other_side(photos: Path, tmp_path: Path) -> None:
    step = execution(tmp_path).graph.steps["pondered"]
    found = wire.step_received(json.loads(json.dumps(wire.step_sent(step))))
    model = step.node.model.model_copy(update={"source": str(tmp_path / "model")})  # type: ignore[attr-defined]
    assert found == replace(step, node=step.node.model_copy(update={"model": model}))
    one, two = Ref("a" * 64, {"note": "none", "seed": 7}), Ref("b" * 64)
    inputs = {"image": one, "list": (one, two), "none": (), "open": None}
    call = Call(found, (3, 1), "cats/tom/1", "run", "forced", "c" * 64, inputs)
    again = wire.call_received(found, json.loads(json.dumps(wire.call_sent(call))))
    assert again == call
    assert isinstance(again.inputs["image"], Ref) and again.inputs["image"].info == {"note": "none", "seed": 7}


def test_a_worker_refuses_another_version_of_a_node_and_says_what_it_has(photos: Path, tmp_path: Path) -> None:
    step = execution(tmp_path).graph.steps["pondered"]
    asked = {"step": wire.step_sent(step), "store": str(tmp_path / "store"), "batch": None, "identity": "another", "calls": []}
    said = json.loads(work(json.dumps(asked)))["error"]
    assert said.startswith('step "pondered": the worker knows Ponder or its model otherwise: {"node": "Ponder", "version"')
    assert said.endswith("give both machines the same code and models, and name the model's dtype in the pipeline")


def test_a_worker_without_the_node_says_so(photos: Path, tmp_path: Path) -> None:
    sent = {**wire.step_sent(execution(tmp_path).graph.steps["pondered"]), "class": "Wonder"}
    asked = {"step": sent, "store": str(tmp_path / "store"), "batch": None, "identity": "", "calls": []}
    assert json.loads(work(json.dumps(asked))) == {
        "error": "the worker has no node tests.toys.Wonder: module 'tests.toys' has no attribute 'Wonder'"
    }


def test_a_class_that_nobody_else_can_import_stays_here() -> None:
    class Local:
        pass

    assert not wire.importable(Local) and wire.importable(Ponder)  # type: ignore[arg-type]
