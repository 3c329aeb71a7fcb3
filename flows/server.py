"""The Prefect server that runs are recorded in: the one configured, else a local one on loopback that stays running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from nodes.errors import ServerError

HOST, WAIT = "127.0.0.1", 60
PORT = int(os.environ.get("PHOTOLOOM_SERVER_PORT", "4200"))
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def local_url() -> str:
    """The API of the local server."""
    return f"http://{HOST}:{PORT}/api"


def configured_url() -> str:
    """The API that Prefect's own settings name, or nothing."""
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value() or "")


def answers(url: str) -> bool:
    """Whether a Prefect server is up there."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def start() -> bool:
    """Begin to start the local server unless one answers; gives whether one had to be started. Does not wait for it."""
    if answers(local_url()):
        return False
    command = [sys.executable, "-m", "prefect", "server", "start", "--background", "--host", HOST, "--port", str(PORT)]
    subprocess.Popen(
        command, env={**os.environ, **QUIET}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )
    return True


def wait(url: str) -> None:
    """Wait until a server answers.

    Raises:
        ServerError: none does within a minute.
    """
    ends = time.monotonic() + WAIT
    while not answers(url):
        if time.monotonic() > ends:
            raise ServerError(f"no Prefect server answers at {url}; start one with: photoloom server start")
        time.sleep(0.1)


def stop() -> None:
    """Stop the local server."""
    command = [sys.executable, "-m", "prefect", "server", "stop"]
    subprocess.run(command, env={**os.environ, **QUIET}, stdin=subprocess.DEVNULL, capture_output=True, check=False)


@contextmanager
def connected(say: object = None) -> Iterator[str]:
    """Prefect's settings with a server that answers: the configured one, else the local one, started if need be.

    Raises:
        ServerError: none answers.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    url = configured_url() or local_url()
    if url == local_url() and start() and callable(say):
        say(f"started a Prefect server at {url}; it stays running (photoloom server stop ends it)")
    wait(url)
    # A synchronous flow would wait up to a second at its end for the thread that sends heartbeats.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield url
