"""Runs a graph: look up, call what is missing in small batches, keep what comes. Knows nothing of Prefect."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pydantic import ValidationError

from flows.check import rendered
from flows.elements import Gap, Position, rounds
from flows.graph import Bound, Graph
from flows.plan import WINDOW, Call, Planner
from flows.store import Manifest, Ref, Store
from nodes.artifacts import Artifact
from nodes.base import Node, Source
from nodes.errors import Damaged, PhotoloomError, UserError
from nodes.running import listening

BATCH = 8
"""Items that a node which can take several gets at once."""


class Watcher(Protocol):
    """Whoever wants to see a run as it goes."""

    def step(self, step: Bound, total: int) -> None:
        """A window of a step begins, of `total` elements."""

    def element(self, call: Call, state: str) -> None:
        """An element is through: `ran`, `cached`, `failed` or `skipped`."""

    def part(self, step: Bound, done: int, total: int) -> None:
        """The node is at part `done` of `total`: a diffusion step."""


@dataclass(frozen=True)
class Failure:
    """One element of one step that gave nothing: what was wrong in a line, and the traceback if it was not the user's doing."""

    step: str
    id: str
    error: str
    traceback: str = ""


@dataclass
class StepResult:
    """What became of a step: elements by state, seconds, reasons why they ran, what was noted."""

    ran: int = 0
    cached: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)


@dataclass
class Result:
    """What became of a run."""

    steps: dict[str, StepResult]
    failures: list[Failure] = field(default_factory=list)
    stopped: str = ""
    """Why the run ended before its end, if it did."""


class Stop(PhotoloomError):
    """The run is to end early; what is finished is kept."""


Around = Callable[[Bound, int, Callable[[], "WindowDone"]], None]
"""How a window of a step is run: given the step, the window's number and the work to call."""


@dataclass(frozen=True)
class WindowDone:
    """One window of one step, for whoever ran it: how many elements ended how."""

    ran: int
    cached: int
    failed: int
    skipped: int


def plainly(step: Bound, number: int, work: Callable[[], WindowDone]) -> None:
    """Run a window here and now."""
    work()


