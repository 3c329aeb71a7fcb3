"""A graph inside a Prefect flow: one task run for each step and window, in state `Cached` where the store had it all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from httpx import HTTPError
from prefect import flow, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed

from flows.execute import Execution
from flows.graph import Bound
from flows.results import Result, WindowDone
from nodes.errors import UserError

PROGRESS_EVERY = 5.0
"""Seconds between two updates of a run's progress artifact; a shorter run has none."""
STATES = ("ran", "cached", "failed", "skipped")

# What they tell of a server that is away: each event in full, although all are sent once it is back.
for _quiet in ("EventsWorker", "prefect.events.clients", "prefect._internal.concurrency"):
    logging.getLogger(_quiet).disabled = True


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log is to be seen. What ends a run because of its user or the server is said in a line, without a traceback;
    how a window ended is its state, and told by whoever watches the run; whoever pressed Ctrl-C knows."""
    told = record.exc_info and isinstance(record.exc_info[1], UserError | HTTPError)
    return not (told or getattr(record, "task_name", "") == "window" or "aborted by an interrupt" in record.getMessage())


for _runs in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_runs).addFilter(_is_news)


def as_flow(name: str, body: Callable[..., State[dict[str, Any]]]) -> Any:
    """A Prefect flow of that name around a function of its params."""
    return flow(name=name, persist_result=False, validate_parameters=True)(body)


@task(task_run_name="{step}-{number}", cache_policy=NO_CACHE, persist_result=False)
def window(step: str, number: int, work: Callable[[], State[Any]]) -> State[Any]:
    """One window of one step. One task serves all: making one reads its source anew, about a millisecond."""
    return work()


def run_graph(execution: Execution) -> Result:
    """Run a graph inside the current flow, a task run for each of its windows."""
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
        with execution.clock("Prefect"), _termination_shown():
            ended[step.name] = window(step.name, number, body, return_state=True, wait_for=above)
        if raised:
            raise raised[0]
        with execution.clock("Prefect"):
            progress.window_done()

    return execution.run(around)


@contextmanager
def _termination_shown() -> Iterator[None]:
    """Told to end while it makes a task run, Prefect raises a `ValueError` on top of the signal: the run would be one that
    failed, with a traceback, in place of one that was ended."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__context__, TerminationSignal):
            raise error.__context__ from None
        raise


def _state(done: WindowDone) -> State[Any]:
    counts = f"{done.ran} ran, {done.cached} cached, {done.failed} failed, {done.skipped} skipped"
    if done.failed and not done.ran + done.cached:
        return Failed(message=counts)
    name = "Some failed" if done.failed else "Cached" if done.cached and not done.ran else "Completed"
    return Completed(name=name, message=counts)


# --- the run's page ---


def here() -> tuple[FlowRun, SyncPrefectClient]:
    """The current flow run, and its connection to the server."""
    context = FlowRunContext.get()
    assert context and context.flow_run
    return context.flow_run, cast(SyncPrefectClient, context.client)


def name_run(run: str, pipeline: str, shown: dict[str, Any] | None) -> None:
    """Name the current flow run as the folder of its results, and tag it with the pipeline. `shown` are set as its
    parameters: for those of a flow Prefect would import FastAPI, a tenth of a second before the first step."""
    current, client = here()
    client.update_flow_run(current.id, parameters=shown, name=run, tags=sorted({*current.tags, pipeline}))


def end_run(found: dict[str, Any], markdown: str) -> State[dict[str, Any]]:
    """Show a run's summary on its page, and give the state to end it in, which holds it."""
    rows = [
        {"step": name, **{each: step[each] for each in (*STATES, "seconds")}, "why": "; ".join(step["reasons"])}
        for name, step in found["steps"].items()
    ]
    create_table_artifact(rows, key="photoloom-steps")
    report = Path(found["report"]).resolve()
    create_markdown_artifact(f"{markdown}\nThis report: [{found['report']}]({report.as_uri()})\n", key="photoloom-report")
    counts = {state: sum(step[state] for step in found["steps"].values()) for state in STATES}
    done = "Cached" if counts["cached"] and not counts["ran"] else "Completed"
    name = {"done": done, "failed": "Some failed", "stopped": "Stopped"}[found["status"]]
    message = ", ".join(f"{count} {state}" for state, count in counts.items())
    return Completed(name=name, message=f"{message}; report: {found['report']}", data=found)


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
        # A server that is away is not waited for while there is work; the next update tells all.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), suppress(HTTPError):
            if self._artifact:
                update_progress_artifact(self._artifact, share)
            else:
                self._artifact = cast(UUID, create_progress_artifact(share, key="photoloom-progress"))
        self._due = time.monotonic() + PROGRESS_EVERY
