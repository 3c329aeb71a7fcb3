"""Large graphs: nothing is limited by depth, and the work grows with the number of steps and not with its square."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from flows.graph import mermaid, order
from flows.pipeline import Pipeline
from flows.plan import Planner, make_plan
from flows.spec import parse
from flows.store import Manifest, Store
from nodes.errors import PipelineError
from tests.flows.conftest import Run
from tests.toys import Echo


def text(shape: str, count: int) -> str:
    """A pipeline of `count` steps: a chain, a fan of independent steps, or layers of ten with two inputs each."""
    lines = [f"name: {shape}", "steps:"]
    for index in range(count):
        above = {"chain": [index - 1], "fan": [], "layers": [index - 10, index - index % 10 - 10 + (index + 3) % 10]}[shape]
        wires = "".join(f", {port}: s{step}" for port, step in zip(("left", "right"), above, strict=False) if step >= 0)
        lines.append(f"  s{index}: {{node: Echo, text: n{index}{wires}}}")
    return "\n".join([*lines, f"outputs: [s{count - 1}]", ""])


class Counted(Store):
    """A store that counts how often a key is looked up."""

    asked = 0

    def look_up(self, key: str) -> Manifest | None:
        self.asked += 1
        return super().look_up(key)


@contextmanager
def calls_counted() -> Iterator[list[int]]:
    """Counts the calls of functions, in Python and in C."""
    count = [0]

    def called(frame: FrameType, event: str, argument: Any) -> None:
        count[0] += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        yield count
    finally:
        sys.setprofile(None)


def calls(work: Callable[[], object]) -> int:
    with calls_counted() as count:
        work()
    return count[0]


@pytest.mark.parametrize("shape", ["chain", "fan", "layers"])
def test_ten_thousand_steps_check_and_plan(shape: str, store: Store) -> None:
    pipeline = Pipeline.from_yaml(text(shape, 10_000))
    graph = pipeline.graph()
    assert list(graph.steps) == [f"s{index}" for index in range(10_000)]
    planned = make_plan(Planner(graph, store), set(graph.steps))
    first = {"chain": 1, "fan": 10_000, "layers": 10}[shape]
    assert [call.state for step in planned for call in step.calls] == ["run"] * first + ["waits"] * (10_000 - first)
    wires = sum(len(step.wires) for step in graph)
    assert mermaid(graph).count("\n") == 1 + 10_000 + wires


def test_a_chain_of_steps_in_python_may_be_deeper_than_python_nests_calls() -> None:
    last = Echo(text="n0").step("s0")
    for index in range(1, depth := 2 * sys.getrecursionlimit()):
        last = Echo(text=f"n{index}").step(f"s{index}", left=last)
    made = Pipeline("chain", outputs=[last])
    assert made.spec == parse(text("chain", depth))
    assert parse(made.to_yaml()) == made.spec


def test_a_cycle_of_ten_thousand_steps_is_told_as_a_path() -> None:
    edges = {f"s{index}": [f"s{(index - 1) % 10_000}"] for index in range(10_000)}
    assert order(edges) == ([], [*edges, "s0"])


@pytest.mark.parametrize("shape", ["chain", "fan", "layers"])
def test_a_plan_looks_each_step_up_once(shape: str, run: Run, store: Store) -> None:
    execution = run(text(shape, 100))
    counted = Counted(store.folder)
    planned = make_plan(Planner(execution.graph, counted), set(execution.graph.steps))
    assert [call.state for step in planned for call in step.calls] == ["cached"] * 100
    assert counted.asked == 100


@pytest.mark.parametrize(
    ("shape", "fault", "written"),
    [("chain", "", ""), ("fan", "", ""), ("layers", "", ""),
     ("chain", "left: s", "left: z_s"), ("chain", "left: s", "left: s.s"), ("chain", "text:", "txt:"), ("fan", "Echo", "Ecko"),
     ("fan", "Echo, text: n", "Invert, add: "), ("chain", "Echo, text: n0", "Invert, add: 0")],
)  # fmt: skip
def test_the_work_grows_with_the_number_of_steps(
    shape: str, fault: str, written: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the steps cost four times the calls, for right pipelines and for those with a fault in every step."""
    monkeypatch.setattr("flows.check.HINTED_NAMES", 2_000)

    def work(count: int) -> int:
        yaml = text(shape, count).replace(fault, written) if fault else text(shape, count)

        def checked_and_planned() -> None:
            try:
                graph = Pipeline.from_spec(parse(yaml)).graph()
            except PipelineError:
                assert fault
            else:
                assert not fault
                make_plan(Planner(graph, store), set(graph.steps))

        return calls(checked_and_planned)

    work(10)  # what is made once for all is made now
    few, many = work(250), work(1_000)
    assert many < 4.4 * few, (few, many)
