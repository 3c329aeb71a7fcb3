"""Calls nodes: reads their inputs, gives them several elements at once where they take them, checks and keeps what comes."""

from __future__ import annotations

import contextlib
import errno
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from time import perf_counter, sleep
from typing import Any, TypeVar

from pydantic import ValidationError

from flows.clock import Clock
from flows.graph import Bound, alone
from flows.plan import Call, Planner
from flows.reading import Value
from flows.results import Failure
from flows.spec import REFERENCE
from flows.store import Manifest, Ref, Store
from nodes.artifacts import Artifact, Score
from nodes.base import Model, Node, Source
from nodes.batches import BatchSize, grouping
from nodes.errors import Damaged, OutOfMemory, PhotoloomError, Unreachable, UserError
from nodes.models import device_is_cpu
from nodes.resident import in_a_lane, in_turn, lanes, release, waited
from nodes.running import listening

T = TypeVar("T")

PAUSES = (1.0, 5.0)
"""Seconds before a call is tried again whose cause may pass."""
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
"""What Python has no class of its own for."""

Outcome = Manifest | Failure
Part = Callable[[Bound, int, int], None]
AHEAD = 16
"""Elements of a join that are read together."""


class Caller:
    """Calls nodes against a store. `remake` makes a step's value again whose stored bytes are damaged; `part` hears how far
    a node is; `batch` is the size of batches, found by trying where it is None. Threads may share it."""

    def __init__(
        self, planner: Planner, store: Store, clock: Clock, remake: Callable[[str, Ref], None], part: Part | None = None,
        batch: int | None = None,
    ) -> None:
        self._planner, self._store, self._clock, self._remake, self._part, self._batch = (
            planner, store, clock, remake, part, batch,
        )
        self._sizes: dict[Any, tuple[BatchSize, BatchSize]] = {}
        self._lasting: set[str] = set()
        """The steps for which waiting did not help: no more time is spent on it in this run."""

    def prepare(self, step: Bound) -> None:
        """Load what a step needs, ahead of its first call."""
        step.node.prepare()

    def lanes(self, step: Bound) -> int:
        """How many calls of a step's node may go on at once, each in a thread of `nodes.resident`."""
        return min(map(lanes, _models(step.node)), default=1)

    def size(self, step: Bound, left: int) -> int:
        """How many elements of a step are to be called together now, of those left to do: in all lanes together as many as
        a batch has, and in the end no more than each lane's share."""
        if not _together(step):
            return 1
        size, at_once = self._size(step)[0].size, self.lanes(step)
        return max(1, min(-(-size // at_once) if self._batch else size, -(-left // at_once)))

    def places(self, step: Bound) -> tuple[int, Callable[..., Future[Any]] | None]:
        """How many batches of a step may be under way at once, and what begins one, if not the caller itself. A GPU takes one
        at a time, and is not to wait while the one before is kept and the next one's inputs are read."""
        if (count := self.lanes(step)) > 1:
            return count, in_a_lane
        return (2, in_turn) if _models(step.node) and not device_is_cpu() else (1, None)

    def in_lanes(self, step: Bound, calls: Sequence[Call], make: Callable[[Sequence[Call]], Iterable[T]]) -> Iterator[T]:
        """What `make` gives for batches of the calls, as it comes: as many batches at once as the step's model allows, and
        none left running in the end."""
        todo, running = calls, set[Future[Iterable[T]]]()
        at_once, begin = self.places(step)
        try:
            while todo or running:
                while todo and len(running) < at_once:
                    size = self.size(step, len(todo))
                    some, todo = todo[:size], todo[size:]
                    if begin is None:
                        yield from make(some)
                    else:
                        running.add(begin(partial(make, some)))
                if running:
                    with self._clock(step.name):
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                    for each in done:
                        yield from each.result()
        finally:
            wait(running)

    def _size(self, step: Bound) -> tuple[BatchSize, BatchSize]:
        """The sizes of batches of elements, and of what the node makes of one; shared by steps of one kind and model."""
        key = type(step.node), _models(step.node)
        return self._sizes.setdefault(key, (BatchSize(self._batch), BatchSize(self._batch)))

    def run(self, step: Bound, calls: Sequence[Call], tried: int = 0) -> Iterator[tuple[Call, Outcome]]:
        """Call the node. A batch that fails is halved until what fails alone is known; so is one that memory is short for.
        What may pass, a fault of the network or memory that is short for one, is tried again a few times."""
        size, inner = self._size(step)
        started, waited_before = perf_counter(), waited()
        error: Exception | None = None
        try:
            with grouping(inner):
                values = self._call(step, calls)
        except OutOfMemory as short:
            error = OutOfMemory(str(short))  # one without the frames of the call, which hold what memory is short for
        except Exception as raised:
            error = raised
        if error:
            if isinstance(error, OutOfMemory):
                size.short(len(calls))
                release()  # with the frames gone, what they held can be given back too
            if _may_pass(error, len(calls)) and step.name not in self._lasting:
                if tried < len(PAUSES):
                    sleep(PAUSES[tried])
                    yield from self.run(step, calls, tried + 1)
                    return
                self._lasting.add(step.name)
            if len(calls) > 1:
                middle = len(calls) // 2
                yield from self.run(step, calls[:middle], tried)
                yield from self.run(step, calls[middle:], tried)
                return
            yield calls[0], self._failure(step, calls[0], error)
            return
        seconds = perf_counter() - started - (waited() - waited_before)
        size.took(len(calls), seconds)
        with self._clock("store"):
            kept = self._store.objects.together(
                lambda made: self._keep(*made, seconds / len(calls)), zip(calls, values, strict=True)
            )
        yield from zip(calls, kept, strict=True)

    def _failure(self, step: Bound, call: Call, error: Exception) -> Failure:
        known = isinstance(error, PhotoloomError | ValidationError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        if isinstance(error, OutOfMemory):
            sizes = (f"{port} {_sizes(self._store.get(ref))}" for port, ref in call.inputs.items() if isinstance(ref, Ref))
            text += f"; the inputs: {', '.join(sizes) or 'none'}"
        return Failure(step.name, call.id, text, "" if known else "".join(traceback.format_exception(error)))

    def _call(self, step: Bound, calls: Sequence[Call]) -> list[dict[str, Artifact | list[Artifact]]]:
        part = self._part
        heard = listening(lambda done, total: part(step, done, total)) if part else contextlib.nullcontext()
        with self._clock("read"):
            inputs = [self._inputs(call) for call in calls]
        nodes = [self._node(call, given) for call, given in zip(calls, inputs, strict=True)]
        with heard, self._clock(step.name):
            if _together(step):
                return self._call_together(nodes, inputs)
            return [self._call_one(node, call, given) for node, call, given in zip(nodes, calls, inputs, strict=True)]

    def _node(self, call: Call, inputs: dict[str, Any]) -> Node:
        """What makes the element: its `${step}` texts are filled in from the inputs, and taken out of them."""
        node = call.step.node
        if call.step.texts:
            node = _rendered(call.step, {name: inputs.pop(name) for name in list(inputs) if name not in node.ports})
        return alone(node, call.position)

    @staticmethod
    def _call_together(
        nodes: Sequence[Node], inputs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Artifact | list[Artifact]]]:
        node = nodes[0]  # they differ in what is given as lists alone
        given = {port: [each.get(port) for each in inputs] for port in node.ports}
        varying = {name: [getattr(each, name) for each in nodes] for name in node.varying}
        returned = type(node).run_batch(node, **given, **varying)
        if not isinstance(returned, list) or len(returned) != len(nodes):
            raise UserError(f"{type(node).__name__}.run_batch: expected a list of {len(nodes)}, got {_named(returned)}")
        return [_outputs(node, each) for each in returned]

    def _call_one(self, node: Node, call: Call, inputs: dict[str, Any]) -> dict[str, Artifact | list[Artifact]]:
        if isinstance(node, Source):
            inputs["file"] = self._planner.file_of(call.step, call.position)
        return _outputs(node, type(node).run(node, **inputs))

    def _inputs(self, call: Call) -> dict[str, Any]:
        return {
            port: _Listed(self, call.step.wires[port].step, ref) if isinstance(ref, tuple)
            else ref and self.value(call.step.wires[port].step, ref)
            for port, ref in call.inputs.items()
        }

    def expect(self, step: Bound, calls: Sequence[Call]) -> None:
        """Read the inputs of calls that come soon, where the store is far away."""
        self._store.prefetch(ref for call in calls for ref in call.inputs.values() if isinstance(ref, Ref))

    def prefetch(self, refs: Sequence[Ref]) -> None:
        """Read values that will be asked for soon."""
        self._store.prefetch(refs)

    def value(self, step: str, ref: Ref) -> Artifact:
        """A value that a step gave, made again if the store's copy is damaged."""
        try:
            return self._store.get(ref)
        except Damaged:
            self._remake(step, ref)
            return self._store.get(ref)

    def _keep(self, call: Call, value: Mapping[str, Artifact | list[Artifact]], seconds: float) -> Outcome:
        try:
            outputs: dict[str, Ref | tuple[Ref, ...]] = {
                name: tuple(self._store.put(each) for each in found) if isinstance(found, list) else self._store.put(found)
                for name, found in value.items()
            }
            identity, _ = self._planner.identity(call.step, call.position)
            manifest = Manifest(outputs, identity, self._planner.inputs_of(call), seconds)
            self._store.record(call.key, manifest)
        except Unreachable as error:
            return self._failure(call.step, call, error)
        return manifest


def _rendered(step: Bound, texts: Mapping[str, Artifact]) -> Node:
    """The step's node with `${step}` in its params filled from the values on those wires.

    Raises:
        ValidationError: a filled-in value is not what the param allows.
    """
    update: dict[str, Value] = {}
    for key, template in step.texts.items():
        if (whole := REFERENCE.fullmatch(template)) and isinstance(score := texts[whole[0]], Score):
            update[key] = score.value
        else:
            update[key] = REFERENCE.sub(lambda m: str(texts[m[0]].value), template)  # type: ignore[attr-defined]
    kept = {key: getattr(step.node, key) for key in type(step.node).model_fields if key not in update}
    return type(step.node).model_validate({**kept, **update})


class _Listed(Sequence[Artifact]):
    """A join's input: reads its elements when asked, so that it does not hold them all."""

    def __init__(self, caller: Caller, step: str, refs: tuple[Ref, ...]) -> None:
        self._caller, self._step, self._refs = caller, step, refs

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index % AHEAD == 0:
            self._caller.prefetch(self._refs[index : index + AHEAD])
        return self._caller.value(self._step, self._refs[index])


def _models(node: Node) -> tuple[Model, ...]:
    return tuple(value for name in type(node).model_fields if isinstance(value := getattr(node, name), Model))


def _together(step: Bound) -> bool:
    """Whether several elements can go to the node at once: it takes batches, and they differ only where it allows."""
    return step.node.batches() and {*step.texts, *step.node.counted[1:]} <= step.node.varying


def _may_pass(error: BaseException | None, count: int) -> bool:
    """Whether a call of `count` elements may do when tried again: memory was short for one, or a connection failed. What the
    caller is to put right is another thing."""
    if isinstance(error, OutOfMemory):
        return count == 1
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
            return True
        if isinstance(error, OSError) and error.errno in UNREACHABLE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _sizes(value: Artifact) -> str:
    return " and ".join(f"{array.dtype} {array.shape}" for array in value.arrays().values()) or type(value).__name__


def _named(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__


def _outputs(node: Node, returned: Any) -> dict[str, Artifact | list[Artifact]]:
    """What `run` returned, by output, checked against what it declares; of a counted node, the one thing of each list.

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
    if not node.counted:
        return values
    if (count := len(next(iter(values.values())))) != 1:
        raise UserError(f"{type(node).__name__}.run: expected a list of 1 where {node.counted[0]} is 1, got {count}")
    return {name: found[0] for name, found in values.items()}
