"""Haystack's pipeline, which keeps nothing."""

import time

from chain import Pixels, arguments, report, source, step
from haystack import Pipeline, component


@component
class Step:
    def __init__(self, index: int) -> None:
        self.index = index

    @component.output_types(image=Pixels)
    def run(self, image: Pixels) -> dict[str, Pixels]:
        return {"image": step(image, self.index)}


count, _ = arguments()
started = time.perf_counter()
pipeline = Pipeline()
for index in range(count):
    pipeline.add_component(f"n{index}", Step(index))
for index in range(count - 1):
    pipeline.connect(f"n{index}.image", f"n{index + 1}.image")
found = pipeline.run({"n0": {"image": source()}})[f"n{count - 1}"]["image"]
report(time.perf_counter() - started, found)
