"""Lists whose length is known beforehand: each thing is an element, made, kept, failed and found again alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.report import Writer
from flows.store import Store
from nodes import Image, Node
from nodes.errors import NodeDefinitionError, PipelineError
from tests import toys
from tests.flows.conftest import Run, reasons, states
from tests.flows.test_execute import values

CARDS = """
name: cards
params: {count: 6, first: 20, words: "", light: 0}
steps:
  cards: {node: Cards, count: "${count}", first: "${first}", words: "${words}"}
  negative: {node: Invert, image: cards, add: "${light}"}
  all: {node: Stack, images: negative}
outputs: [cards, negative, all]
"""


def greys(execution: Execution, step: str, output: str = "output") -> list[int]:
    return [int(value.pixels[0, 0, 0]) for value in values(execution, step, output)]


# --- what runs ---


def test_one_more_makes_one_more_and_fewer_make_none(run: Run, store: Store) -> None:
    first = run(CARDS)
    assert states(first) == {"cards": "6 ran", "negative": "6 ran", "all": "1 ran"}
    assert greys(first, "cards") == [20, 21, 22, 23, 24, 25]
    assert reasons(CARDS, store, count=7)["cards"] == [*(f"{n}: cached" for n in range(6)), "6: run new picture"]
    more = run(CARDS, {"count": 7})
    assert states(more) == {"cards": "1 ran, 6 cached", "negative": "1 ran, 6 cached", "all": "1 ran"}
    assert toys.calls == ["Cards×1", "Invert", "Stack"]
    fewer = run(CARDS, {"count": 3})
    assert states(fewer) == {"cards": "3 cached", "negative": "3 cached", "all": "1 ran"}
    assert greys(fewer, "negative") == [235, 234, 233]


def test_the_next_seed_shares_what_the_one_before_made(run: Run) -> None:
    run(CARDS)
    moved = run(CARDS, {"first": 21})
    assert states(moved)["cards"] == "1 ran, 5 cached"
    assert moved.result.steps["cards"].reasons == {"first changed: 25 → 26": 1}
    assert states(run(CARDS, {"first": 23, "count": 1}))["cards"] == "1 cached"


def test_the_reason_told_is_that_of_each_element(run: Run, store: Store) -> None:
    assert reasons(CARDS, store, count=2) == {
        "cards": ["0: run first run", "1: run first run"], "negative": ["0: waits cards", "1: waits cards"],
        "all": [": waits negative"],
    }
    run(CARDS)
    changed = run(CARDS, {"words": "two"})
    assert changed.result.steps["cards"].reasons == {'words changed: "" → "two"': 6}
    assert states(changed)["negative"] == "6 cached", "the same pixels"


def test_a_forced_step_makes_all_of_its_list(run: Run) -> None:
    run(CARDS)
    forced = run(CARDS, force=frozenset({"cards"}))
    assert states(forced) == {"cards": "6 ran", "negative": "6 cached", "all": "1 cached"}
    assert forced.result.steps["cards"].reasons == {"forced": 6}


def test_only_some_steps_run(run: Run) -> None:
    assert states(run(CARDS, only={"cards"})) == {"cards": "6 ran"}


# --- how ---


def test_those_of_different_seeds_go_together_and_are_as_if_alone(run: Run, tmp_path: Path) -> None:
    together = run(CARDS, batch=4)
    assert [call for call in toys.calls if call.startswith("Cards")] == ["Cards×4", "Cards×2"]
    alone = Execution(Pipeline.from_yaml(CARDS).graph(), Store(tmp_path / "other"), batch=1)
    alone.run()
    assert values(together, "cards") == values(alone, "cards")
    assert [call.key for call in together.walk("cards")] == [call.key for call in alone.walk("cards")]
    assert toys.Cards(first=20, count=6).run() == values(together, "cards")


def test_a_window_is_through_before_more_is_made(run: Run) -> None:
    run(CARDS, {"count": 5}, window=2)
    assert toys.calls == ["Cards×2", "Invert", "Invert"] * 2 + ["Cards×1", "Invert", "Stack"]


def test_windows_that_are_through_are_let_go(store: Store) -> None:
    held: list[int] = []

    class Watched(Execution):
        def _round(self, *given: Any) -> None:
            super()._round(*given)
            held.append(sum(len(values) for values in self.planner.elements._values.values()))

    text = 'name: x\nsteps:\n  cards: {node: Cards, count: 20, first: 20}\n  a: {node: Invert, image: cards}\n'
    Watched(Pipeline.from_yaml(text + "  b: {node: Invert, image: a}\n").graph(), store, window=2).run()
    assert held == [4] * 10


def test_files_are_named_by_the_place_in_the_list(tmp_path: Path, store: Store) -> None:
    graph = Pipeline.from_yaml(CARDS).graph({"count": 3})
    writer = Writer(graph, tmp_path / "out")
    execution = Execution(graph, store, finished=writer)
    writer.execution = execution
    execution.run()
    written = {step: [Path(each["path"]).name for each in found] for step, found in writer.written().items()}
    assert written == {"cards": ["0.png", "1.png", "2.png"], "negative": ["0.png", "1.png", "2.png"], "all": ["all.png"]}


def test_a_node_of_ones_own_needs_no_batches(run: Run) -> None:
    text = 'name: x\nsteps:\n  dice: {node: Dice, throws: 4, seed: 3}\n  said: {node: Say, text: "it is ${dice.words}"}\n'
    ran = run(text)
    assert states(ran) == {"dice": "4 ran", "said": "4 ran"}
    assert greys(ran, "dice", "faces") == [4, 5, 6, 1]
    assert [text.value for text in values(ran, "said")] == ["it is a 4", "it is a 5", "it is a 6", "it is a 1"]
    assert states(run(text.replace("throws: 4", "throws: 5"))) == {"dice": "1 ran, 4 cached", "said": "1 ran, 4 cached"}


# --- failures ---


def test_one_that_fails_fails_alone_and_what_rests_on_it_is_skipped(run: Run) -> None:
    ran = run(CARDS.replace("Stack", "Tolerant"), {"first": 10}, batch=8)
    assert states(ran) == {"cards": "5 ran, 1 failed", "negative": "5 ran, 1 skipped", "all": "1 ran"}
    assert [(failure.step, failure.id, failure.error) for failure in ran.result.failures] == [
        ("cards", "3", "RuntimeError: thirteen")
    ]
    assert [score.value for score in values(ran, "all")] == [5.0]
    assert greys(ran, "cards") == [10, 11, 12, 14, 15]
    assert states(run(CARDS, {"first": 10})) == {
        "cards": "5 cached, 1 failed", "negative": "5 cached, 1 skipped", "all": "1 skipped"
    }


def test_what_was_made_before_a_run_ended_is_kept(run: Run) -> None:
    stopped = run(CARDS, {"first": 10}, max_failures=0, batch=1)
    assert stopped.result.stopped == "more than 0 failed; the same command goes on with the rest"
    assert states(stopped)["cards"] == "3 ran, 1 failed"
    assert states(run(CARDS, {"first": 10}, batch=1))["cards"] == "2 ran, 3 cached, 1 failed"


def test_what_was_made_before_a_run_was_killed_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: toys.Cards, first: list[int], words: list[str]) -> list[list[Image]]:
        if first == [24]:
            raise KeyboardInterrupt
        return made(self, first, words)

    made = toys.Cards.run_batch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(toys.Cards, "run_batch", killed)
        run(CARDS, batch=1)
    assert states(run(CARDS))["cards"] == "2 ran, 4 cached"


@pytest.mark.parametrize("wrong", [0, 2])
def test_a_node_that_makes_not_the_one_it_was_asked_for_is_told(run: Run, wrong: int) -> None:
    ran = run(f"name: x\nsteps:\n  dice: {{node: Dice, throws: 3, wrong: {wrong}}}\n")
    errors = [failure.error for failure in ran.result.failures]
    assert errors == [f"Dice.run: expected a list of 1 where throws is 1, got {wrong}"] * 3


# --- over pictures, sweeps, checks ---

OVER = """
name: over
params: {count: 2}
steps:
  photo: {node: Grey, path: "photos/*.txt"}
  number: {node: Measure, image: photo}
  cards: {node: Cards, count: "${count}", first: 20, words: "a photo of ${number.words}"}
  negative: {node: Invert, image: cards}
  sheet: {node: Stack, images: negative}
