"""A store in a bucket: several machines, several at once, what goes wrong on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest

from flows.bucket import Bucket
from flows.execute import Execution
from flows.leases import Leases
from flows.objects import blob_name, manifest_name
from flows.pipeline import Pipeline
from flows.report import Writer, leave
from flows.shared import Copies
from flows.store import Ref, Store, open_store
from nodes.errors import StoreError, Unreachable, UserError
from tests import s3, toys
from tests.flows.conftest import states
from tests.flows.test_cache import chain, damage, first_call, first_ref

ROOT = Path(__file__).parents[2]
SLOW = 'name: x\nsteps:\n  photo: {{node: Grey, path: "{}"}}\n  slow: {{node: Slow, image: photo}}\n'


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3.served() as found:
        yield found


@pytest.fixture(autouse=True)
def known(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a machine knows of the service, and nothing else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.environment(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def url(endpoint: str) -> str:
    """A place in a new bucket."""
    name = f"b{uuid4().hex}"
    s3.request(endpoint, "PUT", name)
    return f"s3://{name}/a/prefix"


Machine = Callable[[str], Store]


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The store as a machine of some name sees it, whose copies are its own."""

    def found(name: str) -> Store:
        monkeypatch.setenv("PHOTOLOOM_CACHE", str(tmp_path / name))
        return open_store(url)

    return found


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve pictures of one pixel: 0, 1, 2, …"""
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(12):
        (folder / f"n{index:02}.txt").write_text(str(index))
    return folder


def run(store: Store, text: str, **params: Any) -> Execution:
    toys.calls.clear()
    execution = Execution(Pipeline.from_yaml(text).graph(params), store)
    execution.run()
    return execution


def pixels(execution: Execution, step: str) -> list[bytes]:
    return [value.pixels.tobytes() for _, _, value in execution.values(step, "output")]  # type: ignore[attr-defined]


# --- several machines ---


def test_a_second_machine_makes_nothing_again(machine: Machine, photos: Path) -> None:
    first = run(machine("one"), chain(photos))
    assert states(first) == dict.fromkeys(("photo", "negative", "spot", "cut"), "3 ran")
    second = run(machine("two"), chain(photos))
    assert states(second) == dict.fromkeys(("photo", "negative", "spot", "cut"), "3 cached")
    assert toys.calls == []
    assert pixels(second, "negative") == pixels(first, "negative")


def test_what_a_machine_has_had_it_asks_for_no_more(
    machine: Machine, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    fetch = Bucket.fetch
    monkeypatch.setattr(Bucket, "fetch", lambda self, name: asked.append(name) or fetch(self, name))
    ran = run(machine("one"), chain(photos))
    asked.clear()
    run(machine("two"), chain(photos), threshold=201)
    manifests = [manifest_name(first_call(ran, step, index).key) for step in ("photo", "negative", "cut") for index in range(3)]
    values = [blob_name(ref.digest) for call in ran.walk("negative") if call.manifest for ref in call.manifest.refs()]
    assert set(asked) >= {"photoloom.json", *manifests, *values}
    asked.clear()
    again = run(machine("two"), chain(photos), threshold=201)
    assert toys.calls == [] and len(pixels(again, "negative")) == 3
    assert asked == ["photoloom.json"]


def test_two_machines_at_once_share_the_work_and_make_nothing_twice(machine: Machine, many: Path) -> None:
    toys.calls.clear()
    runs = [Execution(Pipeline.from_yaml(SLOW.format(many)).graph(), machine(name)) for name in ("one", "two")]
    threads = [threading.Thread(target=each.run) for each in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert toys.calls.count("Slow") == 12
    assert sum(each.result.steps["slow"].ran for each in runs) == 12
    assert pixels(runs[0], "slow") == pixels(runs[1], "slow") == [bytes([n]) for n in range(12)]
    assert list(Bucket(runs[0].store.objects.bucket.url).listed("claims")) == []  # type: ignore[attr-defined]


def test_values_and_look_ups_are_asked_for_several_at_once(
    machine: Machine, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SLOW.format(many).replace("steps:", "params: {threshold: 100}\nsteps:")
    text += '  spot: {node: BrightSpot, image: slow, threshold: "${threshold}"}\n'
    run(machine("one"), text)
    at_once, most, lock, fetch = [0], dict[str, int](), threading.Lock(), Bucket.fetch

    def slow(self: Bucket, name: str) -> bytes | None:
        kind = name.partition("/")[0]
        with lock:
            at_once[0] += 1
            most[kind] = max(most.get(kind, 0), at_once[0])
        time.sleep(0.05)
        try:
            return fetch(self, name)
        finally:
            with lock:
                at_once[0] -= 1

    monkeypatch.setattr(Bucket, "fetch", slow)
    assert states(run(machine("two"), text, threshold=101))["spot"] == "12 ran"
    assert most["manifests"] >= 6 and most["blobs"] >= 6, most


# --- claims ---


def test_of_two_claims_one_wins_and_what_is_let_go_of_is_free(url: str) -> None:
    one, two = Leases(Bucket(url)), Leases(Bucket(url))
    with one.claimed(["a", "b"]) as mine, two.claimed(["b", "c"]) as others:
        assert (mine, others) == ({"a", "b"}, {"c"})
        with one.claimed(["a"]) as again:
            assert again == set(), "a process does not claim twice either"
    time.sleep(0.6)
    with two.claimed(["a", "b"]) as mine:
        assert mine == {"a", "b"}


def test_a_claim_that_is_held_stays_held(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.leases.SILENT", 1.6)
    monkeypatch.setattr("flows.leases.AGAIN", 0.0)
    with Leases(Bucket(url)).claimed(["k"]) as mine:
        assert mine == {"k"}
        for _ in range(3):
            time.sleep(0.7)
            with Leases(Bucket(url)).claimed(["k"]) as others:
                assert others == set()


def test_the_claim_of_a_process_that_was_killed_is_taken_over(
    machine: Machine, url: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.leases.SILENT", 2.0)
    text = SLOW.format(f"{many}/n01.txt")
    store = machine("one")
    (call,) = run(store, text).walk("slow")
    store.forget(call.key)
    code = (
        "import sys, time; from flows.bucket import Bucket; from flows.leases import Leases\n"
        "with Leases(Bucket(sys.argv[1])).claimed([sys.argv[2]]) as mine:\n    print(len(mine), flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, url, call.key], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert other.stdout and other.stdout.readline() == "1\n"
    began = time.monotonic()
    other.kill()
    other.communicate()
    again = run(store, text)
    assert states(again)["slow"] == "1 ran"
    assert 1.0 < time.monotonic() - began < 15.0


# --- what is damaged or gone ---


def test_a_damaged_object_is_a_miss_that_is_said_and_made_again(machine: Machine, photos: Path) -> None:
    ran = run(machine("one"), chain(photos))
    name = blob_name(first_ref(ran, "negative").digest)
    bucket = Bucket(ran.store.objects.bucket.url)  # type: ignore[attr-defined]
    whole = bucket.fetch(name)
    assert whole
    bucket.write(name, whole[:-1] + b"?")
    other = machine("two")
    found = run(other, chain(photos), threshold=199)
    assert found.result.failures == []
    assert found.result.steps["negative"].reasons == {"damaged": 1}
    assert bucket.fetch(name) == whole
    assert other.verify() == []


def test_a_damaged_copy_is_fetched_again_and_nothing_is_made(machine: Machine, photos: Path) -> None:
    store = machine("one")
    ran = run(store, chain(photos))
    call = first_call(ran, "negative")
    assert call.manifest
    names = [manifest_name(call.key), *(blob_name(ref.digest) for ref in call.manifest.refs())]
    for name in names:
        damage(store.folder / name)
    again = run(machine("one"), chain(photos))
    assert toys.calls == [] and pixels(again, "negative") == pixels(ran, "negative")
    assert machine("one").verify() == []


def test_verify_reads_the_bucket_and_not_the_copies(machine: Machine, photos: Path) -> None:
    store = machine("one")
    digest = first_ref(run(store, chain(photos)), "photo").digest
    store.objects.bucket.write(blob_name(digest), b"?")  # type: ignore[attr-defined]
    found = store.verify()
    assert found[0] == f"value {digest[:12]} is damaged"
    assert len(found) > 1 and all("which is missing" in line for line in found[1:])
    assert machine("two").verify() == []


def test_what_was_collected_on_one_machine_is_made_again(
    machine: Machine, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("one")
    run(store, chain(photos))
    assert store.info()["results"] == 12
    assert store.collect(2**30) == 0
    assert store.collect(0) == 0 and store.info()["values"] > 0, "young values stay"
    monkeypatch.setattr("flows.store.YOUNG", -10)
    assert store.collect(0) > 0
    assert store.info() == {"results": 0, "values": 0, "bytes": 0}
    assert run(machine("one"), chain(photos)).result.steps["photo"].reasons == {"removed from the store": 3}


def test_a_bucket_that_is_begun_again_has_no_copies(machine: Machine, photos: Path) -> None:
    store = machine("one")
    run(store, chain(photos))
    bucket = Bucket(store.objects.bucket.url)  # type: ignore[attr-defined]
    for name in ["photoloom.json", *(found.name for kind in ("blobs", "manifests") for found in bucket.listed(kind))]:
        bucket.remove(name)
    assert states(run(machine("one"), chain(photos)))["negative"] == "3 ran"


def test_copies_take_no_more_than_they_may(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 1000)
    names = [blob_name(f"{number:064}") for number in range(40)]
    copies.replace(blob_name("f" * 64), [b"x" * 200])
    assert list(copies.listed("blobs")) == [], "one that would push out a tenth of the others is not kept"
    for name in names:
        copies.replace(name, [b"x" * 50])
        time.sleep(0.002)
    found = {each.name for each in copies.listed("blobs")}
    assert 500 <= 50 * len(found) <= 1000
    assert names[-1] in found and names[0] not in found


def test_the_size_of_the_copies_is_read_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOLOOM_CACHE_SIZE", "plenty")
    with pytest.raises(UserError) as caught:
        open_store(url)
    assert str(caught.value) == "PHOTOLOOM_CACHE_SIZE plenty: expected a number with K, M or G, such as 20G"


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("s3://absent-bucket/x", "the store s3://absent-bucket/x: there is no such bucket"),
        ("s3://", "the store s3://: expected s3://BUCKET/PREFIX"),
        ("s3://me:word@bucket/x", "the store s3://…: credentials do not belong into a URL; set AWS_ACCESS_KEY_ID and "
                                  "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
        ("s4://bucket/x", "the store s4://bucket/x: expected a folder or s3://BUCKET/PREFIX"),
    ],
)
def test_a_wrong_url_is_told_in_a_line(where: str, message: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(where)
    assert str(caught.value) == message
    assert not isinstance(caught.value, Unreachable)


def test_missing_credentials_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert str(caught.value) == (
        f"the store {url}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    )


def test_a_secret_in_the_endpoint_is_not_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConnectionError(f'Could not connect to the endpoint URL: "http://me:{s3.SECRET}@host:9/b"')
    monkeypatch.setattr("flows.bucket.PAUSES", ())
    monkeypatch.setattr("fsspec.filesystem", Mock(return_value=Mock(cat_file=Mock(side_effect=error))))
    with pytest.raises(Unreachable) as caught:
        open_store(url)
    assert str(caught.value) == (
        f'the store {url} does not answer: Could not connect to the endpoint URL: "http://host:9/b"'
    )


def test_a_service_that_is_not_there_is_told_soon(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        open_store(url)
    assert time.monotonic() - began < 5
    assert str(caught.value) == (
        f'the store {url} does not answer: Could not connect to the endpoint URL: "http://127.0.0.1:9/'
        f'{url.removeprefix("s3://")}/photoloom.json"'
    )


def failing(monkeypatch: pytest.MonkeyPatch, store: Store, method: str, names: set[str], times: int) -> list[str]:
    """Let a request fail for objects of these names, so many times each; gives those that failed."""
    system = store.objects.bucket._system  # type: ignore[attr-defined]
    real, failed = getattr(system, method), list[str]()

    def work(path: str, *given: Any, **options: Any) -> Any:
        name = next((name for name in names if path.endswith(name)), None)
        if name and failed.count(name) < times:
            failed.append(name)
            raise TimeoutError("no answer")
        return real(path, *given, **options)

    monkeypatch.setattr("flows.bucket.PAUSES", (0.0, 0.0))
    monkeypatch.setattr(system, method, work)
    return failed


def test_a_request_that_fails_in_passing_is_made_again(
    machine: Machine, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(machine("one"), chain(photos))
    store = machine("two")
    names = {manifest_name(call.key) for call in ran.walk("negative")}
    failed = failing(monkeypatch, store, "cat_file", names, 2)
    assert states(run(store, chain(photos)))["negative"] == "3 cached"
    assert len(failed) >= 4


@pytest.mark.parametrize("method", ["cat_file", "pipe_file"])
def test_a_request_that_keeps_failing_fails_its_element_alone(
    machine: Machine, photos: Path, url: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    ran = run(machine("one"), chain(photos))
    call = first_call(ran, "negative", 1)
    store = machine("two")
    if method == "pipe_file":
        store.forget(call.key)
    failing(monkeypatch, store, method, {manifest_name(call.key)}, 100)
    found = run(store, chain(photos))
    assert states(found)["negative"] == "2 cached, 1 failed"
    assert states(found)["cut"] == "2 cached, 1 skipped"
    assert [(f.step, f.id, f.error) for f in found.result.failures] == [
        ("negative", "b", f"the store {url} does not answer: no answer")
    ]
    assert found.result.failures[0].traceback == ""
    assert states(run(machine("two"), chain(photos)))["cut"] == "3 cached"


def test_a_file_that_cannot_be_written_for_want_of_an_answer_fails_alone(
    machine: Machine, photos: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(machine("one"), chain(photos))
    store, out = machine("two"), tmp_path / "out"
    failing(monkeypatch, store, "cat_file", {blob_name(first_ref(ran, "negative").digest)}, 100)
    execution = Execution(Pipeline.from_yaml(chain(photos) + "outputs: [negative]\n").graph(), store)
    execution.finished = writer = Writer(execution.graph, out, execution=execution)
    execution.run()
    found = leave(execution, out, writer.written(), time.monotonic())
    assert found["status"] == "failed"
    assert [file["id"] for file in found["outputs"]["negative"]] == ["b", "c"]
    assert found["failures"] == [
        {"step": "negative", "id": "a", "error": f"the store {url} does not answer: no answer"}
    ]


def test_refused_access_ends_the_run_at_once(machine: Machine, photos: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machine("one")

    def refuse(*given: Any, **options: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(store.objects.bucket._system, "pipe_file", refuse)  # type: ignore[attr-defined]
    with pytest.raises(StoreError) as caught:
        run(store, chain(photos))
    assert str(caught.value) == f"the store {url}: access is refused: Access Denied"


# --- other places ---


def test_a_folder_may_be_named_as_a_url(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/a%20store").folder == open_store(tmp_path / "a store").folder
    assert open_store(str(tmp_path / "plain")).objects.lanes == 1


def test_any_file_system_that_fsspec_knows_will_do(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"memory://{uuid4().hex}"
    for name, state in (("one", "3 ran"), ("two", "3 cached")):
        monkeypatch.setenv("PHOTOLOOM_CACHE", str(tmp_path / name))
        store = open_store(where)
        assert states(run(store, chain(photos)))["cut"] == state
    assert store.verify() == []
    assert store.info()["results"] == 12
    assert store.get(Ref(first_ref(run(store, chain(photos)), "cut").digest))
