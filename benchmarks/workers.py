"""Runs on 1, 2 and 4 workers, what a window costs, and how soon a warm worker begins: `python benchmarks/workers.py`.

A node waits 50 ms for each picture instead of computing, so that the machine's cores do not limit the workers. Orchestration
is the workers' time in which none of them was at a picture: wall × workers, less the pictures' waiting. How soon a worker
begins is measured with the toybox's DETR.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "folder")]

from goals import figure
from processes import ROOT, photoloom, server, timed, worker

from flows import own
from flows.cluster import Workers
from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.remote import SECONDS as LONG
from flows.remote import RemoteCaller
from flows.store import Store

SECONDS = 0.05


class Counted(Workers):
    """The workers of a scheduler, and how many windows were handed over to them."""

    windows = 0

    def submit(self, *given: Any) -> Any:
        self.windows += 1
        return super().submit(*given)


def folder_of(pictures: int, folder: Path) -> str:
    """Pictures of noise, and the pipeline over them."""
    noise = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for index in range(pictures):
        pil.fromarray(noise.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "photos" / f"{index:05d}.png")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    text = f'name: wait\nsteps:\n  photo: {{node: Load, path: "{folder}/photos"}}\n'
    text += f'  waited: {{node: Wait, image: photo, model: "{folder}/model", seconds: {SECONDS}}}\n'
    return text


def run(text: str, folder: Path, store: str, window: int, workers: Workers | None) -> float:
    """Seconds of the step `waited`, over a new store, on workers or in this process."""
    caller = {"caller": partial(RemoteCaller, workers)} if workers else {}
    graph = Pipeline.from_yaml(text).graph(allow=[folder])
    execution = Execution(graph, Store(folder / store), window=window, batch=8, **caller)
    execution.run()
    return execution.result.steps["waited"].seconds


def throughput(environment: Mapping[str, str], folder: Path, text: str, pictures: int, counts: tuple[int, ...]) -> None:
    """Print seconds, speed-up, and orchestration as a share and for each window, in this process and on workers."""
    print(f"{'workers':>8}{'seconds':>10}{'pictures/s':>12}{'against one':>13}{'orchestration':>15}{'ms a window':>13}")

    def row(name: object, count: int, seconds: float, alone: float, windows: int = 0) -> None:
        idle = seconds * count - pictures * SECONDS
        each = f"{1000 * idle / windows:>13.0f}" if windows else ""
        print(f"{name:>8}{seconds:>10.2f}{pictures / seconds:>12.1f}{alone / seconds:>13.2f}"
              f"{idle / (seconds * count):>15.1%}{each}")

    here, alone = run(text, folder, "here", 256, None), 0.0
    with ExitStack() as roofs:
        address = roofs.enter_context(worker(environment))
        for before, count in pairwise((1, *counts)):
            for _ in range(count - before):
                roofs.enter_context(worker(environment, "--scheduler", address))
            workers = Counted(address)
            run(text, folder, f"warm-{count}", 256, workers)  # in the first run the workers import what they need
            workers.windows = 0
            seconds = run(text, folder, f"timed-{count}", 256, workers)
            if not alone:
                alone = seconds
                row("here", 1, here, alone)
            row(count, count, seconds, alone, workers.windows)


def handing_over(environment: Mapping[str, str], folder: Path, text: str, pictures: int) -> None:
    """Print what one window costs by itself: windows of a picture that nothing waits for, one after another, on one worker
    beside the same in this process, which has reading and keeping the pictures too."""
    text = text.replace(f"seconds: {SECONDS}", "seconds: 0.0")
    with worker(environment) as address:
        workers = Workers(address)
        run(text, folder, "handed-warm", 1, workers)
        seconds = run(text, folder, "handed", 1, workers) - run(text, folder, "kept", 1, None)
    each = seconds / pictures
    print("\n" + figure("handing one window over to a worker", 1000 * each, "ms"))
    print(figure(f"its share of the {LONG:g} s that a window takes", 100 * each / LONG, "%"))


def warm_start(environment: Mapping[str, str], folder: Path, rounds: int) -> None:
    """Print the seconds from the command to the first pictures in DETR's hands, on a worker that is new and on one that has
    run before."""
    log, found = Path(environment["BEGAN"]), []
    (folder / "find.yaml").write_text(
        f'name: find\nmodels: toybox\nsteps:\n  photo: {{node: Load, path: "{ROOT}/models/toybox/examples/cat*.png"}}\n'
        "  found: {node: Find, image: photo}\noutputs: [found]\n"
    )
    with worker(environment):
        for index in range(rounds + 1):
            log.write_text("")
            command = photoloom(
                folder / "find.yaml", "--store", folder / f"start-{index}", "--out", folder / "out", "--nodes",
                HERE / "worker_nodes.py", "--allow", ROOT, "--on", "worker",
            )
            started = time.time()
            timed(environment, command)
            found.append(float(log.read_text().splitlines()[0]) - started)
    print(figure("from the command to the first model step, new", found[0], "s"))
    print(figure("from the command to the first model step, warm", float(np.median(found[1:])), "s", "≤ 2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    os.environ |= {"BEGAN": os.devnull, "OMP_NUM_THREADS": "1"}
    own.import_nodes(HERE / "worker_nodes.py")
    with tempfile.TemporaryDirectory() as name, server() as (environment, _):
        folder = Path(name)
        environment = {**environment, "BEGAN": str(folder / "began"), "OMP_NUM_THREADS": "1"}
        text = folder_of(given.pictures, folder)
        counts = tuple(sorted(map(int, given.workers.split(","))))
        throughput(environment, folder, text, given.pictures, counts)
        handing_over(environment, folder, text, given.pictures)
        warm_start(environment, folder, given.rounds)


if __name__ == "__main__":
    main()
