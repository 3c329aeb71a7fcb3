"""A worker process: makes windows of steps for flows, one at a time, with models that stay in memory. Knows no Prefect.

`work` is what Dask calls, here or in any Dask worker that has Photoloom installed. What it makes lies in the store when it
answers, so a worker that is killed loses no more than the batch in hand.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from flows import wire
from flows.calls import Caller, Outcome
from flows.clock import Clock
from flows.graph import Bound, Graph
from flows.keys import Digest
from flows.plan import Call, Planner
from flows.results import Failure
from flows.spec import Spec
from flows.store import Ref, Store, open_store
from nodes.base import Model
from nodes.errors import Damaged, PhotoloomError, WorkerError
from nodes.resident import loads, release

STATE = "PHOTOLOOM_WORKER_STATE"
"""The environment variable that names the file in which a worker says how it is."""

GRACE = 30
"""Seconds that a worker may take to finish the batch in hand when it is to stop."""


def work(text: str) -> str:
    """Make the calls of a window, and say what came of each.

    Gives `{"made": [...], "batch": N}`, or `{"error": …}` where the worker cannot work for that flow at all.
    """
    asked = json.loads(text)
    try:
        bench = _bench(json.dumps(asked["step"]), asked["store"], asked["batch"], asked["identity"])
    except PhotoloomError as error:
        return json.dumps({"error": str(error)})
    state.tell(bench.step.name)
    try:
        calls = [wire.call_received(bench.step, call) for call in asked["calls"]]
        made = dict(_made(bench, calls))
        answers = [_answer(bench, call, made[call.key]) for call in calls]
        state.windows += 1
    finally:
        bench.store.turn()
        bench.lost.clear()
        state.tell(None)
    batch = bench.caller.lanes(bench.step) * bench.caller.size(bench.step, sys.maxsize)
    return json.dumps({"made": answers, "batch": batch}, ensure_ascii=False)


@dataclass(frozen=True)
class _Bench:
    """A step and what its node is called with; `lost` are the values that are damaged in the store."""

    step: Bound
    store: Store
    caller: Caller
    lost: list[tuple[str, Ref]]

    def found(self, call: Call) -> Outcome | None:
        """What the store has of a call by now."""
        try:
            return self.store.look_up(call.key)
        except Damaged:
            return None


@lru_cache(maxsize=64)
def _bench(step: str, store: str, batch: int | None, identity: str) -> _Bench:
    """Kept between windows, so that what was learned of batch sizes stays.

    Raises:
        WorkerError: the node or its model is not the one that the flow means.
    """
    bound, kept, lost = wire.step_received(json.loads(step)), _store(store), list[tuple[str, Ref]]()
    alone = Spec(bound.name)
    planner = Planner(Graph(alone, {bound.name: replace(bound, wires={})}, (), {}, alone), kept)
    for model, found in planner.models.items():
        if _models.setdefault(model, found) != found:
            release()  # its files were changed: what is in memory is the old one
            _models[model] = found
    mine, digest = planner.identities[bound.name]
    if digest != identity:
        raise WorkerError(
            f'step "{bound.name}": the worker knows {type(bound.node).__name__} or its model otherwise: '
            f"{json.dumps(mine, ensure_ascii=False, default=str)}; give both machines the same code and models, and name the "
            "model's dtype in the pipeline"
        )

    def remake(step: str, ref: Ref) -> None:
        lost.append((step, ref))
        raise Damaged(f"value {ref.digest[:12]} is damaged")

    return _Bench(bound, kept, Caller(planner, kept, Clock(), remake, None, batch), lost)


_models: dict[Model, str] = {}
"""The identity under which each model was last used."""


@lru_cache(maxsize=4)
def _store(store: str) -> Store:
    return open_store(store)


def _made(bench: _Bench, calls: Sequence[Call]) -> Iterator[tuple[Digest, Outcome]]:
    """What came of each call, by its key. Before each batch the window is given back to the scheduler where this worker is to
    stop: another finishes it."""
    from distributed import Reschedule, get_worker
    from distributed.core import Status

    worker = get_worker()

    def make(some: Sequence[Call]) -> list[tuple[Digest, Outcome]]:
        if worker.status is not Status.running:
            raise Reschedule()
        return _batch(bench, some)

    bench.caller.expect(bench.step, calls)
    return bench.caller.in_lanes(bench.step, calls, make)


def _batch(bench: _Bench, calls: Sequence[Call]) -> list[tuple[Digest, Outcome]]:
    """Calls made together; what the store has by now is taken from it."""
    found = {call.key: bench.found(call) for call in calls if call.reason != "forced"}
    missing = [call for call in calls if not found.get(call.key)]
    made = [(call.key, outcome) for call, outcome in bench.caller.run(bench.step, missing)] if missing else []
    return made + [(key, outcome) for key, outcome in found.items() if outcome]


def _answer(bench: _Bench, call: Call, outcome: Outcome) -> wire.Sent:
    if not isinstance(outcome, Failure):
        return {"outputs": wire.values_sent(outcome.outputs), "seconds": outcome.seconds}
    inputs = [ref for found in call.inputs.values() for ref in (found if isinstance(found, tuple) else (found,))]
    lost = [[step, wire.ref_sent(ref)] for step, ref in bench.lost if ref in inputs]
    return {"error": outcome.error, "traceback": outcome.traceback, "lost": lost}


class _State:
    """How this worker is, in a file for whoever started it: `running`, `windows` that are through, and `models` with how
    often each was loaded."""

    def __init__(self) -> None:
        self.windows, self._file = 0, os.environ.get(STATE)

    def tell(self, running: str | None) -> None:
        """Write the file; `running` is the step in hand."""
        if self._file:
            found = {"running": running, "windows": self.windows, "models": Counter(source for source, _ in loads)}
            draft = Path(f"{self._file}.draft")
            draft.write_text(json.dumps(found), "utf-8")
            draft.replace(self._file)


state = _State()


async def serve(scheduler: str, name: str, folder: str) -> None:
    """Be a Dask worker until SIGTERM, or until the scheduler is gone. The window in hand is given back after its batch."""
    from distributed import Worker
    from distributed.core import Status

    stop, loopback = asyncio.Event(), "127.0.0.1"
    async with Worker(
        scheduler, name=name, host=loopback if f"//{loopback}:" in scheduler else None, nthreads=1, resources={"GPU": 1},
        memory_limit=0, local_directory=folder, dashboard_address=f"{loopback}:0",
    ) as worker:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        state.tell(None)
        ended, asked = asyncio.ensure_future(worker.finished()), asyncio.ensure_future(stop.wait())
        await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            worker.status = Status.paused  # no new window comes, and the one in hand sees it
            for _ in range(10 * GRACE):
                if not worker.active_threads:
                    break
                await asyncio.sleep(0.1)
        await worker.close(executor_wait=False)


def main() -> None:
    """What a worker's process does, given the scheduler's address, the worker's name and a folder for what Dask writes."""
    asyncio.run(serve(*sys.argv[1:]))
