"""Runs on 1, 2 and 4 workers, and how soon a warm worker begins: `python benchmarks/workers.py`.

The node waits 50 ms for each picture instead of computing, so that the machine's cores do not limit the workers. Orchestration
is the share of the workers' time in which none of them was at a picture: wall × workers, less the pictures' waiting.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "folder")]

from processes import photoloom, server, timed

from flows import cluster, own
from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.remote import RemoteCaller
from flows.store import Store

SECONDS = 0.05


@contextmanager
def worker(environment: Mapping[str, str], *words: str) -> Iterator[str]:
    """A `photoloom worker` for the length of the block; gives its scheduler's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "worker", *words], cwd=HERE.parent, env=environment, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )
    assert process.stderr
    try:
        yield next(line.split()[3].rstrip(";") for line in process.stderr if line.startswith("working: "))
    finally:
        process.terminate()
        process.communicate(timeout=60)


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
    (folder / "wait.yaml").write_text(text)
    return text


def throughput(environment: Mapping[str, str], folder: Path, text: str, pictures: int, counts: tuple[int, ...]) -> None:
    """Print seconds, speed-up and the share of orchestration, in this process and for each number of workers."""
    print(f"{'workers':>8}{'seconds':>10}{'pictures/s':>12}{'against one':>13}{'orchestration':>15}")

    def run(store: str, **options: Any) -> float:
        graph = Pipeline.from_yaml(text).graph(allow=[folder])
        execution = Execution(graph, Store(folder / store), window=256, batch=8, **options)
        execution.run()
        return execution.result.steps["waited"].seconds

    def row(name: object, count: int, seconds: float, alone: float) -> None:
        idle = 1 - pictures * SECONDS / (seconds * count)
        print(f"{name:>8}{seconds:>10.2f}{pictures / seconds:>12.1f}{alone / seconds:>13.2f}{idle:>15.1%}")

    here, alone = run("here"), 0.0
    with ExitStack() as roofs:
        address = roofs.enter_context(worker(environment))
        for before, count in pairwise((1, *counts)):
            for _ in range(count - before):
                roofs.enter_context(worker(environment, "--scheduler", address))
            caller = partial(RemoteCaller, cluster.workers_at(address))
            run(f"warm-{count}", caller=caller)  # in the first run the workers import what they need
            seconds = run(f"timed-{count}", caller=caller)
            if not alone:
                alone = seconds
                row("here", 1, here, alone)
            row(count, count, seconds, alone)


def warm_start(environment: Mapping[str, str], folder: Path, rounds: int) -> None:
    """Print the seconds from the command to the first picture in the model's hands, on a worker that has run before."""
    log, found = Path(environment["WAITED"]), []
    with worker(environment):
        for index in range(rounds + 1):
            log.write_text("")
            command = photoloom(
                folder / "wait.yaml", "--store", folder / f"start-{index}", "--out", folder / "out", "--nodes",
                HERE / "worker_nodes.py", "--allow", folder, "--only", "waited", "--on", "worker",
            )
            started = time.time()
            timed(environment, command)
            found.append(float(log.read_text().splitlines()[0]) - started)
    print(f"\nfrom the command to the first model step: {found[0]:.2f} s on a new worker, "
          f"{float(np.median(found[1:])):.2f} s on a warm one (median of {rounds})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    os.environ |= {"WAITED": os.devnull, "OMP_NUM_THREADS": "1"}
    own.import_nodes(HERE / "worker_nodes.py")
    with tempfile.TemporaryDirectory() as name, server() as (environment, _):
        folder = Path(name)
        environment = {**environment, "WAITED": str(folder / "waited"), "OMP_NUM_THREADS": "1"}
        text = folder_of(given.pictures, folder)
        counts = tuple(sorted(map(int, given.workers.split(","))))
        throughput(environment, folder, text, given.pictures, counts)
        few = json.dumps(str(folder / "photos" / "0000?.png"))
        (folder / "wait.yaml").write_text(text.replace(f'"{folder}/photos"', few))
        warm_start(environment, folder, given.rounds)


if __name__ == "__main__":
    main()