outputs: [negative]
"""


def test_each_picture_has_a_list_of_its_own(photos: Path, run: Run) -> None:
    ran = run(OVER, batch=4)
    assert states(ran) == {
        "photo": "3 ran", "number": "3 ran", "cards": "6 ran", "negative": "2 ran, 4 cached", "sheet": "1 ran, 2 cached"
    }
    assert [(id_, value.info["words"]) for _, id_, value in ran.values("cards", "output")] == [
        ("a/0", "a photo of mean 71"), ("a/1", "a photo of mean 71"), ("b/0", "a photo of mean 78"),
        ("b/1", "a photo of mean 78"), ("c/0", "a photo of mean 86"), ("c/1", "a photo of mean 86"),
    ]
    assert [call for call in toys.calls if call.startswith("Cards")] == ["Cards×4", "Cards×2"], "of several pictures"
    more = run(OVER, {"count": 3}, window=1)
    assert states(more) == {
        "photo": "3 cached", "number": "3 cached", "cards": "3 ran, 6 cached", "negative": "1 ran, 8 cached",
        "sheet": "1 ran, 2 cached",
    }
    assert [value.pixels[:, 0, 0].tolist() for value in values(more, "sheet")] == [[235, 234, 233]] * 3


def test_a_picture_that_fails_leaves_out_its_own_list(photos: Path, run: Run) -> None:
    (photos / "b.txt").write_text("13 1\n")
    ran = run(OVER.replace("  number: {node: Measure, image: photo}", """
  fussy: {node: Fussy, image: photo}
  number: {node: Measure, image: fussy}
