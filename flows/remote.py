"""Has the steps that have a model made by workers. The flow's own process looks up, keeps count and loads no model."""

from __future__ import annotations

import contextlib
import json
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future as _Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flows import cluster, wire
from flows.calls import Caller, Outcome
from flows.cluster import Workers
from flows.graph import Bound
from flows.plan import Call
from flows.results import Failure
from flows.store import Manifest
from flows.worker import work
from nodes.base import Model
from nodes.errors import WorkerError

if TYPE_CHECKING:
    from distributed import Future

FIRST, LARGEST = 4, 256
SECONDS = 3.0
"""What one window of a worker should take: about so long a small run waits for its turn behind a large one."""
TRIES = 5
"""How often a window is handed over again whose scheduler went away."""


def caller_on(on: str | None) -> Callable[..., Caller]:
    """What makes the caller of a run: `here`, on a `worker`, or on a worker if there is one.

    Raises:
        WorkerError: there is none.
    """
    address = cluster.scheduler(on)
    return partial(RemoteCaller, cluster.workers_at(address)) if address else Caller


@dataclass(frozen=True)
class _Window:
    """Calls that go to a worker together, and how often they went before."""

    calls: Sequence[Call]
    tries: int = 0


class RemoteCaller(Caller):
    """Calls nodes that have a model on workers, as many windows at a time as there are workers and one more, and the others
    here. A class that a worker could not import, being defined in the script itself, is called here too."""

    def __init__(self, workers: Workers, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._workers = workers
        self._pace: dict[str, tuple[float, int]] = {}
        """For each step the seconds that an element took last, and the size of its batches."""

    def prepare(self, step: Bound) -> None:
        """Connect to the workers, who keep their models; of what is called here, load what it needs."""
        if sent(step):
            self._workers.client()
        else:
            super().prepare(step)

    def lanes(self, step: Bound) -> int:
        return 1 if sent(step) else super().lanes(step)

    def places(self, step: Bound) -> tuple[int, Callable[..., _Future[Any]] | None]:
        return (1, None) if sent(step) else super().places(step)

    def size(self, step: Bound, left: int) -> int:
        return LARGEST if sent(step) else super().size(step, left)

    def expect(self, step: Bound, calls: Sequence[Call]) -> None:
        if not sent(step):
            super().expect(step, calls)

    def run(self, step: Bound, calls: Sequence[Call], tried: int = 0) -> Iterator[tuple[Call, Outcome]]:
        """Have the calls made. A worker that dies has its window made by another; an element that kills them fails alone."""
        if not sent(step):
            yield from super().run(step, calls, tried)
            return
        left, again, running = deque(calls), deque[_Window](), dict["Future[str]", _Window]()
        done: queue.Queue[Future[str]] = queue.Queue()
        try:
            while left or again or running:
                count = self._workers.count()
                while (left or again) and len(running) <= count:
                    window = again.popleft() if again else self._cut(step, left, count)
                    running[self._handed(step, window, done)] = window
                with self._clock(step.name):
                    future = self._workers.wait(done)
                window = running.pop(future)
                if (answer := self._answer(step, window, future)) is None:
                    again += _halves(window) if future.status == "error" else [_again(window)]
                    continue
                for call, made in zip(window.calls, answer, strict=True):
                    if "error" in made and made["lost"] and window.tries < TRIES:
                        for name, ref in made["lost"]:
                            self._remake(name, wire.ref_received(ref))
                        again.append(_Window([call], window.tries + 1))
                    else:
                        yield call, self._outcome(step, call, made)
        finally:
            with contextlib.suppress(Exception):  # a scheduler that is gone has none to cancel
                for future in running:
                    future.cancel()  # type: ignore[no-untyped-call]

    def _cut(self, step: Bound, left: deque[Call], count: int) -> _Window:
        """The next window: as much as a worker does in `SECONDS` and at least a batch, but no more than its share of what is
        left; half of that where there are several, so that none ends long after the others."""
        seconds, batch = self._pace.get(step.name, (SECONDS / FIRST, 1))
        share = -(-len(left) // max(count, 1))
        if count > 1:
            share = max(min(batch, share), -(-share // 2))
        size = min(max(batch, int(SECONDS / max(seconds, 1e-6))), share, LARGEST)
        return _Window([left.popleft() for _ in range(size)])

    def _handed(self, step: Bound, window: _Window, done: queue.Queue[Future[str]]) -> Future[str]:
        text = json.dumps({
            "step": wire.step_sent(step), "store": self._store.url, "batch": self._batch,
            "identity": self._planner.identities[step.name][1], "calls": [wire.call_sent(call) for call in window.calls],
        }, ensure_ascii=False)
        # The fewer are left the sooner it is its turn; runs of about one length take turns.
        here = window.calls[0].position[:1]
        left = (self._planner.elements.count(step.over[:1], ()) or 1) - (here[0] if here else 0)
        return self._workers.submit(work, text, f"{step.name}-{uuid4().hex}", -left.bit_length(), done)

    def _answer(self, step: Bound, window: _Window, future: Future[str]) -> list[wire.Sent] | None:
        """What a worker said of each call, or nothing where the window is to be made again.

        Raises:
            WorkerError: no worker can make it.
        """
        from distributed import CancelledError, KilledWorker

        if future.status == "error":
            error = future.exception()  # type: ignore[no-untyped-call]
            if not isinstance(error, KilledWorker):
                raise WorkerError(f'step "{step.name}": a worker failed: {type(error).__name__}: {error}')
            if len(window.calls) > 1:
                return None
            text = "the workers died that were at it: memory was too short, or a library crashed; their output says more"
            return [{"error": text, "traceback": "", "lost": []}]
        try:
            said = json.loads(future.result(timeout=cluster.PATIENCE)) if future.status == "finished" else None
        except (CancelledError, OSError, TimeoutError):  # the scheduler, or the worker that held the answer, has gone
            said = None
        if said is None:
            return None
        if "error" in said:
            raise WorkerError(said["error"])
        made: list[wire.Sent] = said["made"]
        if spent := [each["seconds"] for each in made if "seconds" in each]:
            self._pace[step.name] = sum(spent) / len(spent), said["batch"]
        return made

    def _outcome(self, step: Bound, call: Call, made: wire.Sent) -> Outcome:
        if "error" in made:
            return Failure(step.name, call.id, made["error"], made["traceback"])
        identity, _ = self._planner.identity(step, call.position)
        return Manifest(wire.values_received(made["outputs"]), identity, self._planner.inputs_of(call), made["seconds"])


def sent(step: Bound) -> bool:
    """Whether a step goes to the workers: it has a model, and they can import its node."""
    node = type(step.node)
    return wire.importable(node) and any(isinstance(getattr(step.node, name), Model) for name in node.model_fields)


def _halves(window: _Window) -> list[_Window]:
    middle = len(window.calls) // 2
    return [_Window(window.calls[:middle], window.tries), _Window(window.calls[middle:], window.tries)]


def _again(window: _Window) -> _Window:
    if window.tries == TRIES:
        raise WorkerError(f"the workers' scheduler went away {TRIES + 1} times while they worked on the same elements; what is "
                          "finished is kept")
    return _Window(window.calls, window.tries + 1)
