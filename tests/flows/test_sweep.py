"""Sweeps: which steps are copied, what they are called, what runs, and the grids that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as pil

from flows.execute import Execution
from flows.grids import write_grids
from flows.pipeline import Pipeline
from flows.spec import Spec, parse
from flows.store import Store
from flows.sweep import Sweep
from nodes import Image, Text
from nodes.errors import PipelineError
from nodes.grid import Sheet
from tests import toys
from tests.flows.conftest import states

PHOTOS = """
name: photos
params:
  photos: "photos/*.txt"
  amount: {type: float, default: 0, ge: 0, le: 200}
  add: {type: int, default: 0, choices: [0, 1, 2, 3]}
  unused: 1
steps:
  photo: {node: Grey, path: "${photos}"}
  base: {node: Invert, image: photo}
  lighter: {node: Add, image: base, amount: "${amount}"}
  spot: {node: BrightSpot, image: lighter, threshold: 100}
  other: {node: Invert, image: photo, add: "${add}"}
  cut: {node: Crop, image: other, boxes: spot}
outputs: [lighter, other, cut]
"""


def swept(text: str, sweep: Mapping[str, Iterable[Any]], **params: Any) -> tuple[Spec, Sweep]:
    _, found = Pipeline.from_spec(parse(text))._swept(params, None, (), sweep)
    return found.spec, found


Ran = tuple[Execution, Sweep, list[dict[str, str]]]


@pytest.fixture
def run(tmp_path: Path, photos: Path, store: Store) -> Any:
    """Run a sweep and draw its grids; `toys.calls` then holds the calls that were made."""

    def go(text: str, sweep: Mapping[str, Iterable[Any]], params: Mapping[str, Any] | None = None, **options: Any) -> Ran:
        toys.calls.clear()
        execution, found = Pipeline.from_yaml(text)._execution(params or {}, sweep, store=store.folder, **options)
        failures = execution.run().failures
        return execution, found, write_grids(found, execution.graph, tmp_path / "run", execution.values, failures)

    return go


def pixels(path: str) -> NDArray[np.uint8]:
    with pil.open(path) as picture:
        return np.asarray(picture)


def errors(text: str, sweep: Mapping[str, Any], **params: Any) -> list[str]:
    with pytest.raises(PipelineError) as error:
        swept(text, sweep, **params)
    return [str(problem) for problem in error.value.problems]


# --- the swept pipeline ---


def test_a_step_is_copied_for_the_params_that_reach_it_and_for_no_others() -> None:
    spec, found = swept(PHOTOS, {"amount": [0, 5], "add": [1, 2, 3]})
    assert found.reach == {
        "photo": (), "base": (), "lighter": ("amount",), "spot": ("amount",), "other": ("add",), "cut": ("amount", "add"),
    }
    assert list(spec.steps) == [
        "photo", "base", "lighter__amount_0", "lighter__amount_5", "spot__amount_0", "spot__amount_5",
        "other__add_1", "other__add_2", "other__add_3",
        *(f"cut__amount_{amount}__add_{add}" for amount in (0, 5) for add in (1, 2, 3)),
    ]
    assert spec.steps["cut__amount_5__add_2"].keys == {"image": "other__add_2", "boxes": "spot__amount_5"}
    assert spec.steps["lighter__amount_5"].keys == {"image": "base", "amount": "${amount_5}"}
    assert spec.outputs[:5] == ("lighter__amount_0", "lighter__amount_5", "other__add_1", "other__add_2", "other__add_3")
    assert {name: param.default for name, param in spec.params.items()} == {
        "photos": "photos/*.txt", "unused": 1, "amount_0": 0, "amount_5": 5, "add_1": 1, "add_2": 2, "add_3": 3,
    }


def test_the_first_param_given_comes_first() -> None:
    spec, found = swept(PHOTOS, {"add": [1], "amount": [0, 5]})
    assert found.reach["cut"] == ("add", "amount")
    assert list(spec.steps)[-2:] == ["cut__add_1__amount_0", "cut__add_1__amount_5"]


def test_a_swept_pipeline_is_a_pipeline_that_can_be_written_down_and_read() -> None:
    spec, _ = swept(PHOTOS, {"amount": [0, 5.5], "add": [1, 2]})
    again = Pipeline.from_yaml(Pipeline.from_spec(spec).to_yaml())
    assert again.spec == spec
    assert again.graph().steps["lighter__amount_5_5"].node.amount == 5.5  # type: ignore[attr-defined]


TEXTS = """
name: texts
params: {word: a, word_a: taken, times: 1}
steps:
  word__word_b: {node: Say, text: "${word_a}"}
  said: {node: Say, text: "${word}, ${word__word_b} and said", times: "${times}"}
  said_again: {node: Say, text: "<${said}> ${word}"}
