"""What the benchmarks share: a Prefect server of their own, workers, and whole processes with what they took."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REPLACE = ROOT / "pipelines" / "replace_object.yaml"

Environment = Mapping[str, str]
Command = list[str]


@dataclass(frozen=True)
class Ended:
    """A process that ended well: the JSON it printed last, wall seconds from start to end, the processor's seconds, and
    peak resident memory in MB."""

    told: dict[str, Any]
    seconds: float
    cpu: float
    peak: float

    def ran(self) -> dict[str, int]:
        """How many elements of each of Photoloom's steps were computed."""
        return {name: step["ran"] for name, step in self.told["steps"].items()}


@contextmanager
def server() -> Iterator[tuple[Environment, float]]:
    """An environment with a Prefect server of its own on a free port, and the seconds that its start took."""
    with tempfile.TemporaryDirectory() as home, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": home, "PHOTOLOOM_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        started = time.perf_counter()
        try:
            subprocess.run([sys.executable, "-m", "flows", "server", "start"], cwd=ROOT, env=environment, check=True,
                           stdout=subprocess.DEVNULL)
            yield environment, time.perf_counter() - started
        finally:
            subprocess.run([sys.executable, "-m", "flows", "server", "stop"], cwd=ROOT, env=environment, check=False,
                           stdout=subprocess.DEVNULL)


@contextmanager
def worker(environment: Environment, *words: str) -> Iterator[str]:
    """A `photoloom worker` for the length of the block; gives its scheduler's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "worker", *words], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )
    assert process.stderr
    try:
        yield next(line.split()[3].rstrip(";") for line in process.stderr if line.startswith("working: "))
    finally:
        process.terminate()
        process.communicate(timeout=60)


@contextmanager
def workers(environment: Environment, count: int) -> Iterator[None]:
    """So many workers on one scheduler for the length of the block."""
    with ExitStack() as roofs:
        joined: tuple[str, ...] = ()
        for _ in range(count):
            joined = "--scheduler", roofs.enter_context(worker(environment, *joined))
        yield


def photoloom(pipeline: Path, *words: object, batch: object = 8, window: object = 64) -> Command:
    """The command `photoloom run … --json`."""
    return [sys.executable, "-m", "flows", "run", str(pipeline), *map(str, words), "--batch", str(batch),
            "--window", str(window), "--json"]


def script(name: str, *words: object) -> Command:
    """The command of a script in this folder."""
    return [sys.executable, str(HERE / name), *map(str, words)]


def timed(environment: Environment, *commands: Command) -> list[Ended]:
    """Run whole processes, all at once."""
    with ThreadPoolExecutor(len(commands)) as together:
        return list(together.map(lambda command: _timed(environment, command), commands))


def _timed(environment: Environment, command: Command) -> Ended:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{err.read()[-3000:]}")
        told = json.loads(out.read().strip().splitlines()[-1])
        return Ended(told, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
