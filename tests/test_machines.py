"""Several machines, as docs/scale.md describes them: PostgreSQL, a Prefect server, S3 and two workers, all real."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.store import open_store
from nodes import Image
from tests import s3
from tests.conftest import ROOT, Workplace, api_of, free_port, prefect_server
from tests.test_deployments import Deployment, until
from tests.test_worker import roof

CUT = """
name: parts
steps:
  photo: {node: Load, path: photos}
  boxes: {node: Detect, image: photo}
  cut:   {node: Crop, image: photo, boxes: boxes}
outputs: [cut.images]
"""
PHOTOS = ("cat-apple-white.png", "cat-blue.png", "dog-green.png", "fox-grey.png")
DETR = str(ROOT / "models" / "toybox" / "detr")


def binaries() -> Path:
    """The folder of the newest PostgreSQL's programs."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    on_path = shutil.which("initdb")
    if not installed and not on_path:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    return installed[-1] if installed else Path(str(on_path)).parent


@contextmanager
def postgresql() -> Iterator[tuple[str, Callable[[str], str]]]:
    """A database of the test's own on loopback: its name for Prefect, and what asks it for one value."""
    programs, port = binaries(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="photoloom-postgresql-"))  # pytest's folders are closed to other users
    other: dict[str, Any] = {}
    if os.geteuid() == 0:  # as whom PostgreSQL does not run
        other = {"user": "postgres", "group": "postgres", "extra_groups": ()}
        shutil.chown(folder, "postgres", "postgres")

    def called(program: str, *words: str, **how: Any) -> str:
        done = subprocess.run(
            [programs / program, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, **how,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    called("initdb", "-D", "data", "-A", "trust", "-U", "prefect", "--no-locale", "-E", "UTF8", "--no-sync", **other)
    with (folder / "data" / "postgresql.conf").open("a") as settings:
        settings.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nfsync = off\n")
    called("pg_ctl", "-D", "data", "-w", "-l", "log", "start", **other)
    try:
        yield (
            f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres",
            lambda sql: called("psql", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "-d", "postgres", "-tAc", sql),
        )
    finally:
        called("pg_ctl", "-D", "data", "-m", "immediate", "stop", **other)
        shutil.rmtree(folder)


def values(folder: Path, store: str, step: str, output: str) -> list[Any]:
    """What a store has of a step of the pipeline, in order, without making anything."""
    ran = Execution(Pipeline.from_yaml(folder / "parts.yaml").graph(), open_store(store))
    return [value for _, _, value in ran.values(step, output)]


def test_a_scheduled_run_on_several_machines_gives_the_values_of_a_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgresql() as (database, ask), s3.served() as endpoint:
        s3.request(endpoint, "PUT", "pictures")
        monkeypatch.chdir(tmp_path)
        for name, value in {**s3.environment(endpoint), "PHOTOLOOM_CACHE": str(tmp_path / "reader")}.items():
            monkeypatch.setenv(name, value)
        with prefect_server(tmp_path / "server", database) as environment:
            def machine(name: str) -> dict[str, str]:
                own = {"PREFECT_HOME": str(tmp_path / name), "PHOTOLOOM_CACHE": str(tmp_path / name / "copies")}
                return {**environment, "PREFECT_API_URL": api_of(environment), **own}

            place = Workplace(tmp_path, machine("one"))
            place.add(*PHOTOS)
            soon = datetime.now(UTC) + timedelta(seconds=12)
            rule = f"DTSTART:{soon:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=HOURLY;COUNT=1"
            cut = Deployment(place, "machines", "--store", "s3://pictures/store", "--rrule", rule, text=CUT)
            with (
                roof(machine("one"), tmp_path) as first,
                roof(machine("two"), tmp_path, "--scheduler", first.scheduler) as second,
            ):
                place.run("parts.yaml", "--on", "here", "--store", "here")
                (due,) = until(cut.runs)
                run = cut.ended(due["id"])
                assert (run["state_name"], run["auto_scheduled"]) == ("Completed", True)
                assert run["state"]["message"].startswith("12 ran, 0 cached, 0 failed, 0 skipped; report: ")
                workers = [each.worker for each in (first, second)]
                assert [worker["models"] for worker in workers] == [{DETR: 1}, {DETR: 1}], "each has made some"
                windows = sum(worker["windows"] for worker in workers)

                again = cut.ended(cut.start())
                assert again["state_name"] == "Cached"
                assert again["state"]["message"].startswith("0 ran, 12 cached, 0 failed, 0 skipped; report: ")
                assert sum(each.worker["windows"] for each in (first, second)) == windows, "no worker was asked"

            assert ask("select count(*) from flow_run where state_type = 'COMPLETED'") == "3"
            assert not list(tmp_path.rglob("prefect.db")), "no database but PostgreSQL"
            assert not (tmp_path / "outputs" / "store").exists(), "no store but the bucket"
        for output in ("images", "places"):
            there, here = (values(tmp_path, store, "cut", output) for store in ("s3://pictures/store", "here"))
            assert len(there) == len(here) >= len(PHOTOS)
            for found, wanted in zip(there, here, strict=True):
                if isinstance(found, Image):
                    assert np.array_equal(found.pixels, wanted.pixels)
                else:
                    assert np.array_equal(found.xyxy, wanted.xyxy) and found.labels == wanted.labels
