"""Pipelines as Prefect flows, on a real server; and that server itself after a crash."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image as pil

from flows import Pipeline
from tests.conftest import EXAMPLES, ROOT, Workplace, api_of, ask_server, command, free_port, task_runs

OUTER = """
from prefect import flow, task
from flows import Pipeline
from flows.tasks import run_pipeline

replace = Pipeline.from_yaml("find.yaml").flow(store="kept", out="made")

@task
def chosen() -> str:
    return "photos/dog*"

@flow
def nightly() -> list[int]:
    cats = replace()
    dogs = replace(photos=chosen(), threshold=0.5)
    return [cats["steps"]["boxes"]["ran"], dogs["steps"]["boxes"]["ran"], dogs["steps"]["boxes"]["failed"]]

print(nightly())
try:
    replace(threshold="high")
except Exception as error:
    print(type(error).__name__)

print(run_pipeline("find.yaml", {"photos": "photos/dog*"}, store="kept", out="other")["steps"]["photo"]["cached"])
try:
    run_pipeline("find.yaml", {"photo": "photos/dog*"})
except Exception as error:
    print(f"{type(error).__name__}: {error}")

try:
    run_pipeline("afar.yaml", store="kept", out="other")
except Exception as error:
    print(str(error).rpartition("; ")[2])
print(run_pipeline("afar.yaml", store="kept", out="other", allow=["../afar"])["steps"]["photo"]["ran"])
"""

AFAR = """
name: afar
steps:
  photo: {node: Load, path: "../afar/*.png"}
outputs: [photo]
"""

FIND = """
name: find
params:
  photos: photos/cat*
  threshold: {type: float, default: 0.7, ge: 0, le: 1}
steps:
  photo: {node: Load, path: "${photos}"}
  boxes: {node: Detect, image: photo, threshold: "${threshold}"}
outputs: [boxes]
"""


def asked(workplace: Workplace, what: str, body: dict[str, Any]) -> Any:
    return ask_server(workplace.environment, f"{what}/filter", body)


def test_pipelines_compose_with_flows_and_tasks_of_ones_own(workplace: Workplace) -> None:
    workplace.add("cat-blue.png", "cat-pink.png", "dog-green.png")
    (workplace.folder / "find.yaml").write_text(FIND)
    (workplace.folder / "afar.yaml").write_text(AFAR)
    (workplace.folder.parent / "afar").mkdir()
    shutil.copy(EXAMPLES / "fox-grey.png", workplace.folder.parent / "afar")
    ran = subprocess.run(
        [sys.executable, "-c", OUTER], cwd=workplace.folder, capture_output=True, text=True, check=False,
        env={**workplace.environment, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    assert "temporary server" not in ran.stderr, "recorded where the command's runs are, though nothing is configured"
    assert ran.stdout.splitlines() == [
        "[2, 1, 0]", "ParameterTypeError", "1", 'PipelineError: unknown param "photo"; did you mean "photos"?',
        "allow it with --allow ../afar", "1",
    ]
    assert len(list((workplace.folder / "made" / "find").glob("*/report.md"))) == 2

    flows = {flow["id"]: flow["name"] for flow in asked(workplace, "flows", {})}
    runs = asked(workplace, "flow_runs", {"flows": {"name": {"any_": ["nightly", "find"]}}})
    assert [run["state_type"] for run in runs if flows[run["flow_id"]] == "nightly"] == ["COMPLETED"]
    inner = [run for run in runs if flows[run["flow_id"]] == "find" and run["state_type"] == "COMPLETED"]
    assert sorted(run["parameters"]["photos"] for run in inner) == ["photos/cat*", "photos/dog*"]
    assert all(run["parent_task_run_id"] for run in inner), "shown below the flow that called it"
    assert {run["name"] for run in task_runs(workplace.environment, "find")} == {"photo-0", "boxes-0"}


LONG = """
import flows.flow_run
from flows import Pipeline