outputs: [said_again]
"""


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["a", "b"], ["word_a_2", "word_b"]),
        (["a red frog!", "A red frog?"], ["word_a_red_frog", "word_A_red_frog"]),
        (["猫", "犬", ""], ["word_1", "word_2", "word_3"]),
        (["-1", "1", "0.5"], ["word_minus_1", "word_1", "word_0_5"]),
        (["x" * 40 + "1", "x" * 40 + "2"], [f"word_{'x' * 32}", f"word_{'x' * 32}_2"]),
    ],
)
def test_names_are_made_of_the_values_and_never_clash(values: list[str], names: list[str]) -> None:
    spec, _ = swept(TEXTS, {"word": values})
    assert list(spec.params) == ["word_a", "times", *names]
    assert list(spec.steps)[1:] == [f"{step}__{name}" for step in ("said", "said_again") for name in names]
    assert spec.steps[f"said_again__{names[0]}"].keys == {"text": f"<${{said__{names[0]}}}> ${{{names[0]}}}"}


def test_only_names_in_references_are_changed_and_not_words_that_look_like_them() -> None:
    spec, _ = swept(TEXTS, {"times": [2, 3]})
    assert spec.steps["said__times_2"].keys == {"text": "${word}, ${word__word_b} and said", "times": "${times_2}"}
    assert spec.steps["said_again__times_3"].keys == {"text": "<${said__times_3}> ${word}"}


def test_values_fill_texts_and_wires_between_texts(run: Any) -> None:
    execution, _, grids = run(TEXTS, {"word": ["x", "y"], "times": [1, 2]})
    found = {name: next(execution.values(name, "output"))[2] for name in execution.graph.steps if name.startswith("said_a")}
    assert found == {
        "said_again__word_x__times_1": Text("<x, taken and said> x"),
        "said_again__word_x__times_2": Text("<x, taken and saidx, taken and said> x"),
        "said_again__word_y__times_1": Text("<y, taken and said> y"),
        "said_again__word_y__times_2": Text("<y, taken and saidy, taken and said> y"),
    }
    assert grids == [], "a text is no picture"


# --- what is wrong is said ---


def test_wrong_sweeps_are_refused_all_at_once() -> None:
    assert errors(PHOTOS, {"ammount": [1], "amount": [1, 300, "x"], "add": [1, 7], "photos": "a.txt"}, unused=2) == [
        'unknown param "ammount"; did you mean "amount"?',
        'param "amount": expected a value ≤ 200, got 300',
        'param "amount": expected float, got str "x"',
        'param "add": expected one of 0, 1, 2, 3, got 7',
        'param "photos": a sweep takes a list of values, got "a.txt"',
    ]


@pytest.mark.parametrize(
    ("sweep", "params", "message"),
    [
        ({"amount": []}, {}, 'param "amount": a sweep takes at least one value, got none'),
        ({"amount": 3}, {}, 'param "amount": a sweep takes a list of values, got 3'),
        ({"amount": [1, 2, 1.0, 1]}, {}, 'param "amount": the value 1 stands in the sweep twice'),
        ({"amount": [1]}, {"amount": 2}, 'param "amount": it is set to 2 and swept; do one of the two'),
        ({"unused": [1, 2]}, {}, 'param "unused": no step uses ${unused}, so nothing would differ'),
        ({"amount": range(101), "photos": map(str, range(100))}, {}, "a sweep of 10100 combinations; expected at most 10000"),
    ],
)
def test_a_wrong_sweep_is_refused(sweep: dict[str, Any], params: dict[str, Any], message: str) -> None:
    assert errors(PHOTOS, sweep, **params) == [message]


def test_what_a_node_refuses_is_said_with_the_place_in_the_file_and_the_copy() -> None:
    text = "name: x\nparams: {levels: 1}\nsteps:\n  a: {node: Say, text: a}\n  b: {node: Say, text: a, times: \"${levels}\"}\n"
    assert errors(text, {"levels": [1, 2.5]}) == ['param "levels": expected int, got float 2.5']
    assert errors(text.replace("levels: 1", "levels: ~"), {"levels": [2, "b", 1]}) == [
        '<text>:5:27: step "b__levels_b": times: expected a valid integer, got "b"',
    ]
    assert errors(text.replace("node: Say, text: a}", "node: Sai, text: a}"), {"levels": [1, 2]}) == [
        '<text>:4:7: step "a": unknown node "Sai"; did you mean "Say"?',
    ], "once, and not for each copy"


# --- the run ---


def test_what_combinations_share_runs_once(run: Any, photos: Path) -> None:
    execution, *_ = run(PHOTOS, {"amount": [0, 5], "add": [1, 2, 3]})
    assert toys.calls.count("Grey") == 3
    assert toys.calls.count("Invert") == 3 + 3 * 3, "once for each picture, and once for each of the three values"
    assert toys.calls.count("BrightSpot") == 2 * 3
    execution, *_ = run(PHOTOS, {"amount": [0, 5, 6], "add": [1, 2, 3]})
    assert toys.calls == ["BrightSpot"] * 3, "one more value costs what it alone needs"


def test_only_and_forced_steps_are_named_as_they_are_written(run: Any) -> None:
    sweep = {"amount": [0, 5]}
    execution, _, grids = run(PHOTOS, sweep, only=["lighter"])
    assert list(states(execution)) == ["photo", "base", "lighter__amount_0", "lighter__amount_5"]
    assert {grid["output"] for grid in grids} == {"lighter"}
    execution, *_ = run(PHOTOS, sweep, only=["lighter__amount_5"], force=["lighter"])
    assert states(execution) == {"photo": "3 cached", "base": "3 cached", "lighter__amount_5": "3 ran"}


def test_a_plan_says_what_a_sweep_would_run(run: Any, store: Store) -> None:
    run(PHOTOS, {"amount": [0, 5]})
    planned = Pipeline.from_yaml(PHOTOS).plan(sweep={"amount": [0, 6]}, store=store.folder, only=["lighter"])
    assert {step.name: dict(step.states()) for step in planned} == {
        "photo": {"cached": 3}, "base": {"cached": 3}, "lighter__amount_0": {"cached": 3}, "lighter__amount_6": {"run": 3},
    }


def test_a_folder_that_a_sweep_names_may_lie_anywhere(
    tmp_path: Path, photos: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    (tmp_path / "below" / "p.yaml").write_text(PHOTOS)
    planned = Pipeline.from_yaml("p.yaml").plan(sweep={"photos": [f"{photos}/a.txt", f"{photos}/b.txt"]}, store=store.folder)
    assert [len(step.calls) for step in planned if step.name.startswith("photo")] == [1, 1]


def test_a_flow_of_a_sweep_has_no_parameters_for_what_is_swept(recorded: None) -> None:
    flow = Pipeline.from_yaml(PHOTOS).flow(sweep={"amount": [1, 2]})
    assert list(flow.parameters.properties) == ["photos", "add", "unused"]


# --- the grids ---


COLOURS = """
name: colours
params: {red: 0, green: 0, blue: 0}
steps:
  plain: {node: Paint, red: "${red}", green: "${green}", blue: "${blue}"}
