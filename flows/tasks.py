"""The one flow that runs a pipeline's file: what deployments schedule, and a part for flows of one's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Completed, Failed
from pydantic import Field

from flows.flow_run import here
from flows.own import import_nodes
from flows.pipeline import Pipeline
from flows.spec import read
from nodes.errors import NoFiles, UserError


@flow(name="photoloom", persist_result=False)
def run_pipeline(
    pipeline: str,
    params: dict[str, Any] | None = None,
    models: str | None = None,
    store: str = "outputs/store",
    out: str = "outputs",
    nodes: list[str] | None = None,
    allow: list[str] | None = None,
    max_failures: Annotated[int, Field(ge=0)] | None = None,
) -> State[dict[str, Any]]:
    """Run a pipeline's file: what deployments schedule, and a part for flows of one's own. Gives the run's summary.

    A scheduled run that another one has covered ends at once, in state `Skipped`; a deployment's that finds no files in a
    folder that is there, in state `Nothing to do`.

    Args:
        pipeline: The pipeline's YAML file.
        params: The pipeline's params.
        models: Use this model set.
        store: The store of results.
        out: The folder for results.
        nodes: Python files with node classes of your own.
        allow: Further folders that the pipeline's own paths may lead to.
        max_failures: Stop when more elements than this have failed.
    """
    tell = _teller()
    tell("began")
    state: State[dict[str, Any]]
    try:
        if other := _covered_by():
            covered = f"Skipped: {other} began after this run was due, and took all that was there"
            state = Completed(name="Skipped", message=covered)
        else:
            for file in nodes or ():
                import_nodes(Path(file))
            state = Pipeline.from_spec(read(Path(pipeline))).run_in_flow(
                params or {}, models=models, store=store, out=out, allow=[Path(folder) for folder in allow or ()],
                max_failures=max_failures,
            )
    except UserError as error:
        nothing = isinstance(error, NoFiles) and here()[0].deployment_id
        state = Completed(name="Nothing to do", message=str(error)) if nothing else Failed(message=str(error), data=error)
    tell(f"{state.name}: {state.message}")
    return state


def _teller() -> Callable[[str], None]:
    """What says how a deployment's run goes where it is served: a line with the deployment's name."""
    current, client = here()
    if not current.deployment_id:
        return lambda text: None
    name = client.read_deployment(current.deployment_id).name
    return lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True)


def _covered_by() -> str:
    """The run that began when this scheduled one was due already, and so took all that this one would: what came due while
    nobody served runs once."""
    current, client = here()
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
