"""A checked pipeline: nodes with their params bound, wires between them, and the list rule's lineages. Pure data."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from pathlib import Path

from flows.reading import Value
from flows.spec import Spec
from nodes.artifacts import Artifact
from nodes.base import Node, Port, Source

Lineage = tuple[str, ...]
"""The lists that an element's position counts in, outermost first, each by the step that made it."""


@dataclass(frozen=True)
class Wire:
    """The source of an input: one output of a step."""

    step: str
    output: str

    def __str__(self) -> str:
        return self.step if self.output == "output" else f"{self.step}.{self.output}"


@dataclass(frozen=True)
class Bound:
    """One step of a graph. It runs once for each element of `lineage`; its outputs have the lineage `gives`.

    `texts` holds the params that wait for a step's Text or Score: their templates, whose `${step}` are also wires.
    """

    name: str
    node: Node
    wires: Mapping[str, Wire]
    lineage: Lineage
    gives: Lineage
    texts: Mapping[str, str] = field(default_factory=dict)
    trusted: frozenset[str] = frozenset()
    """The params whose value the caller gave, and not the file."""

    def port(self, name: str) -> Port:
        """The port that a wire ends in; one inside a text takes any artifact that was allowed there."""
        return self.node.ports.get(name) or Port(name, Artifact)

    @property
    def over(self) -> Lineage:
        """The list whose elements are made one at a time: a source reads each of its files by itself, and a counted node
        makes each of its things so."""
        return self.gives if isinstance(self.node, Source) or self.node.counted else self.lineage

    @property
    def length(self) -> int | None:
        """How many elements a counted node's list has, each time; of all others that is known once it is there."""
        return getattr(self.node, self.node.counted[0]) if self.node.counted else None

    @property
    def fans_out(self) -> bool:
        """Whether one call of the step gives a list."""
        return self.gives != self.over


@dataclass(frozen=True)
class Graph:
    """A pipeline that was found right: steps in an order in which each comes after its inputs."""

    spec: Spec
    steps: Mapping[str, Bound]
    outputs: tuple[Wire, ...]
    models: Mapping[str, str | Mapping[str, Value]]
    as_run: Spec
    """The pipeline with the values of this run as its params' defaults."""
    roots: tuple[Path, ...] | None = None
    """The folders that sources named by the file itself must lie under."""
    apart_from: frozenset[Path] = frozenset()
    """Files and folders that count as not there, unless a source's path itself leads into one; real paths."""

    def __iter__(self) -> Iterator[Bound]:
        return iter(self.steps.values())

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.spec.name

    def needed(self, names: Collection[str]) -> set[str]:
        """The steps named and all that they rest on; all steps where none is named."""
        found: set[str] = set()
        waiting = list(names or self.steps)
        while waiting:
            if (name := waiting.pop()) not in found:
                found.add(name)
                waiting += [wire.step for wire in self.steps[name].wires.values()]
        return found

    @cached_property
    def phases(self) -> Mapping[str, int]:
        """How many joins over whole lists stand before each step: those must be over before it can begin."""
        found: dict[str, int] = {}
        for step in self:
            found[step.name] = 0
            for port, wire in step.wires.items():
                above = self.steps[wire.step]
                # Another root, or the whole of this one: all its windows must be through first.
                joins = step.port(port).many and len(above.gives) == 1
                whole = joins or above.over[:1] != step.over[:1]
                found[step.name] = max(found[step.name], found[wire.step] + int(whole))
        return found

    def group(self, step: Bound) -> tuple[int, Hashable]:
        """The steps of one group go together through the windows of one list, between the joins over it. Counted lists of
        one length are as one, so that in a sweep over them a model does all it can before the next has its turn."""
        root = step.over[:1]
        length = self.steps[root[0]].length if root else None
        return self.phases[step.name], root if length is None else length


def alone(node: Node, position: Sequence[int]) -> Node:
    """A step's node as it makes the element at `position`."""
    return node.nth(position[-1]) if node.counted else node


def order(edges: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Names so that each comes after those it rests on, keeping the order given where that is free; or a cycle.

    Returns the order and nothing, or nothing and the cycle as a path: each feeds the next, and the first stands again at
    its end.
    """
    names, given = list(edges), {name: index for index, name in enumerate(edges)}
    sorter = TopologicalSorter(edges)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1][1:]
        first = min(range(len(cycle)), key=lambda index: given[cycle[index]])
        return [], [*cycle[first:], *cycle[: first + 1]]
    found: list[str] = []
    ready = sorted(given[name] for name in sorter.get_ready())  # a sorted list is a heap
    while ready:
        found.append(name := names[heappop(ready)])
        sorter.done(name)
        for after in sorter.get_ready():
            heappush(ready, given[after])
    return found, []


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart, which code hosts draw: steps with their node, wires with the type they carry."""
    lines = ["flowchart LR"]
    for step in graph:
        lines.append(f'    {step.name}["{step.name}<br/><small>{type(step.node).__name__}</small>"]')
    for step in graph:
        for port, wire in step.wires.items():
            carried = graph.steps[wire.step].node.outputs[wire.output].type.__name__
            lines.append(f'    {wire.step} -- "{carried} → {port.strip("${}")}" --> {step.name}')
    return "\n".join(lines) + "\n"
