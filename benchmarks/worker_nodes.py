"""Nodes that tell when they begin: `photoloom run … --nodes benchmarks/worker_nodes.py`."""

import os
import time

from nodes import Boxes, Detect, Image, Model, Node


def begin() -> None:
    """Write the time as a line into the file that BEGAN names."""
    with open(os.environ["BEGAN"], "a") as file:
        file.write(f"{time.time()}\n")


class Wait(Node):
    """A picture's opposite after `seconds`: it waits as a model on a GPU has its host wait."""

    model: Model = Model(role="wait")
    seconds: float = 0.0

    def run(self, image: Image) -> Image:
        begin()
        time.sleep(self.seconds)
        return Image(255 - image.pixels)


class Find(Detect):
    """Detect, which begins once its model is loaded."""

    def run_batch(self, image: list[Image]) -> list[Boxes]:
        self.prepare()
        begin()
        return super().run_batch(image)
