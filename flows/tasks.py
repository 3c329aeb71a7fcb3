"""A graph as a Prefect flow: one task run for each step and window, in state `Cached` where the store had it all."""

from __future__ import annotations

import os

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

from collections.abc import Callable
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.execute import Execution
from flows.graph import Bound
from flows.results import Result, WindowDone


def run_in_flow(
    execution: Execution, report: Callable[[Result], dict[str, Any]], markdown: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Run a graph inside the current flow; gives what `report` made of the result."""
    ended: dict[str, State[Any]] = {}

    def around(step: Bound, number: int, work: Callable[[], WindowDone]) -> None:
        raised: list[BaseException] = []

        def body() -> State[Any]:
            try:
                done = work()
            except BaseException as error:
                raised.append(error)
                return Failed(message=str(error))
            counts = f"{done.ran} ran, {done.cached} cached, {done.failed} failed, {done.skipped} skipped"
            if done.failed and not done.ran + done.cached:
                return Failed(message=counts)
            name = "Some failed" if done.failed else "Cached" if done.cached and not done.ran else "Completed"
            return Completed(name=name, message=counts)

        # Prefect would not start a task below a failed one; ours tell each element that it is skipped.
        above = [ended[wire.step] for wire in step.wires.values() if wire.step in ended and ended[wire.step].is_completed()]
        as_task = task(name=step.name, cache_policy=NO_CACHE, persist_result=False, task_run_name=f"{step.name}-{number}")
        ended[step.name] = as_task(body)(return_state=True, wait_for=above)
        if raised:
            raise raised[0]

    found = report(execution.run(around))
    create_markdown_artifact(markdown(found), key="photoloom-report")
    return found


def as_flow(name: str, body: Callable[..., dict[str, Any]]) -> Any:
    """A Prefect flow of that name around a function of its params."""
    return flow(name=name, persist_result=False, validate_parameters=True)(body)
