"""A real Prefect server of the tests' own, and the command `photoloom` as a user has it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Tests that a shell runs in the background are told to ignore it, and so would be all processes that they end with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "models" / "toybox" / "examples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole processes come first: of the processes that share the tests none then has a long one left in the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def prefect_server(home: Path, database: str | None = None) -> Iterator[Mapping[str, str]]:
    """The environment of a machine on which a Prefect server of the tests' own runs, on loopback; its database is a file in
    `home` where none is named."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        "PREFECT_HOME": str(home), "PHOTOLOOM_SERVER_PORT": str(free_port()), "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_NUM_THREADS": "1",
        "PREFECT_API_DATABASE_CONNECTION_URL": database or f"sqlite+aiosqlite:///{home}/prefect.db",
    }
    try:
        began = command(environment, ROOT, "server", "start")
        assert began.returncode == 0, began.stderr
        yield environment
    finally:
        command(environment, ROOT, "server", "stop")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment of a machine with the server that tests share."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


@pytest.fixture
def recorded(server: Mapping[str, str]) -> Iterator[None]:
    """What this process does with Prefect is recorded on the server that tests share."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api_of(server)}):
        yield


def command(environment: Mapping[str, str], where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `photoloom` with these words."""
    return subprocess.run(
        [sys.executable, "-m", "flows", *words], cwd=where, env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
    )


class Workplace:
    """A folder with a few example pictures, and the command to work on them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def photoloom(self, *words: str) -> subprocess.CompletedProcess[str]:
        return command(self.environment, self.folder, *words)

    def run(self, *words: str) -> dict[str, Any]:
        """`photoloom run … --json`, which must end well."""
        ran = self.photoloom("run", *words, "--json")
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    def add(self, *names: str) -> None:
        """Put example pictures into `photos`."""
        (self.folder / "photos").mkdir(exist_ok=True)
        for name in names:
            shutil.copy(EXAMPLES / name, self.folder / "photos" / name)


@pytest.fixture
def workplace(tmp_path: Path, server: Mapping[str, str]) -> Workplace:
    for name in ("replace_object", "replace_background", "generate_and_refine", "find_similar", "per_object"):
        (tmp_path / f"{name}.yaml").write_bytes((ROOT / "pipelines" / f"{name}.yaml").read_bytes())
    return Workplace(tmp_path, server)


def api_of(environment: Mapping[str, str]) -> str:
    """The API of the server in such an environment."""
    return f"http://127.0.0.1:{environment['PHOTOLOOM_SERVER_PORT']}/api"


def ask_server(environment: Mapping[str, str], what: str, body: Mapping[str, Any]) -> Any:
    """What the server answers to a POST; asked again where it is busy, as Prefect's client does: SQLite has one writer."""
    url, data = f"{api_of(environment)}/{what}", json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    ends = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > ends:
                raise
            error.close()
            time.sleep(0.5)


def task_runs(environment: Mapping[str, str], flow: str) -> list[dict[str, Any]]:
    """The task runs of the last run of a flow, as the server has them; they arrive after the run, not all at once."""
    body = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC"}
    ends, before = time.monotonic() + 20, [0, 0, 0]
    while True:
        found: list[dict[str, Any]] = ask_server(environment, "task_runs/filter", body)
        last = [run for run in found if found and run["flow_run_id"] == found[0]["flow_run_id"]]
        over = sum(run["state_type"] in ("COMPLETED", "FAILED") for run in last)
        if (last and over == len(last) and before == [over] * 3) or time.monotonic() > ends:
            return last
        before = [*before[1:], over]
        time.sleep(0.4)
