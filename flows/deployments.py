"""Pipelines on a schedule: deployments of the one flow, and the process that serves them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import SCHEDULE_TYPES, construct_schedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL, PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from flows.describe import params_schema
from flows.pipeline import Pipeline
from flows.plan import identified
from flows.reading import Value
from flows.server import address, connected
from flows.store import open_store
from flows.tasks import run_pipeline
from nodes.errors import UserError, nearest

POOL = "photoloom"
"""The work pool of our deployments. A process pool: each scheduled run is a process of its own."""
ENTRYPOINT = "flows.tasks.run_pipeline"
COMMAND = "python3 -P -m prefect.engine"
"""Runs one scheduled run, with the Python of whoever serves. -P: a folder `flows` where it runs must not hide this one."""
RUN_ID = "PREFECT__FLOW_RUN_ID"
"""The variable in the environment of a run's process that names the run."""
LOOK, SWEEP = 2, 30
"""Seconds between two looks for runs that are due, and for runs whose process is gone."""
STARTING = 60
"""Seconds that a run's process may take to appear."""
GRACE = 20
"""Seconds that runs have to end when the serving process ends."""
AGAIN = 5
"""Seconds until serving is tried again after an error."""
SERVER = f"{socket.gethostname()}-{os.getuid()}"
"""The name of whoever serves here. Processes of other users cannot be looked into, so theirs has another."""
UNSAID = "DTSTART:20200101T000000 "
"""What Prefect adds to a rule that names no start."""
DIED = "Its process died, and so had whoever started it"
ACTIVE = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


# --- deployments ---


@dataclass(frozen=True)
class Deployed:
    """A deployment as it stands: its name, its pipeline, when it runs, whether it is paused, the next run, the last one."""

    name: str
    pipeline: str
    schedule: str
    paused: bool
    next: str
    last: str


def deploy(
    pipeline: Pipeline, *, cron: str | None = None, interval: int | None = None, rrule: str | None = None,
    timezone: str | None = None, params: Mapping[str, Value] | None = None, models: str | None = None,
    store: str | Path = "outputs/store", out: str | Path = "outputs", nodes: Sequence[Path] = (), allow: Sequence[Path] = (),
    max_failures: int | None = None, name: str | None = None,
) -> Deployed:
    """Create a deployment, or update the one of that name: the pipeline's file, run on a schedule in today's working
    directory. `interval` is in seconds. One that is paused stays so.

    Raises:
        PipelineError: the pipeline or a param is wrong, or a model is not on this machine.
        UserError: the schedule is none, or the pipeline has no file.
        ServerError: no Prefect server answers.
    """
    schedule = _schedule(cron, interval, rrule, timezone)
    if name is not None and not re.fullmatch(r"[^/%&<>]+", name):
        raise UserError(f'--name {name}: a deployment\'s name holds none of / % & < >')
    if not Path(pipeline.spec.file).is_file():
        raise UserError(f'"{pipeline.spec.name}" has no file to run from: write pipeline.to_yaml() to one, and deploy that')
    identified(pipeline.graph(params, models), open_store(store))  # what is wrong is said now, and not at two in the night
    name = name or pipeline.spec.name
    given = {
        "pipeline": os.path.abspath(pipeline.spec.file), "params": dict(params or {}), "models": models,
        "store": _absolute(store), "out": _absolute(out), "nodes": [os.path.abspath(file) for file in nodes],
        "allow": [os.path.abspath(folder) for folder in allow], "max_failures": max_failures,
    }
    with _client() as client:
        _make_pool(client)
        made = client.create_deployment(
            client.create_flow_from_name(pipeline.spec.name), name, entrypoint=ENTRYPOINT, work_pool_name=POOL,
            schedules=[DeploymentScheduleCreate(schedule=schedule)], parameters=given, tags=[pipeline.spec.name],
            parameter_openapi_schema=_form(pipeline), enforce_parameter_schema=True, description=pipeline.spec.description,
            concurrency_limit=1,
            concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
            job_variables={"working_dir": os.getcwd(), "command": COMMAND},
        )
        return _described(client, client.read_deployment(made))


