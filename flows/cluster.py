"""Where the workers are, and this process's connection to them: one Dask client for each scheduler. Knows no graphs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nodes.errors import UserError, WorkerError

if TYPE_CHECKING:
    from distributed import Client, Future

    Done = queue.Queue[Future[str]]

PATIENCE = float(os.environ.get("PHOTOLOOM_WORKER_PATIENCE", "120"))
"""Seconds that a run waits for a scheduler and for a worker to come back."""
RESTART = 10.0
"""Seconds that a scheduler may take to be started again under its roof."""
POLL, CLOSED = 1.0, ("closing", "closed")


def noted() -> dict[str, Any] | None:
    """What the `photoloom worker` of this user left about itself, while it answers: `scheduler`, `health`, `pid`."""
    try:
        found: dict[str, Any] = json.loads(note().read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if _listens(found["health"]) else None


def note() -> Path:
    """The file in which it does."""
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect") / "photoloom-worker.json"


def scheduler(on: str | None) -> str | None:
    """The address of the workers' scheduler: that of `PHOTOLOOM_SCHEDULER`, else the one that runs here; None where
    windows are to be made in this process, or, if nothing is asked for, where there is none.

    Raises:
        WorkerError: `on` is `worker`, or one is named, and none answers.
    """
    if on not in (None, "here", "worker"):
        raise UserError(f"--on {on}: expected here or worker")
    if on == "here":
        return None
    if address := os.environ.get("PHOTOLOOM_SCHEDULER"):
        if not answers(address):
            raise WorkerError(f"no scheduler answers at {address}, which PHOTOLOOM_SCHEDULER names")
        return address
    ends = time.monotonic() + RESTART
    while found := noted():
        if answers(found["scheduler"]):
            return str(found["scheduler"])
        if time.monotonic() > ends:
            break
        time.sleep(0.1)
    if on == "worker":
        raise WorkerError("--on worker: no worker runs here; start one with: photoloom worker")
    return None


def answers(address: str) -> bool:
    """Whether something listens at `tcp://host:port` or `tls://host:port`.

    Raises:
        WorkerError: it is not such an address.
    """
    try:
        parts = urlsplit(address)
        if parts.scheme not in ("tcp", "tls") or not parts.hostname or not parts.port:
            raise ValueError
    except ValueError:
        raise WorkerError(f"{address}: expected a scheduler such as tcp://10.0.0.5:8786 or tls://10.0.0.5:8786") from None
    return _listens(address)


def _listens(address: str) -> bool:
    parts = urlsplit(address)
    try:
        with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=2):
            return True
    except OSError:
        return False


class Workers:
    """The workers of one scheduler."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._client: Client | None = None

    def client(self) -> Client:
        """The connection, made when it is first asked for.

        Raises:
            WorkerError: the scheduler does not answer.
        """
        with self._lock:
            if self._client is None or self._client.status in CLOSED:
                self._client = self._connected()
            return self._client

    def _connected(self) -> Client:
        import logging

        from distributed import Client

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it tells of lost connections, we tell
        try:
            return Client(  # type: ignore[no-untyped-call]
                self.address, set_as_default=False, timeout=PATIENCE, name="photoloom"
            )
        except (OSError, ValueError) as error:
            raise WorkerError(f"no scheduler answers at {self.address}: {error}") from error

    def count(self) -> int:
        """How many workers are there now."""
        client = self.client()
        return len(client.scheduler_info()["workers"]) if client.status == "running" else 0

    def submit(self, work: Callable[[str], str], text: str, name: str, priority: int, done: Done) -> Future[str]:
        """Have a worker do `work`, a function that it can import; `done` gets the future when it is through."""
        future = self.client().submit(work, text, key=name, pure=False, resources={"GPU": 1}, priority=priority)
        future.add_done_callback(done.put)  # type: ignore[no-untyped-call]
        return future

    def wait(self, done: Done) -> Future[str]:
        """The next future that is through.

        Raises:
            WorkerError: the scheduler or all workers have been gone for too long.
        """
        ends = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(queue.Empty):
                return done.get(timeout=POLL)
            gone = self._client is None or self._client.status in CLOSED
            if not gone and self.count():
                ends = time.monotonic() + PATIENCE
            elif gone or time.monotonic() > ends:
                raise WorkerError(
                    f"no worker has been at {self.address} for {PATIENCE:.0f} s; what is finished is kept, and the same "
                    "command takes up where this one stopped"
                )


@cache
def workers_at(address: str) -> Workers:
    """The workers of the scheduler at an address, the same object for all threads."""
    return Workers(address)
