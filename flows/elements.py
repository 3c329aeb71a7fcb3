"""The elements of a graph while it is walked: where each stands, what it is called, and which value it has by now.

Only references into the store are held, and of windows that are through only those that a later join needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from flows.graph import Bound, Graph, Lineage, Wire
from flows.store import Ref

Position = tuple[int, ...]
"""Where an element stands: its index in each list of its lineage."""


class Gap(StrEnum):
    """Why an element has no value."""

    FAILED = "failed"
    SKIPPED = "skipped"
    WAITING = "waiting"


@dataclass(frozen=True)
class Hole:
    """An input that is not there: why, and the step it was to come from."""

    why: Gap
    step: str


@dataclass
class Elements:
    """What is known of all elements so far."""

    graph: Graph
    root_ids: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _children: dict[Lineage, dict[Position, int]] = field(default_factory=dict)
    _values: dict[str, dict[Position, Mapping[str, Ref]]] = field(default_factory=dict)
    _gaps: dict[str, dict[Position, Gap]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lengths = {step.gives: step.length for step in self.graph if step.length is not None}
        self._consumed: set[str] = set()
        self._kept: set[str] = set()
        for step in self.graph:
            for wire in step.wires.values():
                self._consumed.add(wire.step)
                if self.graph.group(self.graph.steps[wire.step]) != self.graph.group(step):
                    self._kept.add(wire.step)
        kept = (self.graph.steps[name].gives for name in self._kept)
        self._kept_lists = {lineage[:depth] for lineage in kept for depth in range(len(lineage) + 1)}

    def again(self) -> Elements:
        """The same elements before a walk."""
        found = Elements(self.graph, self.root_ids)
        for name, ids in self.root_ids.items():
            found.open_list(self.graph.steps[name], (), len(ids))
        return found

    def open_list(self, step: Bound, position: Position, count: int) -> None:
        """A list of `count` elements begins below `position`."""
        self._children.setdefault(step.gives, {})[position] = count

    def count(self, lineage: Lineage, position: Position) -> int | None:
        """How many elements the list has there, if that is known."""
        known = self._lengths.get(lineage)
        return self._children.get(lineage, {}).get(position) if known is None else known

    def positions(self, lineage: Lineage, window: range | None = None) -> Iterator[Position]:
        """The positions of a list's elements in order; those of a window of the outermost list."""
        if not lineage:
            yield ()
        elif len(lineage) == 1:
            for index in window if window is not None else range(self.count(lineage, ()) or 0):
                yield (index,)
        else:
            for above in self.positions(lineage[:-1], window):
                for index in range(self.count(lineage, above) or 0):
                    yield (*above, index)

    def id_of(self, lineage: Lineage, position: Position) -> str:
        """What people call an element: its picture's id, then its index in each list; empty for a single one."""
        if not position:
            return ""
        ids = self.root_ids.get(lineage[0])
        return "/".join([ids[position[0]] if ids else str(position[0]), *map(str, position[1:])])

    # --- values ---

    def give(self, step: Bound, position: Position, outputs: Mapping[str, Ref | Sequence[Ref]]) -> None:
        """Note what one call of a step gave, if another step asks for it."""
        if step.name not in self._consumed:
            return
        self._gaps.get(step.name, {}).pop(position, None)
        values = self._values.setdefault(step.name, {})
        if not step.fans_out:
            values[position] = outputs  # type: ignore[assignment]
            return
        lists: Mapping[str, Sequence[Ref]] = outputs  # type: ignore[assignment]
        count = len(next(iter(lists.values())))
        self.open_list(step, position, count)
        for index in range(count):
            values[(*position, index)] = {name: refs[index] for name, refs in lists.items()}

    def leave_out(self, step: Bound, position: Position, why: Gap) -> None:
        """Note that one call of a step gave nothing."""
        if step.name in self._consumed:
            self._gaps.setdefault(step.name, {})[position] = why

    def value(self, wire: Wire, position: Position) -> Ref | Hole:
        """What a wire carries to an element at or below `position`."""
        source = self.graph.steps[wire.step]
        found = self._values.get(wire.step, {}).get(position[: len(source.gives)])
        return found[wire.output] if found else self._hole(source, position)

    def listed(self, wire: Wire, position: Position) -> list[Ref | Hole]:
        """What a wire carries to a join at `position`, in order; one hole where not even the list is there."""
        source = self.graph.steps[wire.step]
        above = position[: len(source.gives) - 1]
        count = self.count(source.gives, above)
        if count is None:
            return [self._hole(source, above)]
        return [self.value(wire, (*above, index)) for index in range(count)]

    def _hole(self, source: Bound, position: Position) -> Hole:
        why = self._gaps.get(source.name, {}).get(position[: len(source.over)])
        return Hole(why or Gap.WAITING, source.name)

    def let_go(self, steps: Sequence[Bound], window: range) -> None:
        """A window of these steps is through: forget the values that no other steps will ask for."""
        mine = [step for step in steps if step.name in self._consumed and step.name not in self._kept]
        for step in mine:
            for held, lineage in ((self._values, step.gives), (self._gaps, step.over)):
                if found := held.get(step.name):
                    for position in list(self.positions(lineage, window)):
                        found.pop(position, None)
        for step in reversed(mine):
            if step.fans_out and step.gives not in self._kept_lists:
                for position in list(self.positions(step.over, window)):
                    self._children.get(step.gives, {}).pop(position, None)
