"""The Prefect server that runs are recorded in: the one configured, else a local one on loopback that stays running."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nodes.errors import ServerError, UserError

if TYPE_CHECKING:
    import psutil

HOST, WAIT = "127.0.0.1", 60
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

LASTING = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
"""Which run holds its deployment's only place is kept on disk: kept in memory, a restart of the server would end that run
within minutes, and let no other have the place."""


def _port() -> int:
    wanted = os.environ.get("PHOTOLOOM_SERVER_PORT", "4200")
    if not (wanted.isdecimal() and 0 < int(wanted) < 65_536):
        raise UserError(f'PHOTOLOOM_SERVER_PORT: expected a port from 1 to 65535, got "{wanted}"')
    return int(wanted)


def local_url() -> str:
    """The API of the local server.

    Raises:
        UserError: the environment names no port.
    """
    return f"http://{HOST}:{_port()}/api"


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


def start() -> subprocess.Popen[bytes] | None:
    """Begin to start the local server, unless one answers or begins to; gives its process. Does not wait for it.

    Raises:
        ServerError: its port is taken, or this user's server is at another.

    Not by `prefect server start --background`: what that one logs goes to a pipe that nobody reads, and at the first line
    it ends (rich takes a broken pipe for its user's wish). Ours logs to a file; the note of its number is where Prefect's
    commands look for it.
    """
    port = _port()
    if answers(local_url()):
        return None
    if running := _noted_server():
        if str(port) in running.cmdline():
            return None
        raise ServerError(
            f"no Prefect server answers at {local_url()}, and this user's is at another port; name that one in "
            "PHOTOLOOM_SERVER_PORT, or stop it with: photoloom server stop"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ServerError(
                f"no Prefect server could be started: port {port} is taken by a program that does not answer as one does; "
                "name a free port in PHOTOLOOM_SERVER_PORT"
            ) from None
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    _noted().parent.mkdir(parents=True, exist_ok=True)
    with _log().open("ab") as log:
        process = subprocess.Popen(
            command, env={**LASTING, **os.environ, **QUIET}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )
    try:
        with _noted().open("x") as note:
            note.write(str(process.pid))
    except FileExistsError:  # another was quicker
        process.terminate()
        process.wait()
        return None
    return process


def _noted() -> Path:
    """Where Prefect keeps the number of the background server's process."""
    from prefect.settings import PREFECT_HOME

    return Path(PREFECT_HOME.value()) / "server.pid"


def _log() -> Path:
    return _noted().with_suffix(".log")


def _noted_server() -> psutil.Process | None:
    """The background server. The note of one that is no more would keep another from starting: it goes."""
    import psutil

    try:
        process = psutil.Process(int(_noted().read_text()))
        words = " ".join(process.cmdline())
    except (OSError, ValueError, psutil.Error):
        words = ""
    if "prefect" in words and "server" in words:
        return process
    _noted().unlink(missing_ok=True)  # none, a dead one, or another program has its number now
    return None


def wait(url: str, starting: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a server answers, for a minute, or for two where one is being started.

    Raises:
        ServerError: none does, or the one that was started ended.
    """
    ends = time.monotonic() + WAIT * (2 if starting else 1)
    while not answers(url):
        if starting and starting.poll() is not None:
            raise ServerError(f"no Prefect server could be started at {url}; what it said is in {_log()}")
        if time.monotonic() > ends:
            raise ServerError(f"no Prefect server answers at {url}; start one with: photoloom server start")
        time.sleep(0.1)
    if starting:
        starting.returncode = 0  # it stays, and nobody waits for its end


def stop() -> None:
    """Stop the local server, and wait until it has ended.

    Raises:
        ServerError: it was not started in the background.
    """
    if running := _noted_server():
        running.terminate()
        running.wait(WAIT)
        _noted().unlink(missing_ok=True)
    if answers(local_url()):
        raise ServerError(f"the Prefect server at {local_url()} was not started in the background: end it where it was started")


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


_joined = ExitStack()


def join() -> None:
    """Have what Prefect does in this process be recorded on the server that runs go to, from now on; on its own it would
    start one for each flow that nobody can look into afterwards, and that has no schedules.

    Raises:
        ServerError: none answers.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if not configured_url():
        _joined.enter_context(temporary_settings({PREFECT_API_URL: address(lambda text: print(text, file=sys.stderr))}))


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