def listed() -> list[Deployed]:
    """All our deployments, by name."""
    with _client() as client:
        return [_described(client, found) for found in _all(client)]


def pause(name: str) -> None:
    """Run a deployment no more until it is resumed.

    Raises:
        UserError: there is none of that name.
    """
    with _client() as client:
        client.pause_deployment(_named(client, name).id)


def resume(name: str) -> None:
    """Run a deployment on its schedule again.

    Raises:
        UserError: there is none of that name.
    """
    with _client() as client:
        client.resume_deployment(_named(client, name).id)


def delete(name: str) -> None:
    """Forget a deployment; what its runs made stays.

    Raises:
        UserError: there is none of that name.
    """
    with _client() as client:
        client.delete_deployment(_named(client, name).id)


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    with connected(), get_client(sync_client=True) as client:
        yield client


def _absolute(place: str | Path) -> str:
    return str(place) if "://" in str(place) else os.path.abspath(place)


def _schedule(cron: str | None, interval: int | None, rrule: str | None, timezone: str | None) -> SCHEDULE_TYPES:
    if [cron, interval, rrule].count(None) != 2:
        raise UserError('a schedule is one of --cron "0 2 * * *", --interval SECONDS and --rrule RULE')
    try:
        return construct_schedule(interval=interval, cron=cron, rrule=rrule, timezone=timezone)
    except ValueError as error:
        options = {"--cron": cron, "--interval": interval, "--rrule": rrule, "--timezone": timezone}
        given = " ".join(f"{option} {value}" for option, value in options.items() if value is not None)
        raise UserError(f"{given}: {_reason(error)}") from None


def _reason(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    return "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in errors()) if errors else str(error)


def _form(pipeline: Pipeline) -> dict[str, Any]:
    """The flow's parameters as a JSON Schema, in which `params` are those of the pipeline."""
    schema: dict[str, Any] = run_pipeline.parameters.model_dump_for_openapi()
    params = schema["properties"]["params"]
    kept = {key: params[key] for key in ("title", "description", "position") if key in params}
    schema["properties"]["params"] = {**params_schema(pipeline.spec.params), **kept}
    return schema


def _make_pool(client: SyncPrefectClient) -> None:
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    except ObjectAlreadyExists:
        return


def _ours() -> WorkPoolFilter:
    return WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))


def _all(client: SyncPrefectClient) -> list[DeploymentResponse]:
    return sorted(client.read_deployments(work_pool_filter=_ours()), key=lambda found: found.name)


def _named(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    """The deployment of a name, or of PIPELINE/NAME where two pipelines have one of that name."""
    found = _all(client)
    full = {f"{client.read_flow(each.flow_id).name}/{each.name}": each for each in found}
    fitting = {known: each for known, each in full.items() if name in (known, each.name)}
    if not fitting:
        raise UserError(f'unknown deployment "{name}"{nearest(name, [each.name for each in found])}')
    if len(fitting) > 1:
        raise UserError(f'several deployments are named "{name}": write {" or ".join(sorted(fitting))}')
    return next(iter(fitting.values()))


def _described(client: SyncPrefectClient, found: DeploymentResponse) -> Deployed:
    def run(sort: FlowRunSort, *states: StateType) -> FlowRun | None:
        asked = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[found.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))),
        )
        return next(iter(client.read_flow_runs(flow_run_filter=asked, sort=sort, limit=1)), None)

    ended = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED, StateType.RUNNING)
    coming = run(FlowRunSort.EXPECTED_START_TIME_ASC, StateType.SCHEDULED)
    last = run(FlowRunSort.EXPECTED_START_TIME_DESC, *ended)
    return Deployed(
        found.name, client.read_flow(found.flow_id).name, "; ".join(_told(each.schedule) for each in found.schedules),
        found.paused, _time(coming.expected_start_time) if coming else "",
        f"{last.state_name} {_time(last.expected_start_time)}" if last else "",
    )


