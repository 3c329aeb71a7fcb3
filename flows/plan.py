"""What would run, and why: look-ups in the store, for each step and element, without running anything."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from flows import keys, sources
from flows.elements import Elements, Gap, Hole, Position
from flows.graph import Bound, Graph, Lineage, alone
from flows.keys import Digest
from flows.spec import shown
from flows.store import Manifest, Ref, Store
from flows.windows import rounds
from nodes.base import Model, Source
from nodes.errors import Damaged, InputError, ModelError, NoFiles, PipelineError, Unreachable
from nodes.models import identity as model_identity

WINDOW = 64
"""Elements that go through the steps together."""


@dataclass(frozen=True)
class Call:
    """One call of a step's node: its inputs, and what the store knows of it.

    `state` is `cached`, `run`, `waits` (on the step named by `reason`), `skipped` (since that step gave nothing) or `failed`
    (the store did not answer; `reason` tells).
    """

    step: Bound
    position: Position
    id: str
    state: str
    reason: str = ""
    key: Digest = ""
    inputs: Mapping[str, Ref | tuple[Ref, ...] | None] = field(default_factory=dict)
    missing: int = 0
    manifest: Manifest | None = None


def identified(graph: Graph, store: Store) -> Mapping[Model, str]:
    """The identity of each model in a graph.

    Raises:
        PipelineError: a model is not on this machine.
    """
    found: dict[Model, str] = {}
    problems = []
    for step in graph:
        for name in type(step.node).model_fields:
            value = getattr(step.node, name)
            if isinstance(value, Model) and value not in found:
                try:
                    found[value] = model_identity(value, store.file_digest)
                except ModelError as error:
                    problems.append(graph.spec.problem(f'step "{step.name}": {error}', "steps", step.name, name))
                    found[value] = ""
    if problems:
        raise PipelineError(problems)
    return found


@dataclass
class Planner:
    """Looks calls up. `force` names steps that are to run whatever the store has."""

    graph: Graph
    store: Store
    force: frozenset[str] = frozenset()
    elements: Elements = field(init=False)
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.elements = Elements(self.graph)
        self._has_run: dict[str, bool] = {}
        self._forced: set[Digest] = set()
        errors: list[PipelineError] = []
        for step in self.graph:
            if isinstance(step.node, Source):
                try:
                    self._find_files(step, step.node)
                except PipelineError as error:
                    errors.append(error)
        if errors:
            kind = NoFiles if all(isinstance(error, NoFiles) for error in errors) else PipelineError
            raise kind(problem for error in errors for problem in error.problems)

    def again(self) -> Planner:
        """A planner for another walk over the same files and models."""
        found = copy.copy(self)
        found.elements, found._forced = self.elements.again(), set()
        return found

    # --- what stands for the whole graph ---

    @cached_property
    def models(self) -> Mapping[Model, str]:
        """The identity of each model in the graph."""
        return identified(self.graph, self.store)

    @cached_property
    def identities(self) -> Mapping[str, tuple[Mapping[str, Any], Digest]]:
        """Each step's identity for the cache, and its digest."""
        found = {step.name: keys.identity(step.node, self.models) for step in self.graph}
        return {name: (identity, keys.digest("Node", identity)) for name, identity in found.items()}

    def identity(self, step: Bound, position: Position) -> tuple[Mapping[str, Any], Digest]:
        """The identity of what makes one element, and its digest: the step's own, unless its node is counted."""
        if not step.node.counted:
            return self.identities[step.name]
        found = keys.identity(alone(step.node, position), self.models)
        return found, keys.digest("Node", found)

    def _find_files(self, step: Bound, node: Source) -> None:
        """List the files of a source, or see that those beside each picture lie where they may."""
        if not step.wires:
            found = sources.matching(self.graph, step, node.path, node.suffixes)
            self.files[step.name], self.elements.root_ids[step.name] = tuple(found.values()), tuple(found)
            self.elements.open_list(step, (), len(found))
            return
        for index in range(len(self.files.get(step.gives[0], ()))):
            try:
                self.file_of(step, (index,))
            except InputError as error:
                raise sources.refusal(self.graph, step, str(error)) from None

    def file_of(self, step: Bound, position: Position) -> Path:
        """The file that a source reads for an element.

        Raises:
            InputError: it lies where it may not.
        """
        picture = Path(self.files[step.gives[0]][position[0]])
        if not step.wires:
            return picture
        assert isinstance(step.node, Source)
        return sources.beside(self.graph, step, step.node.path, picture, self.elements.id_of(step.gives, position))

    # --- one call ---

    def calls(self, step: Bound, window: range | None) -> list[Call]:
        """The calls of a step for a window, each looked up."""
        _ = self.identities  # once, and not in each of the store's threads
        return self.store.objects.together(partial(self.call, step), self.elements.positions(step.over, window))

    def call(self, step: Bound, position: Position) -> Call:
        """One call of a step, looked up."""
        id_ = self.elements.id_of(step.over, position)
        inputs, missing, hole = self._inputs(step, position)
        if hole:
            return Call(step, position, id_, "waits" if hole.why is Gap.WAITING else "skipped", hole.step)
        digests: dict[str, Any] = {
            port: [ref.digest for ref in found] if isinstance(found, tuple) else found.digest for port, found in inputs.items()
        }
        readable = True
        if isinstance(step.node, Source):
            try:
                digests["file"] = self.store.file_digest(self.file_of(step, position))
            except (OSError, InputError):  # running it will say what is wrong with this very file
                digests["file"], readable = id_, False
        identity, digest = self.identity(step, position)
        key = keys.step_key(digest, digests)
        base = Call(step, position, id_, "run", "", key, inputs, missing)
        if step.name in self.force and key not in self._forced:
            return self._with(base, "run", "forced")
        try:
            manifest = self.store.look_up(key) if readable else None
        except Damaged:
            return self._with(base, "run", "damaged")
        except Unreachable as error:
            return self._with(base, "failed", str(error))
        if manifest is not None:
            return self._with(base, "cached", "", manifest)
        return self._with(base, "run", self._reason(step, id_, key, identity, digests))

    def _inputs(self, step: Bound, position: Position) -> tuple[dict[str, Ref | tuple[Ref, ...]], int, Hole | None]:
        """What the wires carry to a call, how many elements its lists lack, and the hole that keeps it from running.

        A node that can do without some elements gets each of its lists without those that any port lacks, so that what
        stands at one place of two ports still belongs together. A source's port says only whose files: it carries nothing.
        """
        found: dict[str, Ref] = {}
        lists: dict[str, list[Ref | Hole]] = {}
        holes: list[Hole] = []
        lost: dict[Lineage, set[int]] = {}
        for port, wire in {} if isinstance(step.node, Source) else step.wires.items():
            if step.port(port).many:
                lists[port] = self.elements.listed(wire, position)
                gaps = {index: each for index, each in enumerate(lists[port]) if isinstance(each, Hole)}
                if step.node.tolerates_missing and all(gap.why is not Gap.WAITING for gap in gaps.values()):
                    lost.setdefault(self.graph.steps[wire.step].gives, set()).update(gaps)
                else:
                    holes += gaps.values()
            elif isinstance(value := self.elements.value(wire, position), Hole):
                holes.append(value)
            else:
                found[port] = value
        if holes:
            return {}, 0, next((hole for hole in holes if hole.why is Gap.WAITING), holes[0])
        joined = {
            port: tuple(each for index, each in enumerate(lists[port]) if isinstance(each, Ref) and index not in
                        lost.get(self.graph.steps[step.wires[port].step].gives, ()))
            for port in lists
        }
        return {**found, **joined}, max(map(len, lost.values()), default=0), None

    def done(self, call: Call, outputs: Mapping[str, Ref | tuple[Ref, ...]]) -> None:
        """Note what a call gave."""
        if call.step.name in self.force:
            self._forced.add(call.key)
        self.elements.give(call.step, call.position, outputs)

    @staticmethod
    def _with(call: Call, state: str, reason: str, manifest: Manifest | None = None) -> Call:
        return Call(call.step, call.position, call.id, state, reason, call.key, call.inputs, call.missing, manifest)

    def inputs_of(self, call: Call) -> dict[str, Any]:
        """The digests of a call's inputs, as its manifest keeps them."""
        found: dict[str, Any] = {
            port: [ref.digest for ref in value] if isinstance(value, tuple) else value and value.digest
            for port, value in call.inputs.items()
        }
        if isinstance(call.step.node, Source):
            found["file"] = self.store.file_digest(self.file_of(call.step, call.position))
        return found

    def _reason(self, step: Bound, id_: str, key: Digest, new: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
        """Why a call is not in the store, told from what the same element was called with last time."""
        if step.name not in self._has_run:
            self._has_run[step.name] = self.store.has_run(self.graph.name, step.name)
        if not self._has_run[step.name]:
            return "first run"
        last = self.store.last_key(self.graph.name, step.name, id_)
        if last is None:
            return "new picture"
        try:
            before = self.store.look_up(last) if last != key else None
        except (Damaged, Unreachable):
            before = None
        if before is None:
            return "removed from the store"
        old = before.identity
        if old["node"] != new["node"]:
            return f"node changed: {old['node']} → {new['node']}"
        if old["version"] != new["version"]:
            return "node version"
        if old["models"] != new["models"]:
            return "model changed"
        for name in {**old["params"], **new["params"]}:
            was, now = old["params"].get(name), _as_listed(new["params"].get(name))
            if was != now or type(was) is not type(now):
                return f"{name} changed: {shown(was)} → {shown(now)}"
        for port in {**before.inputs, **inputs}:
            if before.inputs.get(port) != inputs.get(port):
                if port == "file":
                    return "file changed" if step.wires else "picture changed"
                return f"{port.strip('${}')} changed"
        return "removed from the store"


def _as_listed(value: Any) -> Any:
    """A param as JSON gives it back."""
    return [_as_listed(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class PlannedStep:
    """What would happen to a step: how many calls in which state, and each one's reason."""

    name: str
    calls: tuple[Call, ...]

    def states(self) -> Mapping[str, int]:
        """How many calls are in each state, as words: `cached`, `run`, `depends on boxes`."""
        found: dict[str, int] = {}
        for call in self.calls:
            word = f"depends on {call.reason}" if call.state == "waits" else call.state
            found[word] = found.get(word, 0) + 1
        return found


def walk(planner: Planner, only: set[str], missing: Gap) -> Iterator[tuple[Bound, list[Call]]]:
    """The calls of each step and window by look-ups alone; what the store does not have is `missing` to the steps below."""
    for each in rounds(planner.graph, planner.elements, lambda: WINDOW, only):
        for step in each.steps:
            calls = planner.calls(step, each.window)
            for call in calls:
                if call.manifest:
                    planner.done(call, call.manifest.outputs)
                else:
                    planner.elements.leave_out(step, call.position, missing)
            yield step, calls


def make_plan(planner: Planner, only: set[str]) -> list[PlannedStep]:
    """What would happen to each step, without running anything."""
    found: dict[str, list[Call]] = {name: [] for name in planner.graph.steps if name in only}
    for step, calls in walk(planner, only, Gap.WAITING):
        if failed := next((call for call in calls if call.state == "failed"), None):
            raise Unreachable(failed.reason)
        if not calls and (waiting := next((c for c in _above(step, found) if c.state != "cached"), None)):
            calls = [Call(step, (), "", "waits", waiting.step.name)]
        found[step.name] += calls
    return [PlannedStep(name, tuple(calls)) for name, calls in found.items()]


def _above(step: Bound, found: Mapping[str, Sequence[Call]]) -> Iterator[Call]:
    return (call for wire in step.wires.values() for call in found.get(wire.step, ()))


