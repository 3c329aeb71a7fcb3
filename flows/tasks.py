"""A graph as a Prefect flow: one task run for each step and window, in state `Cached` where the store had it all."""

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
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed

from flows.execute import Execution
from flows.graph import Bound
from flows.own import import_nodes
from flows.results import Result, WindowDone
from flows.spec import read
from nodes.errors import UserError

PROGRESS_EVERY = 5.0
"""Seconds between two updates of a run's progress artifact; a shorter run has none."""
STATES = ("ran", "cached", "failed", "skipped")

# What they tell of a server that is away: each event in full, although all are sent once it is back.
for _quiet in ("EventsWorker", "prefect.events.clients", "prefect._internal.concurrency"):
    logging.getLogger(_quiet).disabled = True


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log is to be seen: what ends a run because of its user or the server is said in a line, without a traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError | HTTPError))


logging.getLogger("prefect.flow_runs").addFilter(_is_news)


@flow(name="photoloom", persist_result=False)
def run_pipeline(
    pipeline: str,
    params: dict[str, Any] | None = None,
    models: str | None = None,
    store: str = "outputs/store",
    out: str = "outputs",
    nodes: list[str] | None = None,
    allow: list[str] | None = None,
) -> State[dict[str, Any]]:
    """Run a pipeline's file: what deployments schedule, and a part for flows of one's own. Gives the run's summary.

    A scheduled run that another one has covered ends at once, in state `Skipped`.

    Args:
        pipeline: The pipeline's YAML file.
        params: The pipeline's params.
        models: Use this model set.
        store: The store of results.
        out: The folder for results.
        nodes: Python files with node classes of your own.
        allow: Further folders that the pipeline's own paths may lead to.
    """
    from flows.pipeline import Pipeline

    if other := _covered_by():
        return Completed(name="Skipped", message=f"Skipped: {other} began after this run was due, and took all that was there")
    try:
        for file in nodes or ():
            import_nodes(Path(file))
        return Pipeline.from_spec(read(Path(pipeline))).run_in_flow(
            params or {}, models=models, store=store, out=out, allow=[Path(folder) for folder in allow or ()]
        )
    except UserError as error:
        return Failed(message=str(error), data=error)


def as_flow(name: str, body: Callable[..., State[dict[str, Any]]]) -> Any:
    """A Prefect flow of that name around a function of its params."""
    return flow(name=name, persist_result=False, validate_parameters=True)(body)


@task(task_run_name="{step}-{number}", cache_policy=NO_CACHE, persist_result=False)
def window(step: str, number: int, work: Callable[[], State[Any]]) -> State[Any]:
    """One window of one step. One task serves all: making one reads its source anew, about a millisecond."""
    return work()


def run_in_flow(
    execution: Execution, run: str, report: Callable[[Result], dict[str, Any]], markdown: Callable[[dict[str, Any]], str],
    shown: dict[str, Any] | None = None,
) -> State[dict[str, Any]]:
    """Run a graph inside the current flow, which takes the name of the run. Gives the state to end it in, which holds what
    `report` made of the result. `shown` are set as the run's parameters: for those of a flow Prefect would import FastAPI,
    a tenth of a second before the first step."""
    ended: dict[str, State[Any]] = {}
    progress = _Progress(execution)
    _name(run, execution.graph.name, shown)

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

    found = report(execution.run(around))
    _show(found, markdown(found))
    return _ended(found)


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


# --- what the run's page shows ---


def _here() -> tuple[FlowRun, SyncPrefectClient]:
    """The current flow run, and its connection to the server."""
    context = FlowRunContext.get()
    assert context and context.flow_run
    return context.flow_run, cast(SyncPrefectClient, context.client)


def _name(run: str, pipeline: str, shown: dict[str, Any] | None) -> None:
    """The flow run is named as the folder of its results, and tagged with the pipeline."""
    current, client = _here()
    client.update_flow_run(current.id, parameters=shown, name=run, tags=sorted({*current.tags, pipeline}))


def _show(found: dict[str, Any], markdown: str) -> None:
    rows = [
        {"step": name, **{each: step[each] for each in (*STATES, "seconds")}, "why": "; ".join(step["reasons"])}
        for name, step in found["steps"].items()
    ]
    create_table_artifact(rows, key="photoloom-steps")
    report = Path(found["report"]).resolve()
    create_markdown_artifact(f"{markdown}\nThis report: [{found['report']}]({report.as_uri()})\n", key="photoloom-report")


def _ended(found: dict[str, Any]) -> State[dict[str, Any]]:
    counts = {state: sum(step[state] for step in found["steps"].values()) for state in STATES}
    done = "Cached" if counts["cached"] and not counts["ran"] else "Completed"
    name = {"done": done, "failed": "Some failed", "stopped": "Stopped"}[found["status"]]
    message = ", ".join(f"{count} {state}" for state, count in counts.items())
    return Completed(name=name, message=f"{message}; report: {found['report']}", data=found)


def _covered_by() -> str:
    """The run that began when this scheduled one was due already, and so took all that this one would: what came due while
    nobody served runs once."""
    current, client = _here()
    if not (current.auto_scheduled and current.deployment_id and current.expected_start_time):
        return ""
    others = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[current.deployment_id]),
            start_time=FlowRunFilterStartTime(after_=current.expected_start_time),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.COMPLETED])),
        ),
        sort=FlowRunSort.START_TIME_DESC,
    )
    covering = (
        run.name for run in others
        if run.id != current.id and run.state_name != "Skipped" and run.parameters == current.parameters
    )
    return next(covering, "")


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
