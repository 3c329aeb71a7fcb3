"""The command `photoloom worker`, and runs that it works for: real schedulers and workers, killed for real."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from flows import cluster, remote
from flows.cli import app
from flows.execute import Execution
from flows.objects import blob_name
from flows.pipeline import Pipeline
from flows.remote import RemoteCaller
from flows.store import Store, open_store
from nodes import Image
from nodes.errors import PhotoloomError
from tests import s3, toys
from tests.conftest import EXAMPLES, ROOT, Workplace, api_of, command, free_port
from tests.flows.conftest import states

Environment = dict[str, str]


class Roof:
    """A running `photoloom worker`."""

    def __init__(self, process: subprocess.Popen[str], health: str, scheduler: str) -> None:
        self.process, self._health, self.scheduler = process, health, scheduler

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self._health, timeout=5) as reply:
                return {"well": True, **json.load(reply)}
        except urllib.error.HTTPError as error:
            with error:
                return {"well": False, **json.load(error)}

    @property
    def worker(self) -> dict[str, Any]:
        (found,) = self.health()["workers"]
        return found


@contextmanager
def roof(environment: Environment, folder: Path, *words: str) -> Iterator[Roof]:
    """A `photoloom worker` for the length of the block, once it says that it is working."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "worker", *words], cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    assert process.stderr
    said = []
    late = threading.Timer(60, process.kill)
    late.start()
    for line in process.stderr:
        said.append(line)
        if line.startswith("working: "):
            break
    late.cancel()
    reader = threading.Thread(target=process.stderr.read)
    reader.start()
    try:
        assert said and "working: cpu; scheduler t" in said[-1], said
        yield Roof(process, said[-1].split()[-1], said[-1].split()[3].rstrip(";"))
    finally:
        process.terminate()
        process.wait(60)
        reader.join()
        process.stderr.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def machine(home: Path, server: Mapping[str, str]) -> Environment:
    """The environment of a machine whose workers say in a file what they begin."""
    own = {"PREFECT_HOME": str(home), "PREFECT_API_URL": api_of(server), "PONDERED": str(home / "pondered")}
    return {**server, **own}


@pytest.fixture(scope="module")
def first(machine: Environment, home: Path) -> Iterator[Roof]:
    """A worker, with a scheduler of its own."""
    with roof(machine, home) as found:
        yield found
        cluster.workers_at(found.scheduler).client().close()