flows.flow_run.PROGRESS_EVERY = 0.0  # any run is a long one then
Pipeline.from_yaml("find.yaml").run({"photos": "photos"}, store="kept", out="made")
"""


def test_a_long_run_tells_how_far_it_is_and_what_rests_on_what(workplace: Workplace) -> None:
    workplace.add("cat-blue.png")
    (workplace.folder / "find.yaml").write_text(FIND.replace("name: find", "name: find-long"))
    ran = subprocess.run(
        [sys.executable, "-c", LONG], cwd=workplace.folder, capture_output=True, text=True, check=False,
        env={**workplace.environment, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    runs = {run["name"]: run for run in task_runs(workplace.environment, "find-long")}
    assert runs["boxes-0"]["task_inputs"]["wait_for"] == [{"input_type": "task_run", "id": runs["photo-0"]["id"]}]
    artifacts = asked(workplace, "artifacts", {"flow_runs": {"id": {"any_": [runs["photo-0"]["flow_run_id"]]}}})
    assert {found["key"] for found in artifacts} == {"photoloom-report", "photoloom-progress", "photoloom-steps"}
    assert [found["data"] for found in artifacts if found["type"] == "progress"] == [100.0]


def own_server(workplace: Workplace, **known: str) -> dict[str, str]:
    """The environment of a machine that is to have another server than the one that tests share."""
    home = workplace.folder / "home"
    home.mkdir()
    return {
        **workplace.environment, "PREFECT_HOME": str(home), "PHOTOLOOM_SERVER_PORT": str(free_port()),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db", **known,
    }


def test_a_server_stays_and_logs_and_none_that_died_keeps_it_from_starting(workplace: Workplace) -> None:
    environment = own_server(workplace, PREFECT_SERVER_LOGGING_LEVEL="DEBUG")
    home = Path(environment["PREFECT_HOME"])
    (home / "server.pid").write_text(str(os.getpid()))  # the number is another process's by now
    try:
        words = [sys.executable, "-m", "flows", "server", "start"]
        starts = [
            subprocess.Popen(words, env={**environment, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = sorted(start.communicate(timeout=120)[0].split(":")[0] for start in starts)
        assert said == ["already running", "started"]
        before = (home / "server.log").stat().st_size
        for _ in range(20):
            ask_server(environment, "flows/filter", {})
        assert (home / "server.log").stat().st_size > before
        elsewhere = command({**environment, "PHOTOLOOM_SERVER_PORT": str(free_port())}, workplace.folder, "server", "start")
        assert elsewhere.returncode == 2
        assert "this user's is at another port; name that one in PHOTOLOOM_SERVER_PORT" in elsewhere.stderr
    finally:
        assert command(environment, workplace.folder, "server", "stop").stdout == "stopped\n"
    assert command(environment, workplace.folder, "server", "status").returncode == 1


def test_a_server_that_cannot_start_says_why(workplace: Workplace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        taken = command({**own_server(workplace), "PHOTOLOOM_SERVER_PORT": port}, workplace.folder, "server", "start")
    assert (taken.returncode, taken.stderr) == (2, (
        f"photoloom: no Prefect server could be started: port {port} is taken by a program that does not answer as one does; "
        "name a free port in PHOTOLOOM_SERVER_PORT\n"
    ))
    (workplace.folder / "home").rmdir()
    environment = own_server(workplace, PREFECT_API_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////no/such/folder/prefect.db")
    failed = command(environment, workplace.folder, "server", "start")
    log = workplace.folder / "home" / "server.log"
    assert (failed.returncode, failed.stderr) == (
        2, f"photoloom: no Prefect server could be started at {api_of(environment)}; what it said is in {log}\n"
    )
    assert "unable to open database file" in log.read_text()


def test_a_flows_form_shows_help_bounds_and_choices(recorded: None) -> None:
    more = 'le: 1, help: "How sure, at least."}\n  kind: {default: cat, choices: [cat, dog]}'
    text = FIND.replace("le: 1}", more)
    form = Pipeline.from_yaml(text).flow().parameters.model_dump_for_openapi()["properties"]
    assert {key: form["threshold"][key] for key in ("type", "default", "minimum", "maximum", "description")} == {
        "type": "number", "default": 0.7, "minimum": 0, "maximum": 1, "description": "How sure, at least.",
    }
    assert (form["kind"]["enum"], form["kind"]["default"]) == (["cat", "dog"], "cat")
    assert form["photos"]["type"] == "string"


# --- what is killed in the middle of a run ---

SLOW = """import time
from pathlib import Path

from nodes import Image, Node


class Slow(Node):
    def run(self, image: Image) -> Image:
        time.sleep(0.3)
        with Path("made").open("a") as log:
            log.write(f"{image.pixels[0, 0, 0]}\\n")
        return Image(255 - image.pixels)
