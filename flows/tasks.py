"""A graph as a Prefect flow: one task run for each step and window, in state `Cached` where the store had it all."""

from __future__ import annotations

import logging
import os
import time

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.execute import Execution
from flows.graph import Bound
from flows.results import Result, WindowDone

PROGRESS_EVERY = 5.0
"""Seconds between two updates of a run's progress artifact; a shorter run has none."""

logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it would warn at exit that it still sends what it has


@task(task_run_name="{step}-{number}", cache_policy=NO_CACHE, persist_result=False)
def window(step: str, number: int, work: Callable[[], State[Any]]) -> State[Any]:
    """One window of one step. One task serves all: making one reads its source anew, about a millisecond."""
    return work()


def run_in_flow(
    execution: Execution, report: Callable[[Result], dict[str, Any]], markdown: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Run a graph inside the current flow; gives what `report` made of the result."""
    ended: dict[str, State[Any]] = {}
    progress = _Progress(execution)

    def around(step: Bound, number: int, work: Callable[[], WindowDone]) -> None:
        raised: list[BaseException] = []

        def body() -> State[Any]:
            try:
                return _state(work())
            except BaseException as error:
                raised.append(error)
                return Failed(message=str(error))

        # Prefect would not start a task below a failed one; ours tell each element that it is skipped.
        above = [ended[wire.step] for wire in step.wires.values() if wire.step in ended and ended[wire.step].is_completed()]
        with execution.clock("Prefect"):
            ended[step.name] = window(step.name, number, body, return_state=True, wait_for=above)
        if raised:
            raise raised[0]
        with execution.clock("Prefect"):
            progress.window_done()

    found = report(execution.run(around))
    create_markdown_artifact(markdown(found), key="photoloom-report")
    return found


def _state(done: WindowDone) -> State[Any]:
    counts = f"{done.ran} ran, {done.cached} cached, {done.failed} failed, {done.skipped} skipped"
    if done.failed and not done.ran + done.cached:
        return Failed(message=counts)
    name = "Some failed" if done.failed else "Cached" if done.cached and not done.ran else "Completed"
    return Completed(name=name, message=counts)


class _Progress:
    """The share of elements that are through, as an artifact on the run's page. Lists that a step has yet to make are left
    out: nobody knows how long they are."""

    def __init__(self, execution: Execution) -> None:
        count = execution.planner.elements.count
        self._results = execution.result.steps
        self._totals = {
            name: count(step.over, ()) or 0 if step.over else 1
            for name, step in execution.graph.steps.items() if name in self._results and len(step.over) < 2
        }
        self._due = time.monotonic() + PROGRESS_EVERY
        self._artifact: UUID | None = None

    def _share(self) -> float:
        done = sum(self._results[name].through for name in self._totals)
        return 100.0 * min(done / max(1, sum(self._totals.values())), 1.0)

    def window_done(self) -> None:
        share = self._share()
        if time.monotonic() < self._due and not (share == 100.0 and self._artifact):
            return
        if self._artifact:
            update_progress_artifact(self._artifact, share)
        else:
            self._artifact = cast(UUID, create_progress_artifact(share, key="photoloom-progress"))
        self._due = time.monotonic() + PROGRESS_EVERY


def as_flow(name: str, body: Callable[..., dict[str, Any]]) -> Any:
    """A Prefect flow of that name around a function of its params."""
    return flow(name=name, persist_result=False, validate_parameters=True)(body)