"""))
    assert states(ran) == {
        "photo": "3 ran", "fussy": "2 ran, 1 failed", "number": "2 ran, 1 skipped", "cards": "4 ran, 2 skipped",
        "negative": "2 ran, 2 cached, 2 skipped", "sheet": "1 ran, 1 cached, 1 skipped",
    }


def test_a_sweep_over_seeds_shares_what_they_have_in_common_and_goes_step_by_step(store: Store) -> None:
    toys.calls.clear()
    execution, _ = Pipeline.from_yaml(CARDS)._execution(
        {"count": 3}, {"first": [20, 21, 40]}, store=store.folder, batch=8
    )
    execution.run()
    assert states(execution) == {
        "cards__first_20": "3 ran", "cards__first_21": "1 ran, 2 cached", "cards__first_40": "3 ran",
        "negative__first_20": "3 ran", "negative__first_21": "1 ran, 2 cached", "negative__first_40": "3 ran",
        "all__first_20": "1 ran", "all__first_21": "1 ran", "all__first_40": "1 ran",
    }
    assert toys.calls == ["Cards×3", "Cards×1", "Cards×3", *["Invert"] * 7, *["Stack"] * 3], "one node after another"
    assert greys(execution, "negative__first_21") == [234, 233, 232]


def test_a_sweep_over_the_count_makes_each_once(store: Store) -> None:
    execution, _ = Pipeline.from_yaml(CARDS)._execution({}, {"count": [2, 5]}, store=store.folder)
    execution.run()
    assert states(execution)["cards__count_2"] == "2 ran" and states(execution)["cards__count_5"] == "3 ran, 2 cached"
    assert greys(execution, "cards__count_5") == [20, 21, 22, 23, 24]


@pytest.mark.parametrize(("key", "other"), [("count", "first: 20"), ("first", "count: 2")])
def test_what_a_list_is_made_of_cannot_wait_for_a_step(key: str, other: str) -> None:
    text = 'name: x\nsteps:\n  photo: {node: Grey, path: "photos/*.txt"}\n  number: {node: Measure, image: photo}\n'
    with pytest.raises(PipelineError) as error:
        Pipeline.from_yaml(text + f'  cards: {{node: Cards, {other}, {key}: "${{number.mean}}"}}\n')
    assert str(error.value).partition(": ")[2] == (
        f'step "cards": {key}: ${{number.mean}} comes of a step, and count and first must be known before anything runs'
    )


def test_what_is_counted_wrongly_is_said_when_the_class_is_made() -> None:
    with pytest.raises(NodeDefinitionError, match=r"^Bad: counted must name two int params, got count, words$"):

        class Bad(Node):
            counted: ClassVar[tuple[str, ...]] = ("count", "words")
            count: int
            words: str

            def run(self) -> list[Image]:
                return []

    with pytest.raises(NodeDefinitionError, match=r"^Single: what is counted is a list, and its run gives none$"):

        class Single(Node):
            counted: ClassVar[tuple[str, ...]] = ("count", "seed")
            count: int
            seed: int

            def run(self, image: Image) -> Image:
                return image
