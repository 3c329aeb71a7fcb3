"""A node that waits as a model on a GPU has its host wait: `photoloom run … --nodes benchmarks/worker_nodes.py`."""

import os
import time

from nodes import Image, Model, Node


class Wait(Node):
    """A picture's opposite after `seconds`. When it begins is a line in the file that WAITED names."""

    model: Model = Model(role="wait")
    seconds: float = 0.0

    def run(self, image: Image) -> Image:
        with open(os.environ["WAITED"], "a") as file:
            file.write(f"{time.time()}\n")
        time.sleep(self.seconds)
        return Image(255 - image.pixels)
