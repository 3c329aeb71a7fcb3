"""The command on a store in a bucket, as a user has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import s3
from tests.conftest import Workplace

STORE = ("--store", "s3://pictures/store")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3.served() as found:
        s3.request(found, "PUT", "pictures")
        yield found


@pytest.fixture
def shared(workplace: Workplace, endpoint: str) -> Workplace:
    """Two pictures and a pipeline that reads them, on a machine that knows the service."""
    workplace.add("cat-blue.png", "dog-green.png")
    (workplace.folder / "read.yaml").write_text("name: read\nsteps:\n  photo: {node: Load, path: photos}\noutputs: [photo]\n")
    return machine(workplace, "one", s3.environment(endpoint))


def machine(workplace: Workplace, name: str, known: dict[str, str]) -> Workplace:
    """A machine with copies of its own."""
    cache = {"PHOTOLOOM_CACHE": str(workplace.folder / name), "HOME": str(workplace.folder)}
    return Workplace(workplace.folder, {**workplace.environment, **known, **cache})


def test_a_run_on_one_machine_is_cached_on_another_and_the_store_can_be_looked_after(shared: Workplace, endpoint: str) -> None:
    other = machine(shared, "two", s3.environment(endpoint))
    assert shared.run("read.yaml", *STORE)["steps"]["photo"]["ran"] == 2
    again = other.run("read.yaml", *STORE)
    assert (again["steps"]["photo"]["cached"], len(again["outputs"]["photo"])) == (2, 2)
    assert json.loads(other.photoloom("plan", "read.yaml", *STORE, "--json").stdout)["photo"][0]["state"] == "cached"
    held = json.loads(shared.photoloom("store", "info", *STORE, "--json").stdout)
    assert held["results"] == held["values"] == 4, "two pictures, and the files written of them"
    assert shared.photoloom("store", "verify", *STORE).stdout == "all right\n"
    assert shared.photoloom("store", "gc", "--max-size", "1G", *STORE).stdout == "freed 0 bytes\n"
    files = [path for path in shared.folder.rglob("*") if path.is_file()]
    assert any("two" in path.parts and path.suffix == ".safetensors" for path in files)
    assert not [path for path in files if s3.SECRET.encode() in path.read_bytes()]
    assert not (shared.folder / "outputs" / "store").exists()


def test_what_is_wrong_with_a_bucket_is_told_in_a_line(shared: Workplace, tmp_path: Path) -> None:
    nowhere = machine(shared, "one", {**s3.environment("http://127.0.0.1:9"), "AWS_EC2_METADATA_DISABLED": "true"})
    for place, where, message in (
        (shared, "s3://none/x", "photoloom: the store s3://none/x: there is no such bucket\n"),
        (nowhere, "s3://pictures/store", "photoloom: the store s3://pictures/store does not answer: Could not connect to the "
                                         'endpoint URL: "http://127.0.0.1:9/pictures/store/photoloom.json"\n'),
    ):
        for words in (("run", "read.yaml"), ("store", "info")):
            ran = place.photoloom(*words, "--store", where)
            assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", message)
