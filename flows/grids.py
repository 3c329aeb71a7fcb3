"""The grids of a sweep: for each output and element one sheet of pictures, with columns and rows by the swept params."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import TypeAlias

from flows.elements import Position
from flows.graph import Graph, Wire
from flows.results import Failure
from flows.sweep import Point, Sweep, text_of
from nodes.artifacts import Artifact, Image, Masks
from nodes.base import Sink
from nodes.errors import InputError
from nodes.files import as_file
from nodes.grid import Sheet, cell_side, grid, thumbnail, writable

Read: TypeAlias = Callable[[str, str], Iterator[tuple[Position, str, Artifact]]]
"""The values of one output of a step in the order of their positions, each with its position and id. Several are read
side by side."""

_Cell: TypeAlias = tuple[Position, str, Point, Image]


def write_grids(sweep: Sweep, graph: Graph, run: Path, read: Read, failures: Sequence[Failure]) -> list[dict[str, str]]:
    """Write `grid/<output>/<id>.png` for each element of each output that shows pictures and that the sweep reaches.

    `graph` is that of the swept pipeline. Gives id, output and path of each grid.
    """
    written = []
    for wire in _pictures(sweep, graph):
        output = _Output(sweep, graph, wire)
        for id_, cells in output.elements(read):
            picture = output.drawn(id_, cells, failures)
            base = run / "grid" / str(wire)
            path = base / f"{id_ or wire.step}.png"
            if not Path(os.path.normpath(path)).is_relative_to(base):
                raise InputError(f'output "{wire}": {id_} leads out of the run\'s folder')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_file(picture, metadata=False).data.tobytes())
            written.append({"id": id_ or wire.step, "output": str(wire), "path": str(path)})
    return written


def _pictures(sweep: Sweep, graph: Graph) -> list[Wire]:
    """The outputs of the pipeline as written that are pictures, and the pictures that it saves under names of their own;
    of these the ones that the sweep reaches."""
    steps = {copy: step for step in sweep.reach if sweep.reach[step] for copy in sweep.copies[step].values()}
    saved = [wire for step in graph if isinstance(step.node, Sink) for wire in step.wires.values()]
    return list(dict.fromkeys(
        Wire(steps[wire.step], wire.output) for wire in (*graph.outputs, *saved)
        if wire.step in steps and issubclass(graph.steps[wire.step].node.outputs[wire.output].type, Image | Masks)
    ))


class _Output:
    """One output of the pipeline as written. Its grids have a column for each value of the first swept param that reaches
    it, a row for each of the second, and a sheet for each combination of the others."""

    def __init__(self, sweep: Sweep, graph: Graph, wire: Wire) -> None:
        self.graph, self.wire, self.copies = graph, wire, sweep.copies[wire.step]
        labels = [
            [f"{name} {writable(text_of(value)) or f'no. {number}'}" for number, value in enumerate(sweep.values[name], 1)]
            for name in sweep.reach[wire.step]
        ]
        self.columns, self.rows, self.others = labels[0], labels[1] if len(labels) > 1 else [""], labels[2:]

    def elements(self, read: Read) -> Iterator[tuple[str, dict[Point, Image]]]:
        """Each element's id, and what the combinations made of it. Where they call it differently, as when the pictures
        themselves are swept, its position is its id."""
        side = cell_side(len(self.columns), len(self.rows) * math.prod(map(len, self.others)))

        def small(point: Point, found: tuple[Position, str, Artifact]) -> _Cell:
            position, id_, value = found
            assert isinstance(value, Image | Masks)
            return position, id_, point, thumbnail(value, side)

        # `map`, since a generator of ours would hold on to its last full picture, for each combination.
        streams = (map(partial(small, point), read(copy, self.wire.output)) for point, copy in self.copies.items())
        for position, group in groupby(heapq.merge(*streams, key=itemgetter(0)), itemgetter(0)):
            cells = list(group)
            ids = {id_ for _, id_, _, _ in cells}
            yield ids.pop() if len(ids) == 1 else "/".join(map(str, position)), {point: cell for _, _, point, cell in cells}

    def drawn(self, id_: str, cells: Mapping[Point, Image], failures: Sequence[Failure]) -> Image:
        """The grid of one element."""

        def cell(point: Point) -> Image | str:
            return cells[point] if point in cells else self._why_none(self.copies[point], id_, failures)

        swept = 2 + len(self.others) if self.rows != [""] else 1
        sheets = [
            Sheet(", ".join(labels[index] for labels, index in zip(self.others, rest, strict=True)), [
                [cell((column, row, *rest)[:swept]) for column in range(len(self.columns))] for row in range(len(self.rows))
            ])
            for rest in product(*(range(len(labels)) for labels in self.others))
        ]
        return grid(self.columns, self.rows, sheets)

    def _why_none(self, copy: str, id_: str, failures: Sequence[Failure]) -> str:
        """`failed` where a step that this one rests on failed for the element, for all of them, or for a part of it."""
        above = self.graph.needed({copy})
        ids = [failure.id for failure in failures if failure.step in above]
        related = (not id_ or not each or f"{id_}/".startswith(f"{each}/") or f"{each}/".startswith(f"{id_}/") for each in ids)
        return "failed" if any(related) else "no picture"