outputs: [plain]
"""


def place(sheet: NDArray[np.uint8], *colour: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all pixels of a colour."""
    ys, xs = np.nonzero((sheet == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_the_first_param_makes_columns_the_second_rows_and_a_third_sheets(run: Any, tmp_path: Path) -> None:
    _, _, (grid,) = run(COLOURS, {"green": np.array([50, 100, 150]), "red": (200, 150), "blue": iter([7, 90])})
    assert grid == {"id": "plain", "output": "plain", "path": str(tmp_path / "run" / "grid" / "plain" / "plain.png")}
    sheet = pixels(grid["path"])
    at = {
        (blue, red, green): place(sheet, red, green, blue) for blue in (7, 90) for red in (200, 150) for green in (50, 100, 150)
    }
    assert {(right - left, bottom - top) for left, top, right, bottom in at.values()} == {(20, 20)}
    for blue in (7, 90):
        for red in (200, 150):
            lefts = [at[blue, red, green][0] for green in (50, 100, 150)]
            assert lefts == sorted(lefts)
            assert len({at[blue, red, green][1] for green in (50, 100, 150)}) == 1, "one row"
        assert at[blue, 200, 50][0] == at[blue, 150, 50][0], "one column"
    tops = [at[blue, red, 50][1] for blue in (7, 90) for red in (200, 150)]
    assert tops == sorted(tops)


def test_one_swept_param_makes_one_row(run: Any) -> None:
    _, _, (grid,) = run(COLOURS, {"red": [200, 150]})
    sheet = pixels(grid["path"])
    (left, top, right, bottom), second = place(sheet, 200, 0, 0), place(sheet, 150, 0, 0)
    assert (second[1], second[3]) == (top, bottom) and second[0] > right
    assert (sheet[top:bottom, :left] == 255).all(), "no labels of rows"


Drawn = list[tuple[Sequence[str], Sequence[str], Sequence[Sheet]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What was to be drawn: labels of columns, labels of rows, sheets."""
    found: Drawn = []

    def note(columns: Sequence[str], rows: Sequence[str], sheets: Sequence[Sheet]) -> Image:
        found.append((columns, rows, sheets))
        return Image(np.zeros((1, 1, 1), np.uint8))

    monkeypatch.setattr("flows.grids.grid", note)
    return found


def cells(*sheets: Sheet) -> list[list[list[int | str]]]:
    """The first value of each picture, or the words in its place."""
    return [[[c if isinstance(c, str) else int(c.pixels[0, 0, 0]) for c in row] for row in sheet.rows] for sheet in sheets]


FUSSY = """
name: fussy
params: {amount: 0.0}
steps:
  photo: {node: Grey, path: "photos/**"}
  added: {node: Add, image: photo, amount: "${amount}"}
  fussy: {node: Fussy, image: added}
  rows: {node: Rows, image: fussy}
  files: {node: Save, image: fussy}
outputs: [rows, added]
"""


def test_one_bad_combination_fails_alone_and_its_cell_says_so(run: Any, photos: Path, tmp_path: Path, drawn: Drawn) -> None:
    (photos / "deep").mkdir()
    (photos / "deep" / "c.txt").write_text("60 60\n")
    (photos / "c.txt").unlink()
    execution, _, grids = run(FUSSY, {"amount": [1, 3]})
    assert states(execution)["fussy__amount_1"] == "3 ran"
    assert states(execution)["fussy__amount_3"] == "2 ran, 1 failed"
    assert [(failure.step, failure.id) for failure in execution.result.failures] == [("fussy__amount_3", "a")]
    found = {f"{grid['output']} {grid['id']}": cells(*sheets) for grid, (*_, sheets) in zip(grids, drawn, strict=True)}
    assert found == {
        "rows a/0": [[[11, "failed"]]], "rows a/1": [[[13, "failed"]]], "rows b/0": [[[21, 23]]], "rows b/1": [[[23, 25]]],
        "rows deep/c/0": [[[61, 63]]],
        "added a": [[[11, 13]]], "added b": [[[21, 23]]], "added deep/c": [[[61, 63]]],
        "fussy a": [[[11, "failed"]]], "fussy b": [[[21, 23]]], "fussy deep/c": [[[61, 63]]],
    }
    assert (tmp_path / "run" / "grid" / "fussy" / "deep" / "c.png").is_file()


def test_a_failure_of_what_all_elements_rest_on_fails_them_all(run: Any, drawn: Drawn) -> None:
    text = COLOURS.replace("outputs: [plain]", "  fussy: {node: Fussy, image: plain}\n  rows: {node: Rows, image: fussy}\n"
                           "outputs: [plain, fussy, rows]")
    _, _, grids = run(text, {"red": [12, 13], "green": [1, 2]})
    assert [grid["id"] for grid in grids[:3]] == ["plain", "fussy", "0"]
    assert [cells(*sheets) for *_, sheets in drawn[:3]] == [
        [[[12, 13], [12, 13]]], [[[12, "failed"], [12, "failed"]]], [[[12, "failed"], [12, "failed"]]],
    ]


def test_labels_say_the_param_and_its_value(run: Any, drawn: Drawn) -> None:
    text = COLOURS.replace("params: {", "params: {word: a, size: 0.5, on: true, extra: ~, ").replace(
        "outputs: [plain]",
        '  said: {node: Say, text: "${word}${on}"}\n  again: {node: Say, text: "${said} ${size} ${extra}"}\n'
        '  both: {node: Add, image: plain, amount: 1}\n'
        '  named: {node: Caption, image: both, text: "${again}"}\noutputs: [both, named]',
    )
    words, extras = ["a frog", "Frösche", "猫", ""], [None, [1, "b"]]
    run(text, {"word": words, "size": [0.1 + 0.2, 2.0], "on": [True, False], "extra": extras})
    ((columns, rows, sheets),) = drawn
    assert columns == ["word a frog", "word Frosche", "word no. 3", 'word ""']
    assert rows == ["size 0.3", "size 2"]
    assert [sheet.title for sheet in sheets] == [
        "on true, extra null", "on true, extra 1, b", "on false, extra null", "on false, extra 1, b",
    ]


def test_an_element_that_a_combination_does_not_have_is_no_failure(run: Any, photos: Path, drawn: Drawn) -> None:
    text = """
name: cuts
params: {threshold: 200}
steps:
  photo: {node: Grey, path: "photos/a.txt"}
  spot: {node: BrightSpot, image: photo, threshold: "${threshold}"}
  cut: {node: Crop, image: photo, boxes: spot}
outputs: [cut]
"""
    execution, _, grids = run(text, {"threshold": [200, 254]})
    assert [grid["id"] for grid in grids] == ["a/0"]
    assert execution.result.failures == []
    assert cells(*drawn[0][2]) == [[[250, "no picture"]]]


def test_swept_pictures_stand_side_by_side(run: Any, tmp_path: Path) -> None:
    text = PHOTOS.replace("outputs: [lighter, other, cut]", "outputs: [photo, base]")
    _, _, grids = run(text, {"photos": ["photos/c.txt", "photos/a.txt"]})
    assert [(grid["output"], grid["id"]) for grid in grids] == [("photo", "0"), ("base", "0")]
    sheet = pixels(grids[0]["path"])
    assert place(sheet, 30, 30, 30)[0] < place(sheet, 10, 10, 10)[0]


def test_masks_are_shown_as_their_union(run: Any, drawn: Drawn) -> None:
    text = """
name: bright
params: {threshold: 1}
steps:
  photo: {node: Grey, path: "photos/b.txt"}
  bright: {node: Bright, image: photo, threshold: "${threshold}"}
outputs: [bright]
"""
    run(text, {"threshold": [10, 25]})
    assert cells(*drawn[0][2]) == [[[255, 0]]]
