"""How checking and planning grow with a graph: `python benchmarks/graph_scale.py`.

Three shapes of light nodes, as YAML text: a chain, a fan of independent steps, and layers of ten steps with two inputs each.
Each is timed from its text to a spec, to a checked graph, to a plan against an empty store and against one that has everything.
Seconds of processor time, the least of a few rounds, each in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.plan import Planner, make_plan
from flows.spec import parse
from flows.store import Store
from nodes import Node, Text

SIZES, ROUNDS = (100, 1_000, 10_000), 3


class Number(Node):
    """A number in words."""

    version: ClassVar[str] = "1"
    index: int

    def run(self, left: Text | None = None, right: Text | None = None) -> Text:
        return Text(f"{left.value if left else ''}{self.index}"[-20:])


def _inputs(shape: str, index: int) -> Iterator[tuple[str, int]]:
    if shape == "chain" and index:
        yield "left", index - 1
    if shape == "layers" and index >= 10:
        above = index - index % 10 - 10
        yield "left", above + index % 10
        yield "right", above + (index + 3) % 10


def text(shape: str, count: int) -> str:
    """A pipeline of `count` steps as YAML."""
    lines = [f"name: {shape}", "steps:"]
    for index in range(count):
        wires = "".join(f", {port}: s{above}" for port, above in _inputs(shape, index))
        lines.append(f"  s{index}: {{node: Number, index: {index}{wires}}}")
    return "\n".join([*lines, f"outputs: [s{count - 1}]", ""])


def timed(shape: str, count: int, folder: Path) -> dict[str, float]:
    """Seconds of each stage, in this process."""
    marks, written = [time.process_time()], text(shape, count)
    found: dict[str, float] = {}

    def mark(stage: str) -> None:
        marks.append(time.process_time())
        found[stage] = marks[-1] - marks[-2]

    spec = parse(written)
    mark("spec")
    graph = Pipeline.from_spec(spec).graph()
    mark("graph")
    make_plan(Planner(graph, Store(folder)), set(graph.steps))
    mark("plan, empty")
    Execution(graph, Store(folder)).run()
    mark("run")
    planned = make_plan(Planner(graph, Store(folder)), set(graph.steps))
    mark("plan, full")
    assert all(call.state == "cached" for step in planned for call in step.calls)
    return found


def main() -> None:
    stages = ("spec", "graph", "plan, empty", "plan, full")
    print(f"{'':<16}" + "".join(f"{stage:>14}" for stage in (*stages, "to a plan", "run")) + f"{'µs a step':>14}")
    for shape in ("chain", "fan", "layers"):
        for count in SIZES:
            rounds = []
            for _ in range(ROUNDS):
                with tempfile.TemporaryDirectory() as folder:
                    words = [sys.executable, __file__, shape, str(count), folder]
                    rounds.append(json.loads(subprocess.run(words, check=True, capture_output=True).stdout))
            least = {stage: min(found[stage] for found in rounds) for stage in rounds[0]}
            total = sum(least[stage] for stage in stages[:3])
            shown = [*(least[stage] for stage in stages), total, least["run"]]
            figures = "".join(f"{seconds:>14.3f}" for seconds in shown)
            print(f"{shape:<7}{count:>7}  {figures}{1e6 * total / count:>14.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(timed(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main()
