"""Pipelines as Prefect flows, on a real server; and that server itself after a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from flows import Pipeline
from tests.conftest import ROOT, Workplace, command, free_port, task_runs

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
    url = f"http://127.0.0.1:{workplace.environment['PHOTOLOOM_SERVER_PORT']}/api/{what}/filter"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


def test_pipelines_compose_with_flows_and_tasks_of_ones_own(workplace: Workplace) -> None:
    workplace.add("cat-blue.png", "cat-pink.png", "dog-green.png")
    (workplace.folder / "find.yaml").write_text(FIND)
    api = f"http://127.0.0.1:{workplace.environment['PHOTOLOOM_SERVER_PORT']}/api"
    ran = subprocess.run(
        [sys.executable, "-c", OUTER], cwd=workplace.folder, capture_output=True, text=True, check=False,
        env={**workplace.environment, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": api},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "[2, 1, 0]", "ParameterTypeError", "1", 'PipelineError: unknown param "photo"; did you mean "photos"?',
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
import flows.tasks
from flows import Pipeline

flows.tasks.PROGRESS_EVERY = 0.0  # any run is a long one then
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


def test_a_server_that_died_does_not_keep_another_from_starting(workplace: Workplace) -> None:
    home = workplace.folder / "home"
    home.mkdir()
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    (home / "server.pid").write_text(str(gone.pid))
    environment = {
        **workplace.environment, "PREFECT_HOME": str(home), "PHOTOLOOM_SERVER_PORT": str(free_port()),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
    }
    try:
        began = command(environment, workplace.folder, "server", "start")
        assert began.returncode == 0, began.stderr
        assert command(environment, workplace.folder, "server", "start").stdout.startswith("already running: ")
        os.kill(int(Path(home / "server.pid").read_text()), 0)
    finally:
        assert command(environment, workplace.folder, "server", "stop").stdout == "stopped\n"
    assert command(environment, workplace.folder, "server", "status").returncode == 1


def test_a_flows_form_shows_help_bounds_and_choices() -> None:
    more = 'le: 1, help: "How sure, at least."}\n  kind: {default: cat, choices: [cat, dog]}'
    text = FIND.replace("le: 1}", more)
    form = Pipeline.from_yaml(text).flow().parameters.model_dump_for_openapi()["properties"]
    assert {key: form["threshold"][key] for key in ("type", "default", "minimum", "maximum", "description")} == {
        "type": "number", "default": 0.7, "minimum": 0, "maximum": 1, "description": "How sure, at least.",
    }
    assert (form["kind"]["enum"], form["kind"]["default"]) == (["cat", "dog"], "cat")
    assert form["photos"]["type"] == "string"
