"""A folder of tiny pictures, and a run of a graph over it that tells what became of each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.plan import Planner, make_plan
from flows.store import Store
from tests import toys


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of 2×2 grey pixels: a, b, c."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, value in (("a", 10), ("b", 20), ("c", 30)):
        (folder / f"{name}.txt").write_text(f"{value} {value + 1}\n{value + 2} 250\n")
    return folder


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in a pipeline's text must lie under the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


Run = Callable[..., Execution]


@pytest.fixture
def run(store: Store) -> Run:
    """Run a pipeline's text against the store; `toys.calls` then holds the calls that were made."""

    def go(text: str, params: Mapping[str, Any] | None = None, **options: Any) -> Execution:
        toys.calls.clear()
        execution = Execution(Pipeline.from_yaml(text).graph(params), store, **options)
        execution.run()
        return execution

    return go


def states(execution: Execution) -> dict[str, str]:
    """For each step its states in words: `3 ran`, `2 cached, 1 failed`."""
    found = {}
    for name, step in execution.result.steps.items():
        counts = {s: getattr(step, s) for s in ("ran", "cached", "failed", "skipped")}
        found[name] = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    return found


def reasons(text: str, store: Store, **params: object) -> dict[str, list[str]]:
    """What a plan says of each step's elements."""
    graph = Pipeline.from_yaml(text).graph(params)
    return {
        step.name: [f"{call.id}: {call.state} {call.reason}".strip() for call in step.calls]
        for step in make_plan(Planner(graph, store), set(graph.steps))
    }