class Execution:
    """One run of a graph against a store. `finished` hears of each element that has its values."""

    def __init__(
        self,
        graph: Graph,
        store: Store,
        *,
        only: set[str] | None = None,
        force: frozenset[str] = frozenset(),
        max_failures: int | None = None,
        watcher: Watcher | None = None,
        finished: Callable[[Call, Mapping[str, Ref | tuple[Ref, ...]]], None] | None = None,
        window: int = WINDOW,
        batch: int = BATCH,
    ) -> None:
        self.graph, self.store, self.window, self.batch = graph, store, window, batch
        self.planner = Planner(graph, store, force)
        self.only = graph.needed(only) if only else set(graph.steps)
        self.max_failures, self.watcher, self.finished = max_failures, watcher, finished
        self.result = Result({name: StepResult() for name in graph.steps if name in self.only})
        self._keys: dict[str, dict[str, str]] = {}

    def run(self, around: Around = plainly) -> Result:
        """Run all there is to run. Failures of elements are in the result; what is wrong with the run itself is raised."""
        _ = self.planner.identities  # absent models are said before anything runs
        try:
            for step, number, window in rounds(self.graph, self.planner.elements, self.window, self.only):
                around(step, number, partial(self._window, step, window))
        except Stop as stop:
            self.result.stopped = str(stop)
        finally:
            for name, keys in self._keys.items():
                self.store.note_keys(self.graph.name, name, keys)
        return self.result

    # --- one window of one step ---

    def _window(self, step: Bound, window: range | None) -> WindowDone:
        started = time.perf_counter()
        result = self.result.steps[step.name]
        before = WindowDone(result.ran, result.cached, result.failed, result.skipped)
        calls = self.planner.calls(step, window)
        if self.watcher:
            self.watcher.step(step, len(calls))
        waiting: dict[str, list[Call]] = {}
        for call in calls:
            if call.manifest:
                self._cached(call, call.manifest)
            elif call.state == "run":
                waiting.setdefault(call.key, []).append(call)
            else:
                self._left_out(call)
        try:
            self._run_all(step, waiting)
        finally:
            result.seconds += time.perf_counter() - started
        return WindowDone(
            result.ran - before.ran, result.cached - before.cached,
            result.failed - before.failed, result.skipped - before.skipped,
        )

    def _run_all(self, step: Bound, waiting: Mapping[str, Sequence[Call]]) -> None:
        """Run each key once; equal pictures of a window share the result."""
        size = self.batch if step.node.batches() and not step.texts else 1
        firsts = [calls[0] for calls in waiting.values()]
        for start in range(0, len(firsts), size):
            for call, outcome in self._run(step, firsts[start : start + size]):
                same = waiting[call.key]
                if isinstance(outcome, Failure):
                    for each in same:
                        self._failed(each, outcome)
                else:
                    self._ran(call, outcome)
                    for each in same[1:]:
                        self._cached(each, outcome)

    def _cached(self, call: Call, manifest: Manifest) -> None:
        self.result.steps[call.step.name].cached += 1
        self._through(call, manifest, "cached")

    def _ran(self, call: Call, manifest: Manifest) -> None:
        result = self.result.steps[call.step.name]
        result.ran += 1
        result.reasons[call.reason] = result.reasons.get(call.reason, 0) + 1
        self._through(call, manifest, "ran")

    def _through(self, call: Call, manifest: Manifest, state: str) -> None:
        self.planner.done(call, manifest.outputs)
        self._keys.setdefault(call.step.name, {})[call.id] = call.key
        notes = self.result.steps[call.step.name].notes
        for ref in manifest.refs():
            if note := ref.info.get("note"):
                notes[str(note)] = notes.get(str(note), 0) + 1
        if call.missing:
            note = f"{call.missing} missing"
            notes[note] = notes.get(note, 0) + 1
        if self.watcher:
            self.watcher.element(call, state)
        if self.finished:
            self.finished(call, manifest.outputs)

    def _left_out(self, call: Call) -> None:
        self.result.steps[call.step.name].skipped += 1
        self.planner.elements.leave_out(call.step, call.position, Gap.SKIPPED)
        if self.watcher:
            self.watcher.element(call, "skipped")

    def _failed(self, call: Call, failure: Failure) -> None:
        self.result.steps[call.step.name].failed += 1
        self.planner.elements.leave_out(call.step, call.position, Gap.FAILED)
        self.result.failures.append(Failure(call.step.name, call.id, failure.error, failure.traceback))
        if self.watcher:
            self.watcher.element(call, "failed")
        if self.max_failures is not None and len(self.result.failures) > self.max_failures:
            raise Stop(f"more than {self.max_failures} failures")

    # --- calling nodes ---

    def _run(self, step: Bound, calls: Sequence[Call]) -> Iterator[tuple[Call, Manifest | Failure]]:
        """Call the node. A batch that fails is halved until what fails alone is known; so is one that memory is short for."""
        started = time.perf_counter()
        try:
            values = self._call(step, calls)
        except Exception as error:
            if len(calls) > 1:
                middle = len(calls) // 2
                yield from self._run(step, calls[:middle])
                yield from self._run(step, calls[middle:])
                return
            known = isinstance(error, PhotoloomError | ValidationError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            yield calls[0], Failure(step.name, calls[0].id, text, "" if known else traceback.format_exc())
            return
        seconds = (time.perf_counter() - started) / len(calls)
        for call, value in zip(calls, values, strict=True):
            yield call, self._keep(call, value, seconds)

    def _call(self, step: Bound, calls: Sequence[Call]) -> list[dict[str, Artifact | list[Artifact]]]:
        heard = listening(partial(self.watcher.part, step)) if self.watcher else contextlib.nullcontext()
        inputs = [self._inputs(call) for call in calls]
        with heard:
            if step.node.batches() and not step.texts:
                ports = step.node.ports
                returned = step.node.run_batch(**{p: [given.get(p) for given in inputs] for p in ports})  # type: ignore[attr-defined]
                if not isinstance(returned, list) or len(returned) != len(calls):
                    name = f"{type(step.node).__name__}.run_batch"
                    raise UserError(f"{name}: expected a list of {len(calls)}, got {_named(returned)}")
                return [_outputs(step.node, each) for each in returned]
            return [self._call_one(step, call, given) for call, given in zip(calls, inputs, strict=True)]

    def _call_one(self, step: Bound, call: Call, inputs: dict[str, Any]) -> dict[str, Artifact | list[Artifact]]:
        node = step.node
        if step.texts:
            node = rendered(step, {name: inputs.pop(name) for name in list(inputs) if name not in node.ports})
        if isinstance(node, Source):
            inputs["file"] = self.planner.file_of(step, call.position)
        return _outputs(node, type(node).run(node, **inputs))

    def _inputs(self, call: Call) -> dict[str, Any]:
        return {
            port: _Listed(self, call, port) if isinstance(ref, tuple) else ref and self._get(call, port, ref)
            for port, ref in call.inputs.items()
        }

    def _get(self, call: Call, port: str, ref: Ref) -> Artifact:
        try:
            return self.store.get(ref)
        except Damaged:
            self._remake(call.step.wires[port].step, ref)
            return self.store.get(ref)

    def value(self, step: str, ref: Ref) -> Artifact:
        """A value that a step gave, made again if the store's copy is damaged."""
        try:
            return self.store.get(ref)
        except Damaged:
            self._remake(step, ref)
            return self.store.get(ref)

    def _remake(self, name: str, ref: Ref) -> None:
        """Run the calls of a step again whose values are damaged."""
        step = self.graph.steps[name]
        for position in self.planner.elements.positions(step.over):
            call = self.planner.call(step, position)
            if not (call.manifest and any(each.digest == ref.digest for each in call.manifest.refs())):
                continue
            self.store.forget(call.key)
            again = Call(step, position, call.id, "run", "damaged", call.key, call.inputs, call.missing)
            for _, outcome in self._run(step, [again]):
                if isinstance(outcome, Manifest):
                    result = self.result.steps[name]
                    result.cached, result.ran = result.cached - 1, result.ran + 1
                    result.reasons["damaged"] = result.reasons.get("damaged", 0) + 1
                    self.planner.done(again, outcome.outputs)
            return

    def _keep(self, call: Call, value: Mapping[str, Artifact | list[Artifact]], seconds: float) -> Manifest:
        outputs: dict[str, Ref | tuple[Ref, ...]] = {
            name: tuple(self.store.put(each) for each in found) if isinstance(found, list) else self.store.put(found)
            for name, found in value.items()
        }
        identity = self.planner.identities[call.step.name][0]
        manifest = Manifest(outputs, identity, self.planner.inputs_of(call), seconds)
        self.store.record(call.key, manifest)
        return manifest


class _Listed(Sequence[Artifact]):
    """A join's input: reads its elements when asked, so that it does not hold them all."""

    def __init__(self, execution: Execution, call: Call, port: str) -> None:
        self._execution, self._call, self._port = execution, call, port
        refs = call.inputs[port]
        self._refs = refs if isinstance(refs, tuple) else ()

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._execution._get(self._call, self._port, self._refs[index])


def _named(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__


def _outputs(node: Node, returned: Any) -> dict[str, Artifact | list[Artifact]]:
    """What `run` returned, by output, checked against what it declares.

    Raises:
        UserError: a value of another type.
    """
    ports = node.outputs
    values = {"output": returned} if list(ports) == ["output"] else dict(zip(ports, returned, strict=False))
    for name, port in ports.items():
        found = values.get(name)
        items = list(found) if port.many and isinstance(found, list | tuple) else [found]
        if (port.many and not isinstance(found, list | tuple)) or not all(isinstance(item, port.type) for item in items):
            wrong = next((item for item in items if not isinstance(item, port.type)), found)
            where = "" if name == "output" else f" for {name}"
            raise UserError(f"{type(node).__name__}.run: expected {port}{where}, got {_named(wrong)}")
        if port.many:
            values[name] = items
    if len({len(v) for v in values.values() if isinstance(v, list)}) > 1:
        raise UserError(f"{type(node).__name__}.run: its lists differ in length")
    return values


__all__ = ["BATCH", "Execution", "Failure", "Position", "Result", "StepResult", "Stop", "Watcher", "WindowDone", "plainly"]
