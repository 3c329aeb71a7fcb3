"""`photoloom worker`: one roof over a scheduler, a worker for each GPU and what serves deployments; what dies is restarted."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flows import cluster
from flows.worker import GRACE, STATE
from nodes.errors import WorkerError
from nodes.models import gpus

LOOPBACK = "127.0.0.1"
LOOK = 0.1
"""Seconds between two looks whether all are alive."""
SOON, LATEST = 0.1, 30.0
"""Seconds before one that died is started again: twice as many each time it dies young."""
YOUNG = 10.0

DASK = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",  # an element that kills two workers is to fail alone, soon
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "60s",  # a host that vanishes says nothing
    "DASK_LOGGING__DISTRIBUTED": "error",
}
"""How Dask's processes are set, where the environment does not say otherwise."""


@dataclass
class Child:
    """A process that is kept alive: `words` follow Python's name on its command line."""

    name: str
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    restarts: int = -1
    _began: float = 0.0
    _again: float = SOON
    _due: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def look(self, say: Callable[[str], None]) -> None:
        """Start it if it does not run, and its time has come."""
        now = time.monotonic()
        if self.alive:
            return
        if self.process is not None:
            say(f"{self.name} (process {self.process.pid}) ended with {self.process.returncode}; it is started again")
            self._again = min(2 * self._again, LATEST) if now - self._began < YOUNG else SOON
            self.process, self._due = None, now + self._again
        if now >= self._due:
            if state := self.environment.get(STATE):
                Path(state).unlink(missing_ok=True)
            # A session of its own: Ctrl-C is for the roof, which ends them in order.
            self.process = subprocess.Popen(
                [sys.executable, *self.words], env={**DASK, **os.environ, **self.environment}, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=_end_with_parent,
            )
            self._began, self.restarts = now, self.restarts + 1

    def stop(self, seconds: float) -> None:
        """End it, by force where it takes longer."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def health(self) -> dict[str, Any]:
        """How the process is."""
        return {"alive": self.alive, "restarts": self.restarts, "pid": self.process and self.process.pid}

    def state(self) -> dict[str, Any]:
        """What a worker says of itself, if it has joined its scheduler."""
        try:
            found: dict[str, Any] = json.loads(Path(self.environment[STATE]).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found


def _end_with_parent() -> None:
    """A roof that is killed takes its children with it: models would stay on the GPU. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Roof:
    """Keeps a scheduler (unless it joins one), a worker for each of `gpus` such as `0,1`, and what serves deployments.

    Raises:
        WorkerError: another runs already, or there is no such GPU.
    """

    def __init__(self, gpus: str | None, scheduler: str | None, health_port: int, say: Callable[[str], None]) -> None:
        self._own = scheduler is None
        if self._own and (other := cluster.noted()):
            raise WorkerError(
                f"photoloom worker runs already (process {other['pid']}); a further one joins it with "
                f"--scheduler {other['scheduler']}"
            )
        if scheduler is not None and not cluster.answers(scheduler):
            raise WorkerError(f"--scheduler {scheduler}: no scheduler answers there")
        cards = _gpus(gpus)
        self._say, self._port, self._stop = say, health_port, threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="photoloom-worker-", ignore_cleanup_errors=True)
        port = _free_port()
        self.address = scheduler or f"tcp://{LOOPBACK}:{port}"
        self._scheduler = Child("scheduler", [
            "-m", "distributed.cli.dask_scheduler", "--host", LOOPBACK, "--port", str(port), "--dashboard-address",
            f"{LOOPBACK}:0",
        ])
        self.workers = [self._worker(gpu) for gpu in cards]
        self._serving = Child("deployments", ["-m", "flows.deployments"])
        self._children = [self._scheduler, *self.workers, self._serving] if self._own else self.workers

    def _worker(self, gpu: str) -> Child:
        name = f"gpu-{gpu}" if gpu else "cpu"
        folder = Path(self._folder.name) / name
        folder.mkdir()
        words = [
            "-c", "from flows.worker import main; main()", self.address, f"{socket.gethostname()}-{os.getpid()}-{name}",
            str(folder),
        ]
        return Child(name, words, {"CUDA_VISIBLE_DEVICES": gpu, STATE: str(folder / "state.json")})

    def keep(self) -> None:
        """Keep all alive until SIGTERM or SIGINT; then each worker finishes its batch and gives back its window."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        server = self._health_server()
        health = f"http://{LOOPBACK}:{server.server_port}"
        threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
        noted = False
        try:
            while not self._stop.wait(LOOK):
                for child in self._children:
                    child.look(self._say)
                if not noted and all(worker.state() for worker in self.workers):
                    noted = True
                    self._note(health)
                    names = ", ".join(worker.name for worker in self.workers)
                    self._say(f"working: {names}; scheduler {self.address}; health {health}")
        finally:
            if self._own:
                cluster.note().unlink(missing_ok=True)
            self._end()
            server.shutdown()
            self._folder.cleanup()

    def _note(self, health: str) -> None:
        if self._own:
            path = cluster.note()
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".draft")
            draft.write_text(json.dumps({"scheduler": self.address, "health": health, "pid": os.getpid()}), "utf-8")
            draft.replace(path)

    def _end(self) -> None:
        """End the flows that are served, then the workers, and the scheduler last: it takes back their windows."""
        for some in ([self._serving], self.workers, [self._scheduler]):
            ending = [threading.Thread(target=child.stop, args=(GRACE + 10,)) for child in some]
            for thread in ending:
                thread.start()
            for thread in ending:
                thread.join()

    def health(self) -> dict[str, Any]:
        """How all are: whether they live, how often they were started again, and what each worker says of itself."""
        others = [child for child in self._children if child not in self.workers]
        return {
            "address": self.address, "pid": os.getpid(),
            **{child.name: child.health() for child in others},
            "workers": [
                {"name": worker.name, **worker.health(), "running": None, "windows": 0, "models": {}, **state,
                 "alive": worker.alive and bool(state)}
                for worker in self.workers for state in [worker.state()]
            ],
        }

    def _health_server(self) -> ThreadingHTTPServer:
        roof = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = roof.health()
                well = all(child.alive for child in roof._children) and all(each["alive"] for each in found["workers"])
                body = json.dumps(found).encode()
                self.send_response(200 if well else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        try:
            return ThreadingHTTPServer((LOOPBACK, self._port), Answer)
        except OSError as error:
            raise WorkerError(f"--health-port {self._port}: {error.strerror or error}") from error


def _gpus(wanted: str | None) -> list[str]:
    """The GPUs to use by number, all where nothing is said; one empty name for the processor where there is none.

    Raises:
        WorkerError: a number is not one of a GPU here.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(index) for index in range(gpus())] if visible is None else [gpu for gpu in visible.split(",") if gpu]
    if wanted is None:
        return found or [""]
    chosen = [gpu.strip() for gpu in wanted.split(",")]
    if unknown := [gpu for gpu in chosen if gpu not in found]:
        raise WorkerError(f"--gpus {wanted}: there is no GPU {unknown[0]} here; found: {', '.join(found) or 'none'}")
    if len(set(chosen)) < len(chosen):
        raise WorkerError(f"--gpus {wanted}: one worker is for one GPU")
    return chosen


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return int(found.getsockname()[1])
