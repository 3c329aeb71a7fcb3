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
from pathlib import Path

from nodes.errors import ServerError

HOST, WAIT = "127.0.0.1", 60
PORT = int(os.environ.get("PHOTOLOOM_SERVER_PORT", "4200"))
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

LASTING = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
"""Which run holds its deployment's only place is kept on disk: kept in memory, a restart of the server would end that run
within minutes, and let no other have the place."""


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


def start() -> subprocess.Popen[str] | None:
    """Begin to start the local server unless one answers; gives the command that starts it. Does not wait for it."""
    if answers(local_url()):
        return None
    _forget_dead_server()
    command = [sys.executable, "-m", "prefect", "server", "start", "--background", "--host", HOST, "--port", str(PORT)]
    return subprocess.Popen(
        command, env={**LASTING, **os.environ, **QUIET}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, text=True,
    )


def _forget_dead_server() -> None:
    """Remove the note of a background server that is no more: after a crash or a reboot Prefect would not start another."""
    import psutil
    from prefect.settings import PREFECT_HOME

    noted = Path(PREFECT_HOME.value()) / "server.pid"
    try:
        words = psutil.Process(int(noted.read_text())).cmdline()
    except psutil.NoSuchProcess:
        words = []
    except (OSError, ValueError, psutil.Error):
        return
    if not any("prefect" in word for word in words):  # none, a dead one, or another that has its number now
        noted.unlink(missing_ok=True)


def wait(url: str, starting: subprocess.Popen[str] | None = None) -> None:
    """Wait until a server answers, for a minute, or for two where one is being started.

    Raises:
        ServerError: none does, or the command that starts one failed.
    """
    ends = time.monotonic() + WAIT * (2 if starting else 1)
    while not answers(url):
        if starting and starting.poll():
            said = starting.stdout.read().strip().splitlines() if starting.stdout else []
            raise ServerError(f"no Prefect server could be started at {url}: {' '.join(line.strip() for line in said)}")
        if time.monotonic() > ends:
            raise ServerError(f"no Prefect server answers at {url}; start one with: photoloom server start")
        time.sleep(0.1)


def stop() -> None:
    """Stop the local server."""
    command = [sys.executable, "-m", "prefect", "server", "stop"]
    subprocess.run(command, env={**os.environ, **QUIET}, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def address(say: object = None) -> str:
    """The API of a server that answers: the configured one, else the local one, started if need be.

    Raises:
        ServerError: none answers.
    """
    url = configured_url() or local_url()
    starting = start() if url == local_url() else None
    if starting and callable(say):
        say(f"starting a Prefect server at {url}; it stays running (photoloom server stop ends it)")
    wait(url, starting)
    return url


@contextmanager
def connected(say: object = None) -> Iterator[str]:
    """Prefect's settings with a server that answers. Where it goes away meanwhile, each request is made again for a minute.

    Raises:
        ServerError: none does, or it went away for longer.
    """
    from httpx import TransportError
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    url = address(say)
    # A synchronous flow would wait up to a second at its end for the thread that sends heartbeats.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            yield url
        except TransportError as error:
            raise ServerError(
                f"the Prefect server at {url} went away; what is finished is kept, and the same command takes up where this "
                "one stopped"
            ) from error
