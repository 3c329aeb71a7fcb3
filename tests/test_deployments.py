"""Pipelines on a schedule, on a real server and with a real process that serves."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image as pil

from tests.conftest import EXAMPLES, ROOT, Workplace, api_of, ask_server
from tests.test_flow import asked

NODE = """import time

from nodes import Image, Node


class Part(Node):
    by: int
    pause: float = 0.0

    def run(self, image: Image) -> Image:
        time.sleep(self.pause)
        return Image(image.pixels // self.by)
"""
PARTS = """
name: parts
description: Darker pictures.
params:
  photos: photos
  by: {type: int, default: 2, ge: 2, le: 9, help: What each value is divided by.}
  pause: 0.0
steps:
  photo: {node: Load, path: "${photos}"}
  part:  {node: Part, image: photo, by: "${by}", pause: "${pause}"}
outputs: [part]
"""
IN_A_THREAD = """
import signal, threading
from flows.deployments import serve_forever

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
serving = threading.Thread(target=serve_forever, args=(stop,))
serving.start()
serving.join()
"""
TOLD_TO_END = """
import os, signal
import prefect.task_engine

def told(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

prefect.task_engine.collect_task_run_inputs_sync = told
"""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Deployment:
    """A deployment of the pipeline above, or of another, and what the server knows of it."""

    def __init__(self, workplace: Workplace, name: str, *options: str, text: str = PARTS) -> None:
        self.workplace, self.name = workplace, name
        workplace.add("cat-blue.png", "dog-green.png")
        (workplace.folder / "own.py").write_text(NODE)
        (workplace.folder / "parts.yaml").write_text(text.replace("name: parts", f"name: {name}"))
        made = workplace.photoloom("deploy", "parts.yaml", "--nodes", "own.py", *options)
        assert made.returncode == 0, made.stderr
        assert made.stdout == f"{name}: deployed; runs while `photoloom serve` does\n"
        self.id = self.known()["id"]

    def known(self) -> dict[str, Any]:
        (found,) = asked(self.workplace, "deployments", {"deployments": {"name": {"any_": [self.name]}}})
        return dict(found)

    def ask(self, what: str, body: Mapping[str, Any]) -> Any:
        return ask_server(self.workplace.environment, f"deployments/{self.id}/{what}", body)

    def start(self, **params: Any) -> str:
        """Have it run now, with these params in place of its own; gives the run's id."""
        given = {"parameters": {"params": params}} if params else {}
        return str(self.ask("create_flow_run", given)["id"])

    def was_due(self, *minutes_ago: float) -> None:
        """Make the runs of its schedule that lie between two times of the past."""
        start, end = (datetime.now(UTC) - timedelta(minutes=ago) for ago in minutes_ago)
        self.ask("schedule", {"start_time": start.isoformat(), "end_time": end.isoformat(), "min_runs": 0})

    def runs(self) -> list[dict[str, Any]]:
        """The runs that are not in the future."""
        body = {"deployments": {"name": {"any_": [self.name]}}, "sort": "EXPECTED_START_TIME_ASC"}
        now = datetime.now(UTC)
        found = asked(self.workplace, "flow_runs", body)
        return [run for run in found if datetime.fromisoformat(run["expected_start_time"].replace("Z", "+00:00")) < now]

    def ended(self, run: str) -> dict[str, Any]:
        """A run, when it has ended."""
        return until(lambda: next((each for each in self.runs() if each["id"] == run and each["state_type"] in ENDED), None))

    def running(self, run: str) -> psutil.Process:
        """The process of a run, when its pictures are at work."""
        until(lambda: [each for each in self.runs() if each["id"] == run and each["state_type"] == "RUNNING"])
        return until(lambda: next(iter(processes_of(run)), None))

    def pictures(self, run: Mapping[str, Any]) -> dict[str, Any]:
        folder = self.workplace.folder / "outputs" / self.name / run["name"] / "part"
        return {file.stem: np.asarray(pil.open(file)) for file in folder.glob("*.png")}


def processes_of(run: str) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == run
    ]


def until(found: Callable[[], Any], seconds: float = 90) -> Any:
    """What comes of a call as soon as it is something."""
    ends = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < ends, "nothing came"
        time.sleep(0.2)
    return value


@contextmanager
def serving(workplace: Workplace, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`photoloom serve`, in another folder; SIGTERM ends it well."""
    elsewhere = workplace.folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    with (elsewhere / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *(words or ("-m", "flows", "serve"))], cwd=elsewhere, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, env={**workplace.environment, "PYTHONPATH": str(ROOT)},
        )
        try:
            yield process
        finally:
            process.terminate()
            code = process.wait(60)
    if code != -signal.SIGKILL:
        said = (elsewhere / "log").read_text()
        assert code == 0, said
        assert "Traceback" not in said


def original(name: str) -> Any:
    with pil.open(EXAMPLES / f"{name}.png") as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_scheduled_run_makes_the_pictures_and_the_next_one_has_them_all(workplace: Workplace) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=15)
    rule = f"DTSTART:{soon:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=HOURLY;COUNT=1"
    thirds = Deployment(workplace, "thirds", "--rrule", rule, "--set", "by=3")
    with serving(workplace):
        (first,) = until(thirds.runs)
        run = thirds.ended(first["id"])
        assert (run["state_name"], run["auto_scheduled"], run["tags"]) == ("Completed", True, ["auto-scheduled", "thirds"])
        late = datetime.fromisoformat(run["start_time"].replace("Z", "+00:00")) - soon
        print(f"a scheduled run began {late.total_seconds():.1f} s after it was due")
        pictures = thirds.pictures(run)
        assert set(pictures) == {"cat-blue", "dog-green"}
        for name, pixels in pictures.items():
            assert (pixels == original(name) // 3).all()

        again = thirds.ended(thirds.start())
        assert again["state_name"] == "Cached"
        assert again["state"]["message"].startswith("0 ran, 4 cached, 0 failed, 0 skipped; report: ")

        workplace.add("cat-pink.png")
        more = thirds.ended(thirds.start())
        assert more["state"]["message"].startswith("2 ran, 4 cached, ")

        for picture in (workplace.folder / "photos").iterdir():
            picture.unlink()
        nothing = thirds.ended(thirds.start())
        assert nothing["state_name"] == "Nothing to do"
        assert nothing["state"]["message"].endswith('step "photo": path: no file matches "photos"')

        (workplace.folder / "parts.yaml").write_text("name: [")
        wrong = thirds.ended(thirds.start())
        assert wrong["state_type"] == "FAILED"
        assert "parts.yaml:1:" in wrong["state"]["message"] and "Traceback" not in wrong["state"]["message"]

    said = (workplace.folder / "elsewhere" / "log").read_text()
    assert said.count("thirds: began\n") == 5
    assert "thirds: Completed: 4 ran, 0 cached, 0 failed, 0 skipped; report: " in said
    assert "thirds: Nothing to do: " in said and "thirds: Failed: " in said

    artifacts = asked(workplace, "artifacts", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    shown = {found["key"]: found["data"] for found in artifacts}
    assert set(shown) == {"photoloom-steps", "photoloom-report"}
    steps = json.loads(shown["photoloom-steps"])
    assert [(row["step"], row["ran"], row["why"]) for row in steps] == [("photo", 2, "first run"), ("part", 2, "first run")]
    report = workplace.folder / "outputs" / "thirds" / run["name"] / "report.md"
    assert report.is_file() and f"({report.as_uri()})" in shown["photoloom-report"]


def test_a_form_shows_the_params_and_refuses_what_they_do_not_allow(workplace: Workplace) -> None:
    form = Deployment(workplace, "form", "--interval", "3600", "--allow", "..")
    known = form.known()
    assert known["description"] == "Darker pictures."
    assert known["parameters"]["pipeline"] == str(workplace.folder / "parts.yaml")
    assert known["parameters"]["nodes"] == [str(workplace.folder / "own.py")]
    assert known["parameters"]["allow"] == [str(workplace.folder.parent)]
    assert known["parameters"]["store"] == str(workplace.folder / "outputs" / "store")
    params = known["parameter_openapi_schema"]["properties"]["params"]["properties"]
    assert params["by"] == {
        "position": 1, "title": "by", "default": 2, "type": "integer", "description": "What each value is divided by.",
        "minimum": 2, "maximum": 9,
    }
    for wrong, said in (({"by": 99}, "99 is greater than the maximum of 9"), ({"buy": 3}, "'buy' was unexpected")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            form.start(**wrong)
        assert said in refused.value.read().decode()
    assert form.runs() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cron 0,2", '--cron 0,2: Invalid cron string: "0,2"\n'),
        ("--interval 60 --timezone Mars/Olympus", '--interval 60 --timezone Mars/Olympus: Invalid timezone: "Mars/Olympus" '),
        ("", 'a schedule is one of --cron "0 2 * * *", --interval SECONDS and --rrule RULE'),
        ("--interval 60 --set by=99", 'param "by": expected a value ≤ 9, got 99'),
        ("--interval 60 --set buy=3", '--set buy=3: unknown param "buy"; did you mean "by"?'),
    ],
)
def test_a_wrong_deployment_is_refused(workplace: Workplace, words: str, message: str) -> None:
    (workplace.folder / "own.py").write_text(NODE)
    (workplace.folder / "parts.yaml").write_text(PARTS)
    ran = workplace.photoloom("deploy", "parts.yaml", "--nodes", "own.py", *words.split())
    assert (ran.returncode, ran.stdout) == (2, "")
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not asked(workplace, "deployments", {"deployments": {"name": {"any_": ["parts"]}}})


def test_a_deployment_whose_models_are_not_there_is_refused(workplace: Workplace) -> None:
    ran = workplace.photoloom("deploy", "find_similar.yaml", "--interval", "60", "--models", "photo")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.search(
        r'find_similar.yaml:\d+:\d+: step "\w+": model "facebook/dinov2-small@main" is not on this machine; fetch it with: hf ',
        ran.stderr,
    ), ran.stderr


def test_deployments_are_listed_changed_paused_and_deleted(workplace: Workplace) -> None:
    def line() -> str:
        lines = workplace.photoloom("deployments", "list").stdout.splitlines()
        return next((line for line in lines if line.startswith("listed: ")), "")

    first = Deployment(workplace, "listed", "--cron", "0 2 * * *")
    assert line().startswith("listed: listed, 0 2 * * * UTC; next ")
    second = Deployment(workplace, "listed", "--cron", "30 3 * * 1", "--timezone", "Europe/Paris")
    assert second.id == first.id
    assert re.fullmatch(r"listed: listed, 30 3 \* \* 1 Europe/Paris; next (never|\d+-.*); last never", line())
    assert workplace.photoloom("deployments", "pause", "listed").stdout == "listed: paused\n"
    assert line() == "listed: listed, 30 3 * * 1 Europe/Paris; paused; last never"
    words = ("--nodes", "own.py", "--cron", "30 3 * * 1", "--timezone", "Europe/Paris")
    again = workplace.photoloom("deploy", "parts.yaml", *words)
    assert again.stdout == "listed: deployed, and paused, as it was: photoloom deployments resume listed\n"
    assert line() == "listed: listed, 30 3 * * 1 Europe/Paris; paused; last never"
    assert workplace.photoloom("deployments", "resume", "listed/listed").stdout == "listed/listed: resumed\n"
    (found,) = [
        each for each in json.loads(workplace.photoloom("deployments", "list", "--json").stdout) if each["name"] == "listed"
    ]
    assert (found["pipeline"], found["paused"]) == ("listed", False)
    wrong = workplace.photoloom("deployments", "delete", "lsted")
    assert (wrong.returncode, wrong.stderr) == (2, 'photoloom: unknown deployment "lsted"; did you mean "listed"?\n')
    assert workplace.photoloom("deployments", "delete", "listed").stdout == "listed: deleted\n"
    assert line() == ""


def test_what_was_missed_three_times_runs_once(workplace: Workplace) -> None:
    missed = Deployment(workplace, "missed", "--interval", "600")
    missed.was_due(31, 1)
    assert len(missed.runs()) >= 3
    with serving(workplace, "-c", IN_A_THREAD):
        runs = until(lambda: (all(run["state_type"] in ENDED for run in missed.runs()) and missed.runs()) or None)
        names = sorted(run["state_name"] for run in runs)
        assert names.count("Completed") == 1
        assert set(names) <= {"Completed", "Skipped", "Cancelled"}
        assert len(list((workplace.folder / "outputs" / "missed").iterdir())) == 1

        before = {run["id"] for run in runs}
        missed.was_due(45, 35)
        (late,) = [run for run in missed.runs() if run["id"] not in before]
        covered = missed.ended(late["id"])
        (ran,) = [run["name"] for run in runs if run["state_name"] == "Completed"]
        assert covered["state_name"] == "Skipped"
        assert covered["state"]["message"] == f"Skipped: {ran} began after this run was due, and took all that was there"


def test_a_run_that_died_with_its_runner_frees_its_place(workplace: Workplace) -> None:
    dying = Deployment(workplace, "dying", "--interval", "3600")
    with serving(workplace, "-m", "flows.deployments") as server:
        dead = dying.start(pause=300.0)
        process = dying.running(dead)
        server.kill()
        server.wait()
        process.kill()
        psutil.wait_procs([process], 10)
    assert [run["state_type"] for run in dying.runs() if run["id"] == dead] == ["RUNNING"]
    leases = Path(workplace.environment["PREFECT_HOME"], "concurrency_leases")
    assert any(file.stem != "expirations" for file in leases.glob("*.json")), "who holds the place outlives the server"

    with serving(workplace):
        found = dying.ended(dead)
        assert (found["state_name"], found["state"]["message"]) == (
            "Crashed", "Its process died, and so had whoever started it"
        )
        assert dying.ended(dying.start())["state_name"] == "Completed"
        stopped = dying.start(pause=300.0)
        process = dying.running(stopped)
        stopping = time.monotonic()
    print(f"serving ended {time.monotonic() - stopping:.1f} s after SIGTERM, with a run under way")
    assert not process.is_running()
    assert dying.ended(stopped)["state_name"] == "Crashed"


def test_a_run_that_is_ended_when_it_has_hardly_begun_frees_its_place(workplace: Workplace) -> None:
    ending = Deployment(workplace, "hardly", "--interval", "3600")
    with serving(workplace):
        ended = ending.start()
        until(lambda: processes_of(ended))
    assert ending.ended(ended)["state_name"] == "Crashed"


def test_a_run_told_to_end_while_a_task_run_is_made_has_crashed_not_failed(workplace: Workplace) -> None:
    ending = Deployment(workplace, "ending", "--interval", "3600")
    (workplace.folder / "own.py").write_text(f"{NODE}{TOLD_TO_END}")
    with serving(workplace):
        found = ending.ended(ending.start())
    assert found["state_name"] == "Crashed", found["state"]


def test_a_watched_folder_is_run_for_each_batch_of_whole_files(workplace: Workplace) -> None:
    workplace.add("cat-blue.png")
    (workplace.folder / "own.py").write_text(NODE)
    (workplace.folder / "parts.yaml").write_text(PARTS.replace("name: parts", "name: watched"))
    words = ("run", "parts.yaml", "--nodes", "own.py", "--watch", "photos", "--json")
    watching = subprocess.Popen(
        [sys.executable, "-m", "flows", *words], cwd=workplace.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**workplace.environment, "PYTHONPATH": str(ROOT)},
    )
    assert watching.stdout
    first = json.loads(watching.stdout.readline())
    assert (first["status"], first["steps"]["part"]["ran"]) == ("done", 1)
    whole = (EXAMPLES / "dog-green.png").read_bytes()
    with (workplace.folder / "photos" / "dog-green.png").open("wb") as slow:
        for start in range(0, len(whole), len(whole) // 8 + 1):
            slow.write(whole[start : start + len(whole) // 8 + 1])
            slow.flush()
            time.sleep(0.6)
    second = json.loads(watching.stdout.readline())
    assert (second["status"], second["failures"]) == ("done", [])
    assert [second["steps"]["part"][state] for state in ("cached", "ran", "failed")] == [1, 1, 0]
    (made,) = [found["path"] for found in second["outputs"]["part"] if found["id"] == "dog-green"]
    with pil.open(workplace.folder / made) as picture:
        assert (np.asarray(picture) == original("dog-green") // 2).all()
    watching.send_signal(signal.SIGINT)
    out, said = watching.communicate(timeout=30)
    assert (watching.returncode, out) == (130, "")
    assert said.startswith("watching photos; Ctrl-C ends it\n")
    assert "Traceback" not in said


# --- docs/schedules.md ---

PAGE = (ROOT / "docs" / "schedules.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S) for line in block.splitlines()]


def test_the_commands_of_the_page_do_what_is_said(workplace: Workplace) -> None:
    shutil.copytree(ROOT / "pipelines", workplace.folder / "pipelines")
    shutil.copy(ROOT / "prefect.yaml", workplace.folder)
    (workplace.folder / "inbox").mkdir()
    api = api_of(workplace.environment)
    environment = {**workplace.environment, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": api}
    environment["PWD"] = str(workplace.folder)  # as a shell has it

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=workplace.folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )

    ends = {"serve": (signal.SIGTERM, 0, "started!"), "run": (signal.SIGINT, 130, "watching inbox")}
    for line in COMMANDS:
        program, command, *words = shlex.split(line)
        running = start({"photoloom": "flows", "prefect": "prefect"}[program], command, *words)
        if command in ends:
            ending, code, said = ends[command]
            assert running.stdout
            assert any(said in line for line in running.stdout), line
            running.send_signal(ending)
        else:
            code = 0
        out = running.communicate(timeout=120)[0]
        assert running.returncode == code, f"{line}\n{out}"

    flows = {flow["id"]: flow["name"] for flow in asked(workplace, "flows", {})}
    found = {(flows[each["flow_id"]], each["name"]): each for each in asked(workplace, "deployments", {})}
    assert ("find-similar", "mondays") in found
    assert ("replace-object", "dogs") not in found, "deleted"
    by_file, ours = found["photoloom", "nightly"], found["replace-object", "nightly"]
    for same in ("entrypoint", "work_pool_name", "job_variables", "concurrency_options"):
        assert by_file[same] == ours[same], same
    assert by_file["global_concurrency_limit"]["limit"] == ours["global_concurrency_limit"]["limit"] == 1
    for name in ("photoloom/nightly", "replace-object/nightly", "mondays"):
        assert workplace.photoloom("deployments", "delete", name).stdout == f"{name}: deleted\n"