def _told(schedule: Any) -> str:
    """A schedule in the words of the command that makes it."""
    if interval := getattr(schedule, "interval", None):
        return f"every {interval.total_seconds():g} s"
    rule = getattr(schedule, "cron", None) or " ".join(schedule.rrule.split()).removeprefix(UNSAID)
    return f"{rule} {schedule.timezone or 'UTC'}"


def _time(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if moment else ""


# --- serving ---


def serve_forever(stop: threading.Event) -> None:
    """Start what is due, each run in a process of its own, until `stop` is set; then end the runs that are under way, which
    the next ones take up where they stopped. Errors are told, and serving goes on."""
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep)[:1]:
        os.environ["PATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PATH"))))  # where COMMAND is looked for
    while not stop.is_set():
        try:
            with temporary_settings({PREFECT_API_URL: address(_say), PREFECT_WORKER_QUERY_SECONDS: LOOK}):
                asyncio.run(_serve(stop))
        except Exception as error:
            _say(f"serving: {_first(error)}; trying again in {AGAIN} s")
            stop.wait(AGAIN)


async def _serve(stop: threading.Event) -> None:
    await anyio.to_thread.run_sync(free_dead_runs)
    # Nothing is fetched before it is due: it would take its deployment's only place while another may still run.
    worker = ProcessWorker(work_pool_name=POOL, name=SERVER, prefetch_seconds=0)
    async with anyio.create_task_group() as group:
        group.start_soon(partial(worker.start, printer=_say))
        looked = datetime.now()
        while not stop.is_set():
            await anyio.sleep(0.2)
            if datetime.now() - looked > timedelta(seconds=SWEEP):
                await anyio.to_thread.run_sync(_sweep)
                looked = datetime.now()
        ended = await anyio.to_thread.run_sync(_end_runs)
        group.cancel_scope.cancel()
    await anyio.to_thread.run_sync(_sweep, ended)


def _sweep(ended: Collection[str] = ()) -> None:
    """Look for dead runs; where the server does not answer now, the next look will do."""
    try:
        free_dead_runs(ended)
    except Exception as error:
        _say(f"looking for dead runs: {_first(error)}")


def free_dead_runs(ended: Collection[str] = ()) -> list[str]:
    """Force the runs of this machine to Crashed whose process is gone: one that died with its runner would hold its
    deployment's only place for ever. One without a process may be about to get it, unless its id is in `ended`. Gives their
    names."""
    freed = []
    with get_client(sync_client=True) as client:
        active = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(ACTIVE))))
        runs = client.read_flow_runs(
            work_pool_filter=_ours(), flow_run_filter=active, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
        alive = {variables[RUN_ID] for process in psutil.process_iter() if RUN_ID in (variables := _environment(process))}
        for run in runs:
            # Read again: one that ended since then has said so before its process went.
            if str(run.id) not in alive and _is_dead(now := client.read_flow_run(run.id), ended):
                client.set_flow_run_state(now.id, Crashed(message=DIED), force=True)
                freed.append(now.name)
    return freed


def _is_dead(run: FlowRun, ended: Collection[str]) -> bool:
    if run.labels.get("prefect.worker.name") != SERVER or run.state is None or run.state_type not in ACTIVE:
        return False
    age = (datetime.now(UTC) - run.state.timestamp).total_seconds()
    return run.state_type != StateType.PENDING or str(run.id) in ended or age > STARTING


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _end_runs() -> set[str]:
    """Have the runs of this process end, and wait for them: they say that they crashed, and free their places. Gives the ids
    of all: those that had hardly begun die without a word."""
    runs = {child: variables[RUN_ID] for child in psutil.Process().children() if RUN_ID in (variables := _environment(child))}
    for run in runs:
        run.terminate()
    psutil.wait_procs(list(runs), timeout=GRACE)
    return set(runs.values())


def _first(error: BaseException) -> str:
    """The error itself, out of the groups that tasks wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _say(text: object) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve_forever(stop)


if __name__ == "__main__":
    main()
