"""The elements of a graph while it is walked: where each stands, what it is called, and which value it has by now.

Only references into the store are held, so that memory does not grow with the size of what is worked on.
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

    def open_list(self, step: Bound, position: Position, count: int) -> None:
        """A list of `count` elements begins below `position`."""
        self._children.setdefault(step.gives, {})[position] = count

    def count(self, lineage: Lineage, position: Position) -> int | None:
        """How many elements the list has there, if that is known."""
        return self._children.get(lineage, {}).get(position)

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
        """Note what one call of a step gave."""
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


def rounds(graph: Graph, elements: Elements, window: int, only: set[str]) -> Iterator[tuple[Bound, int, range | None]]:
    """Each step with each window of its outermost list, in an order in which what it rests on is through.

    Steps between two joins over whole lists go together: window after window, and within a window step after step,
    so that a model does all it can for the window before the next has its turn.
    """
    groups: dict[tuple[int, Lineage], list[Bound]] = {}
    for step in graph:
        if step.name in only:
            groups.setdefault((graph.phases[step.name], step.over[:1]), []).append(step)
    for (_, root), steps in sorted(groups.items(), key=lambda item: item[0][0]):
        if not root:
            yield from ((step, 0, None) for step in steps)
            continue
        count = elements.count(root, ()) or 0
        for number, start in enumerate(range(0, max(count, 1), window)):
            yield from ((step, number, range(start, min(start + window, count))) for step in steps)