@pytest.fixture
def begun(home: Path) -> Callable[[], list[int]]:
    """The pictures that the workers began with in this test, in order."""
    log = home / "pondered"
    log.write_text("")
    return lambda: [int(line.split()[1]) for line in log.read_text().splitlines()]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures of one pixel, n20 to n31, of the values 20 to 31, beside what passes for a model."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(20, 32):
        (folder / f"n{index}.txt").write_text(f"{index}\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return folder


def pondering(photos: Path, seconds: float = 0.0, what: str = "*") -> str:
    return (
        f'name: x\nsteps:\n  photo: {{node: Grey, path: "{photos}/{what}.txt"}}\n  number: {{node: Measure, image: photo}}\n'
        f'  pondered: {{node: Ponder, image: photo, model: "{photos.parent}/model", seconds: {seconds}, '
        'words: "it is ${number.words}"}\n  back: {node: Invert, image: pondered}\noutputs: [back]\n'
    )


def execution(text: str, store: Path | str, address: str | None, **options: Any) -> Execution:
    caller = {"caller": partial(RemoteCaller, cluster.workers_at(address))} if address else {}
    return Execution(Pipeline.from_yaml(text).graph(), open_store(store), **caller, **options)


def pixels(ran: Execution, step: str) -> list[int]:
    return [int(value.pixels[0, 0, 0]) for _, _, value in ran.values(step, "output") if isinstance(value, Image)]


def eventually(true: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends, what
        time.sleep(0.02)


def test_a_run_on_a_worker_gives_the_bytes_of_a_run_here(
    first: Roof, photos: Path, tmp_path: Path, begun: Callable[[], list[int]]
) -> None:
    (photos / "n13.txt").write_text("13\n")
    here, there = (execution(pondering(photos), tmp_path / name, at) for name, at in (("a", None), ("b", first.scheduler)))
    here.run()
    toys.calls.clear()
    there.run()
    assert "Ponder" not in toys.calls and sorted(begun()) == [13, *range(20, 32)]
    assert states(there) == states(here) == {
        "photo": "13 ran", "number": "13 ran", "pondered": "12 ran, 1 failed", "back": "12 ran, 1 skipped"
    }
    for folder in ("manifests", "blobs"):
        made = [{path.name for path in (tmp_path / name / folder).glob("*/*")} for name in "ab"]
        assert made[0] == made[1]
    ((failed,), (wanted,)) = there.result.failures, here.result.failures
    assert (failed.step, failed.id, failed.error) == (wanted.step, wanted.id, wanted.error)
    assert "thirteen" in failed.traceback
    words = [value.info["words"] for _, _, value in there.values("pondered", "output")]
    assert words == [f"it is mean {n}" for n in range(20, 32)]
    again = execution(pondering(photos), tmp_path / "b", first.scheduler)
    again.run()
    assert states(again)["pondered"] == "12 cached, 1 failed"


def test_a_worker_makes_each_thing_of_a_counted_list_alone(first: Roof, photos: Path, tmp_path: Path) -> None:
    text = (
        'name: x\nparams: {count: 5}\nsteps:\n'
        f'  far: {{node: Far, count: "${{count}}", first: 10, model: "{photos.parent}/model"}}\n'
        '  back: {node: Invert, image: far}\n'
    )
    here, there = (execution(text, tmp_path / name, at) for name, at in (("a", None), ("b", first.scheduler)))
    here.run()
    toys.calls.clear()
    there.run()
    assert not any(call.startswith("Cards") for call in toys.calls)
    assert states(there) == states(here) == {"far": "4 ran, 1 failed", "back": "4 ran, 1 skipped"}
    for folder in ("manifests", "blobs"):
        made = [{path.name for path in (tmp_path / name / folder).glob("*/*")} for name in "ab"]
        assert made[0] == made[1]
    assert pixels(there, "far") == [10, 11, 12, 14]
    more = execution(text.replace("count: 5", "count: 6"), tmp_path / "b", first.scheduler)
    more.run()
    assert states(more)["far"] == "1 ran, 4 cached, 1 failed"


def test_a_damaged_input_is_made_again_for_the_worker(first: Roof, photos: Path, tmp_path: Path) -> None:
    text = pondering(photos)
    here = execution(text, tmp_path / "store", None)
    here.run()
    for each in here.walk("pondered"):
        here.store.forget(each.key)
    (call,) = [call for call in here.walk("photo") if call.id == "n25"]
    assert call.manifest
    (ref,) = call.manifest.refs()
    (here.store.folder / blob_name(ref.digest)).write_bytes(b"torn")
    ran = execution(text, tmp_path / "store", first.scheduler)
    ran.run()
    assert states(ran)["pondered"] == "12 ran" and pixels(ran, "back") == list(range(20, 32))
    assert ran.result.steps["photo"].reasons == {"damaged": 1}


def test_an_element_that_kills_workers_fails_alone(first: Roof, photos: Path, tmp_path: Path) -> None:
    for index in range(21, 32):
        (photos / f"n{index}.txt").unlink()
    (photos / "n66.txt").write_text("66\n")
    ran = execution(pondering(photos), tmp_path / "store", first.scheduler)
    ran.run()
    assert states(ran)["pondered"] == "1 ran, 1 failed"
    (failed,) = ran.result.failures
    assert failed.id == "n66"
    assert failed.error == (
        "the workers died that were at it: memory was too short, or a library crashed; their output says more"
    )


def test_a_killed_workers_window_is_finished_by_another(
    first: Roof, machine: Environment, home: Path, photos: Path, tmp_path: Path, begun: Callable[[], list[int]]
) -> None:
    seconds, count = 0.2, 12
    with roof(machine, home, "--scheduler", first.scheduler) as second:
        eventually(lambda: cluster.workers_at(first.scheduler).count() == 2, "two workers")
        ran = execution(pondering(photos, seconds), tmp_path / "store", first.scheduler, batch=1, window=count)
        running = threading.Thread(target=ran.run)
        started = time.monotonic()
        running.start()
        log = home / "pondered"
        mine = f"{second.worker['pid']} "
        eventually(lambda: sum(line.startswith(mine) for line in log.read_text().splitlines()) >= 2, "the second at work")
        os.kill(second.worker["pid"], signal.SIGKILL)
        running.join(60)
        took = time.monotonic() - started
        assert not running.is_alive()
        assert states(ran)["pondered"] == f"{count} ran" and pixels(ran, "back") == list(range(20, 32))
        assert Store(tmp_path / "store").verify() == []
        assert count <= len(begun()) <= count + 1, "only what was in hand is computed twice"
        eventually(lambda: second.health()["well"], "the killed worker is back")
        assert second.worker["restarts"] == 1
    lost = took - count * seconds / 2
    print(f"a worker killed: {lost:.1f} s lost")
    assert lost < count * seconds / 2 + 8


def test_a_killed_scheduler_costs_a_run_time_and_nothing_else(
    machine: Environment, home: Path, photos: Path, tmp_path: Path, begun: Callable[[], list[int]]
) -> None:
    other = tmp_path / "home"
    other.mkdir()
    with roof({**machine, "PREFECT_HOME": str(other)}, home) as own:
        ran = execution(pondering(photos, 0.1), tmp_path / "store", own.scheduler, batch=1, window=12)
        running = threading.Thread(target=ran.run)
        running.start()
        eventually(lambda: len(begun()) >= 3, "at work")
        os.kill(own.health()["scheduler"]["pid"], signal.SIGKILL)
        running.join(90)
        assert not running.is_alive()
        assert states(ran)["pondered"] == "12 ran" and pixels(ran, "back") == list(range(20, 32))
        assert 12 <= len(begun()) <= 13
        eventually(lambda: own.health()["well"], "all are back")
        cluster.workers_at(own.scheduler).client().close()


FLOW = """
from pathlib import Path
from tests.test_worker import execution, pondering

execution(pondering(Path("photos").resolve(), 0.2), Path("store").resolve(), {address!r}, batch=1, window=12).run()
"""


def test_a_flow_that_is_killed_while_a_worker_has_its_window_is_taken_up(
    first: Roof, machine: Environment, photos: Path, tmp_path: Path, begun: Callable[[], list[int]]
) -> None:
    eventually(lambda: first.health()["well"], "a worker")
    with subprocess.Popen(
        [sys.executable, "-c", FLOW.format(address=first.scheduler)], cwd=tmp_path, env={**machine, "PYTHONPATH": str(ROOT)},
    ) as flow:
        eventually(lambda: len(begun()) >= 3, "at work")
        flow.kill()
    ran = execution(pondering(photos, 0.2), tmp_path / "store", first.scheduler, batch=1, window=12)
    ran.run()
    counts = ran.result.steps["pondered"]
    assert (counts.ran + counts.cached, counts.failed) == (12, 0) and pixels(ran, "back") == list(range(20, 32))
    assert counts.cached >= 2, "what was finished is not handed over again"
    assert 12 <= len(begun()) <= 13, "only what was in hand is computed twice"
    assert Store(tmp_path / "store").verify() == []


def test_a_small_run_waits_for_one_window_of_the_large_ones(
    first: Roof, photos: Path, tmp_path: Path, begun: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SECONDS", 0.4)
    eventually(lambda: first.health()["well"], "a worker")
    text = pondering(photos, 0.1, "n2*")
    large = [execution(text, tmp_path / name, first.scheduler, window=10) for name in "ab"]
    threads = [threading.Thread(target=each.run) for each in large]
    for thread in threads:
        thread.start()
    eventually(lambda: len(begun()) >= 2, "the large ones at work")
    small = execution(pondering(photos, 0.0, "n31"), tmp_path / "c", first.scheduler)
    before, started = len(begun()), time.monotonic()
    small.run()
    waited = time.monotonic() - started
    position = begun().index(31) - before
    for thread in threads:
        thread.join(60)
    print(f"a small run among large ones: {waited:.2f} s, after {position} elements of theirs")
    assert position <= 4 + 1
    assert [states(each)["pondered"] for each in large] == ["10 ran", "10 ran"]


def test_a_worker_that_is_stopped_gives_back_its_window_and_leaves_no_process(
    first: Roof, machine: Environment, home: Path, photos: Path, tmp_path: Path, begun: Callable[[], list[int]]
) -> None:
    with roof(machine, home, "--scheduler", first.scheduler) as second:
        eventually(lambda: cluster.workers_at(first.scheduler).count() == 2, "two workers")
        pid = second.worker["pid"]
        ran = execution(pondering(photos, 0.2), tmp_path / "store", first.scheduler, batch=1, window=12)
        running = threading.Thread(target=ran.run)
        running.start()
        eventually(lambda: f"{pid} " in (home / "pondered").read_text(), "the second at work")
        second.process.terminate()
        assert second.process.wait(30) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        running.join(60)
    assert states(ran)["pondered"] == "12 ran"
    assert sorted(begun()) == list(range(20, 32)), "the picture in hand was finished, and none was begun twice"


DETECT = """
import sys
from pathlib import Path
from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.remote import caller_on
from flows.store import Store

text = 'name: x\\nsteps:\\n  photo: {node: Load, path: "%s"}\\n  boxes: {node: Detect, image: photo, threshold: %s}\\n'
for threshold in range(50, 60):
    graph = Pipeline.from_yaml(text % (sys.argv[1], threshold / 100)).graph()
    ran = Execution(graph, Store(Path("store")), caller=caller_on("worker"))
    ran.prepare()
    ran.run()
    print(ran.result.steps["boxes"].ran, "torch" in sys.modules)
"""


def test_models_load_once_in_the_worker_over_ten_runs_and_never_in_the_flow(
    first: Roof, machine: Environment, home: Path, tmp_path: Path
) -> None:
    for name in ("cat-blue.png", "dog-green.png"):
        (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
    ran = subprocess.run(
        [sys.executable, "-c", DETECT, "*.png"], cwd=tmp_path, env={**machine, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )
    assert ran.stdout.splitlines() == 10 * ["2 False"], ran.stderr
    worker = first.worker
    assert worker["models"] == {str(ROOT / "models" / "toybox" / "detr"): 1}
    assert worker["running"] is None and worker["windows"] >= 10
    assert first.health()["deployments"]["alive"], "what is deployed is served too"


def test_a_second_worker_without_a_scheduler_is_told_of_the_first(first: Roof, machine: Environment, home: Path) -> None:
    ran = command(machine, home, "worker")
    assert ran.returncode == 2
    assert ran.stderr == (
        f"photoloom: photoloom worker runs already (process {first.process.pid}); a further one joins it with "
        f"--scheduler {first.scheduler}\n"
    )


@pytest.mark.parametrize(("words", "said"), [
    (("worker", "--gpus", "9"), "photoloom: --gpus 9: there is no GPU 9 here; found: none\n"),
    (("worker", "--scheduler", "tcp://127.0.0.1:9"), "photoloom: --scheduler tcp://127.0.0.1:9: no scheduler answers there\n"),
    (("worker", "--scheduler", "here"),
     "photoloom: here: expected a scheduler such as tcp://10.0.0.5:8786 or tls://10.0.0.5:8786\n"),
    (("run", "x.yaml", "--on", "worker"),
     "photoloom: --on worker: no worker runs here; start one with: photoloom worker\n"),
    (("run", "x.yaml", "--on", "there"), "photoloom: --on there: expected here or worker\n"),
])
def test_what_cannot_be_is_said(words: tuple[str, ...], said: str, tmp_path: Path, machine: Environment) -> None:
    (tmp_path / "x.yaml").write_text("name: x\nsteps:\n  text: {node: Generate, prompt: a cat}\n")
    ran = command({**machine, "PREFECT_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}, tmp_path, *words)
    assert (ran.returncode, ran.stderr) == (2, said)


def test_a_scheduler_that_the_environment_names_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOLOOM_SCHEDULER", "tcp://127.0.0.1:9")
    with pytest.raises(PhotoloomError) as raised:
        cluster.scheduler(None)
    assert str(raised.value) == "no scheduler answers at tcp://127.0.0.1:9, which PHOTOLOOM_SCHEDULER names"
    assert cluster.scheduler("here") is None


OWN = """from nodes import Image, Model, Node


class Half(Node):
    model: Model = Model(role="half")

    def run(self, image: Image) -> Image:
        return Image(image.pixels // DIVISOR)
"""


HALF = "name: half\nsteps:\n  photo: {node: Load, path: photos}\n  half: {node: Half, image: photo, model: ./model}\n"


def test_the_command_runs_nodes_of_ones_own_on_a_worker(workplace: Workplace, home: Path) -> None:
    workplace.add("cat-blue.png")
    (workplace.folder / "model").mkdir()
    (workplace.folder / "model" / "config.json").write_text("{}")
    (workplace.folder / "half.yaml").write_text(HALF)
    with roof(dict(workplace.environment), home) as own:
        for divisor in (2, 3):
            (workplace.folder / "own.py").write_text(OWN.replace("DIVISOR", str(divisor)))
            found = workplace.run("half.yaml", "--nodes", "own.py", "--on", "worker")
            assert found["steps"]["half"]["ran"] == 1
        assert own.worker["windows"] == 2
        here = workplace.run("half.yaml", "--nodes", "own.py", "--on", "here")
        assert here["steps"]["half"]["cached"] == 1


def test_a_worker_shares_a_bucket_with_the_flow(
    machine: Environment, photos: Path, tmp_path: Path, begun: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.served() as endpoint:
        s3.request(endpoint, "PUT", "pictures")
        known = {**s3.environment(endpoint), "HOME": str(tmp_path / "flow")}
        for name, value in known.items():
            monkeypatch.setenv(name, value)
        there = {**machine, **known, "HOME": str(tmp_path / "worker"), "PREFECT_HOME": str(tmp_path)}
        with roof(there, tmp_path) as own:
            ran = execution(pondering(photos), "s3://pictures/store", own.scheduler)
            ran.run()
            assert states(ran)["pondered"] == "12 ran" and sorted(begun()) == list(range(20, 32))
            assert pixels(ran, "back") == list(range(20, 32))
            cluster.workers_at(own.scheduler).client().close()


def test_workers_are_reached_over_tls(workplace: Workplace) -> None:
    workplace.add("cat-blue.png")
    folder, port = workplace.folder, free_port()
    (folder / "own.py").write_text(OWN.replace("DIVISOR", "2"))
    (folder / "half.yaml").write_text(HALF)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=photoloom", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True,
    )
    secure = {"CA_FILE": "cert.pem"}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        secure |= {f"{role}__CERT": "cert.pem", f"{role}__KEY": "key.pem"}
    tls = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(folder / file) for name, file in secure.items()}
    address = f"tls://127.0.0.1:{port}"
    environment = {**workplace.environment, **tls, "PHOTOLOOM_SCHEDULER": address, "PYTHONPATH": str(ROOT)}
    words = ["-m", "distributed.cli.dask_scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", str(port)]
    scheduler = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: cluster.answers(address), "the scheduler answers")
        with roof(environment, folder, "--scheduler", address):
            ran = command(environment, folder, "run", "half.yaml", "--nodes", "own.py", "--on", "worker", "--json")
            assert ran.returncode == 0, ran.stderr
            assert json.loads(ran.stdout)["steps"]["half"]["ran"] == 1
    finally:
        scheduler.terminate()
        scheduler.wait(30)


SCALE = (ROOT / "docs" / "scale.md").read_text("utf-8")


def test_the_commands_of_the_page_on_scale_are_known() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", SCALE, re.M | re.S)
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    ours = [shlex.split(line.partition("photoloom ")[2]) for line in lines if "photoloom " in line]
    assert len(ours) >= 4
    commands: Any = typer.main.get_command(app)
    for name, *words in ours:
        commands.commands[name].make_context(name, words)
