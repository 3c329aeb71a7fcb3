"""Photoloom: the same chain as a pipeline, on a Prefect server that already runs.

`seconds` is the engine's own: looking up, running, encoding, writing. `flow` is what Prefect and the report add to it.
"""

import sys
import time
from pathlib import Path

process_started = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parents[2]))

from typing import ClassVar

from chain import arguments, report, source, step

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.store import Store
from nodes import Image, Node


class Noise(Node):
    """The chain's first picture."""

    version: ClassVar[str] = "1"

    def run(self) -> Image:
        return Image(source())


class Invert(Node):
    """The chain's step."""

    version: ClassVar[str] = "1"
    index: int

    def run(self, image: Image) -> Image:
        return Image(step(image.pixels, self.index))


count, folder = arguments()
last = Noise().step("n0")
for index in range(count):
    last = Invert(index=index).step(f"n{index + 1}", image=last)
imported = time.perf_counter() - process_started

if "--engine" in sys.argv:
    started = time.perf_counter()
    execution = Execution(Pipeline("chain", outputs=[last]).graph(), Store(folder / "store"))
    execution.run()
    seconds = time.perf_counter() - started
    ((_, _, image),) = execution.values(last.name, "output")
else:
    started = time.perf_counter()
    result = Pipeline("chain", outputs=[last]).run(store=folder / "store", out=folder / "out")
    seconds = time.perf_counter() - started
    image = result[last.name][0]
report(seconds, image.pixels, imported=imported)
