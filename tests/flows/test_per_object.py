"""Fan-out per object: cut out what was found, work on each, and put it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.plan import Planner, make_plan
from flows.store import Store
from tests import toys
from tests.flows.conftest import Run, states
from tests.flows.test_execute import values

PER_OBJECT = """
name: per-object
params: {amount: -100.0}
steps:
  photo: {node: Grey, path: photos}
  spots: {node: BrightSpot, image: photo}
  cut: {node: Crop, image: photo, boxes: spots}
  fussy: {node: Fussy, image: cut.images}
  darker: {node: Add, image: fussy, amount: "${amount}"}
  pasted: {node: Paste, image: photo, crops: darker, places: cut.places}
outputs: [pasted]
"""


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Three pictures of 6×6: one bright spot in a, none in b, one in c whose crop begins with 13."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, spot in (("a", ((2, 2, 250), (3, 3, 240))), ("b", ()), ("c", ((1, 1, 13), (1, 3, 230), (3, 1, 230)))):
        pixels = np.full((6, 6), 20, int)
        for y, x, value in spot:
            pixels[y, x] = value
        (folder / f"{name}.txt").write_text("\n".join(" ".join(map(str, row)) for row in pixels) + "\n")
    return folder


def test_each_object_is_worked_on_and_put_back_and_no_object_is_no_error(scenes: Path, run: Run) -> None:
    (scenes / "c.txt").unlink()
    ran = run(PER_OBJECT)
    assert states(ran) == {
        "photo": "2 ran", "spots": "2 ran", "cut": "2 ran", "fussy": "1 ran", "darker": "1 ran", "pasted": "2 ran",
    }
    assert ran.result.steps["pasted"].notes == {"no crops: passed unchanged": 1}
    photos, pasted = values(ran, "photo"), values(ran, "pasted")
    assert (pasted[1].pixels == photos[1].pixels).all()
    changed = photos[0].pixels[..., 0].copy()
    changed[2:4, 2:4] = [[150, 0], [0, 140]]
    assert (pasted[0].pixels[..., 0] == changed).all()
    assert set(states(run(PER_OBJECT)).values()) == {"2 cached", "1 cached"}
    assert toys.calls == []


def test_an_object_that_fails_keeps_its_picture_from_being_put_together_and_no_other(scenes: Path, run: Run) -> None:
    ran = run(PER_OBJECT)
    assert [(failure.step, failure.id, failure.error) for failure in ran.result.failures] == [
        ("fussy", "c/0", "RuntimeError: thirteen")
    ]
    assert states(ran)["pasted"] == "2 ran, 1 skipped"

    text = (scenes / "c.txt").read_text().replace("13", "14")
    (scenes / "c.txt").write_text(text)
    again = run(PER_OBJECT)
    assert states(again) == {
        "photo": "1 ran, 2 cached", "spots": "1 ran, 2 cached", "cut": "1 ran, 2 cached", "fussy": "1 ran, 1 cached",
        "darker": "1 ran, 1 cached", "pasted": "1 ran, 2 cached",
    }
    assert (values(again, "pasted")[2].pixels[1, 1] == 0).all()


def test_too_many_failed_objects_stop_the_run_and_the_same_command_goes_on(scenes: Path, run: Run) -> None:
    ran = run(PER_OBJECT, max_failures=0)
    assert ran.result.stopped == "more than 0 failed; the same command goes on with the rest"
    assert states(ran)["pasted"] == ""
    (scenes / "c.txt").unlink()
    again = run(PER_OBJECT, max_failures=0)
    assert again.result.stopped == ""
    assert states(again)["cut"] == "2 cached"
    assert states(again)["pasted"] == "2 ran"


def test_another_strength_runs_the_objects_and_what_puts_them_back(scenes: Path, run: Run, store: Store) -> None:
    (scenes / "c.txt").unlink()
    run(PER_OBJECT)
    graph = Pipeline.from_yaml(PER_OBJECT).graph({"amount": -50.0})
    planned = {step.name: step.states() for step in make_plan(Planner(graph, store), set(graph.steps))}
    assert planned["darker"] == {"run": 1}
    assert planned["pasted"] == {"depends on darker": 1, "cached": 1}
    execution = Execution(graph, store)
    execution.run()
    assert states(execution)["pasted"] == "1 ran, 1 cached"
    assert values(execution, "pasted")[0].pixels[2, 2, 0] == 200


def test_a_plan_of_what_never_ran_waits_from_the_first_object_on(scenes: Path, store: Store) -> None:
    graph = Pipeline.from_yaml(PER_OBJECT).graph()
    planned = {step.name: step.states() for step in make_plan(Planner(graph, store), set(graph.steps))}
    assert planned == {
        "photo": {"run": 3}, "spots": {"depends on photo": 3}, "cut": {"depends on photo": 3},
        "fussy": {"depends on cut": 1}, "darker": {"depends on fussy": 1}, "pasted": {"depends on photo": 3},
    }


def test_names_of_objects_are_the_pictures_and_their_number(scenes: Path, run: Run) -> None:
    ran = run(PER_OBJECT)
    assert [call.id for call in make_plan(Planner(ran.graph, ran.store), set(ran.graph.steps))[3].calls] == ["a/0", "c/0"]