"""
COUNT, SECONDS, FIRST = 12, 0.3, 4


class SlowRun:
    """`photoloom run` as a process, whose node takes 0.3 s for each of twelve pictures, and says which it has made."""

    def __init__(self, workplace: Workplace) -> None:
        folder = workplace.folder
        (folder / "photos").mkdir()
        for value in range(COUNT):
            pil.new("RGB", (8, 8), (value, 0, 0)).save(folder / "photos" / f"{value:02}.png")
        (folder / "own.py").write_text(SLOW)
        (folder / "slow.yaml").write_text(
            "name: slow\nsteps:\n  photo: {node: Load, path: photos}\n  slow: {node: Slow, image: photo}\noutputs: [slow]\n"
        )
        self._workplace, self._log = workplace, folder / "made"
        self._log.write_text("")

    @contextmanager
    def started(self, **known: str) -> Iterator[subprocess.Popen[str]]:
        """The process, when four pictures are made and the fifth is in hand."""
        words = ("run", "slow.yaml", "--nodes", "own.py", "--window", "2", "--batch", "1", "--json")
        with subprocess.Popen(
            [sys.executable, "-m", "flows", *words], cwd=self._workplace.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**self._workplace.environment, **known, "PYTHONPATH": str(ROOT)},
        ) as process:
            try:
                ends = time.monotonic() + 60
                while len(self.made()) < FIRST:
                    assert time.monotonic() < ends and process.poll() is None
                    time.sleep(0.02)
                time.sleep(SECONDS / 3)
                yield process
            finally:
                process.kill()

    def made(self) -> list[int]:
        """The pictures that the node has made so far, in order."""
        return list(map(int, self._log.read_text().split()))

    def check(self, found: dict[str, Any], cached: int) -> None:
        """A run ended well, has made what was missing, and all pictures are right."""
        counts = {state: found["steps"]["slow"][state] for state in ("ran", "cached", "failed", "skipped")}
        assert counts == {"ran": COUNT - cached, "cached": cached, "failed": 0, "skipped": 0}
        assert self.made() == list(range(COUNT)), "each is made once"
        for value, output in enumerate(found["outputs"]["slow"]):
            with pil.open(self._workplace.folder / output["path"]) as picture:
                assert (np.asarray(picture) == (255 - value, 255, 255)).all()


def kill_server(environment: Mapping[str, str]) -> None:
    server = psutil.Process(int(Path(environment["PREFECT_HOME"], "server.pid").read_text()))
    server.kill()
    server.wait(10)


def test_a_run_goes_on_while_the_server_is_killed_and_started_again(workplace: Workplace) -> None:
    slow = SlowRun(workplace)
    with slow.started() as running:
        kill_server(workplace.environment)
        killed = time.monotonic()
        assert workplace.photoloom("server", "start").stdout.startswith("started: ")
        back = time.monotonic() - killed
        out, said = running.communicate(timeout=120)
    took = time.monotonic() - killed
    print(f"the server was away for {back:.1f} s: {took - (COUNT - FIRST) * SECONDS:.1f} s lost")
    assert running.returncode == 0, said
    assert "Traceback" not in said and "EventsWorker" not in said
    slow.check(json.loads(out), cached=0)
    runs = task_runs(workplace.environment, "slow")
    assert {run["name"] for run in runs} == {f"{step}-{window}" for step in ("photo", "slow") for window in range(COUNT // 2)}
    assert {run["state_name"] for run in runs} == {"Completed"}


def test_a_run_ends_where_the_server_stays_away_and_the_same_command_takes_up_the_rest(workplace: Workplace) -> None:
    slow = SlowRun(workplace)
    with slow.started(PREFECT_CLIENT_MAX_RETRIES="1") as running:  # two seconds of patience instead of a minute
        kill_server(workplace.environment)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == 2
    assert said.endswith(
        f"photoloom: the Prefect server at {api_of(workplace.environment)} went away; what is finished is kept, and the same "
        "command takes up where this one stopped\n"
    )
    assert "Traceback" not in said
    slow.check(workplace.run("slow.yaml", "--nodes", "own.py"), cached=COUNT)


def test_a_killed_run_is_taken_up_by_the_same_command(workplace: Workplace) -> None:
    slow = SlowRun(workplace)
    with slow.started() as running:
        running.kill()
    killed = time.monotonic()
    assert slow.made() == list(range(FIRST))
    found = workplace.run("slow.yaml", "--nodes", "own.py", "--batch", "1")
    print(f"a run killed: {time.monotonic() - killed - (COUNT - FIRST) * SECONDS:.1f} s lost, a start of the command")
    slow.check(found, cached=FIRST)
    (run,) = [run for run in asked(workplace, "flow_runs", {}) if run["name"] == Path(found["report"]).parent.name]
    assert run["parameters"] == {"pipeline": "slow.yaml", "params": {}}
