"""Folders of many pictures: windows, what goes on beside the main thread, batches, and processes that share a store."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.claims import Claims
from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.report import Writer
from flows.store import Store
from flows.windows import LARGEST, LEAST, WindowSize
from nodes import Image, Text
from nodes.batches import BatchSize, grouping, in_batches
from nodes.errors import OutOfMemory, StoreError
from tests import toys
from tests.conftest import ROOT
from tests.flows.conftest import Run, states


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twenty pictures of one pixel, n00 to n19, of the values 0 to 19."""
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(20):
        (folder / f"n{index:02}.txt").write_text(f"{index}\n")
    return folder


def pixels(execution: Execution, step: str) -> list[int]:
    return [int(value.pixels[0, 0, 0]) for _, _, value in execution.values(step, "output") if isinstance(value, Image)]


def test_all_windows_give_all_pictures_in_order_and_written(many: Path, store: Store, tmp_path: Path) -> None:
    graph = Pipeline.from_yaml(f"""
name: x
steps:
  photo: {{node: Grey, path: "{many}"}}
  negative: {{node: Invert, image: photo}}
  file: {{node: Write, image: negative, name: "{{id}}-negative"}}
  count: {{node: Tolerant, images: negative}}
outputs: [negative]
""").graph()
    writer = Writer(graph, tmp_path / "out")
    execution = Execution(graph, store, window=3, finished=writer)
    writer.execution = execution
    execution.run()
    assert states(execution) == {"photo": "20 ran", "negative": "20 ran", "file": "20 ran", "count": "1 ran"}
    assert pixels(execution, "negative") == [255 - n for n in range(20)]
    assert [value.value for _, _, value in execution.values("count", "output")] == [20]  # type: ignore[attr-defined]
    assert [each["id"] for each in writer.written()["negative"]] == [f"n{n:02}" for n in range(20)]
    files = [Path(each["path"]) for each in writer.written()["file"]]
    assert [file.name for file in files] == [f"n{n:02}-negative.raw" for n in range(20)]
    assert [file.read_bytes()[0] for file in files] == [255 - n for n in range(20)]


def test_values_of_windows_that_are_through_are_let_go(many: Path, store: Store) -> None:
    held: list[int] = []

    class Watched(Execution):
        def _round(self, *given: Any) -> None:
            super()._round(*given)
            held.append(sum(len(values) for values in self.planner.elements._values.values()))

    text = f'name: x\nsteps:\n  photo: {{node: Grey, path: "{many}"}}\n  negative: {{node: Invert, image: photo}}\n'
    text += "  rows: {node: Rows, image: negative}\n  back: {node: Stack, images: rows}\n  again: {node: Invert, image: back}\n"
    Watched(Pipeline.from_yaml(text).graph(), store, window=2).run()
    assert len(held) == 10
    assert max(held) <= 2 * 4, held


def test_the_next_windows_pictures_are_read_while_a_node_works(many: Path, run: Run) -> None:
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{many}/n0[0-7].txt"}}
  patient: {{node: Patient, image: photo, kind: Grey, count: 4}}
""", window=2)
    assert states(ran) == {"photo": "8 ran", "patient": "8 ran"}


def test_what_the_last_window_gave_is_encoded_while_a_node_works(many: Path, run: Run) -> None:
    # The first window's picture waits for no file, the second's for the first one's.
    for n in range(2):
        (many / f"m{n}.txt").write_text(f"{n}\n")
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{many}/m*.txt"}}
  number: {{node: Measure, image: photo}}
  patient: {{node: Patient, image: photo, kind: Write, count: "${{number.mean}}"}}
  file: {{node: Write, image: patient}}
""", window=1)
    assert states(ran)["file"] == "2 ran"


def test_what_goes_wrong_beside_the_run_is_raised(many: Path, store: Store) -> None:
    def fails() -> None:
        raise StoreError("the disk is full")

    graph = Pipeline.from_yaml(f'name: x\nsteps:\n  photo: {{node: Grey, path: "{many}"}}\n').graph()
    execution = Execution(graph, store, window=3, finished=lambda call, outputs: execution.beside(fails))
    with pytest.raises(StoreError, match="the disk is full"):
        execution.run()


def test_windows_grow_as_far_as_memory_allows(many: Path, store: Store) -> None:
    sizes: list[int] = []

    class Watched(Execution):
        def _round(self, each: Any, around: Any) -> None:
            sizes.append(len(each.window))
            super()._round(each, around)

    for index in range(20, 120):
        (many / f"n{index}.txt").write_text(f"{index}\n")
    graph = Pipeline.from_yaml(f'name: x\nsteps:\n  photo: {{node: Grey, path: "{many}"}}\n').graph()
    Watched(graph, store).run()
    assert sizes[0] == 16 and sum(sizes) == 120 and max(sizes) > 16


def test_windows_of_large_pictures_are_small_also_where_the_store_let_go_of_some(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.store.RECENT_BYTES", 3 * 2**20)
    for number in range(16):
        store.put(Image(np.full((1024, 1024, 1), number, np.uint8)))
    moved = store.turn()
    assert 16 * 2**20 < moved < 16.1 * 2**20
    assert store.turn() == 0
    size = WindowSize(None)
    monkeypatch.setattr(size, "_budget", 12 * 2**20)
    size.took(16, moved)
    assert size.size() == 11
    size.took(11, 11 * 100 * 2**20)
    assert size.size() == LEAST
    for _ in range(8):
        size.took(8, 8)
    assert size.size() == LARGEST


# --- a model that is not to wait ---


def test_a_gpu_works_while_what_came_before_is_kept(many: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, keep = threading.Event(), Store.put

    def put(store: Store, value: Any) -> Any:
        if isinstance(value, Image) and int(value.pixels[0, 0, 0]) >= 128:  # what the model gave
            kept.set()
        return keep(store, value)

    def work(node: toys.Ponder, image: Image) -> Image:
        if image.pixels[0, 0, 0] == 1:
            assert kept.wait(20), "the first one's result is kept only when the second is through"
        return Image(255 - image.pixels)

    monkeypatch.setattr("flows.calls.device_is_cpu", lambda: False)
    monkeypatch.setattr(Store, "put", put)
    monkeypatch.setattr(toys.Ponder, "run", work)
    text = f"""
name: x
models: {{ponder: {{source: "{many}", dtype: float16}}}}
steps:
  photo: {{node: Grey, path: "{many}"}}
  thought: {{node: Ponder, image: photo}}
"""
    (many / "x.safetensors").write_bytes(b"1")
    ran = run(text, batch=1)
    assert states(ran)["thought"] == "20 ran", ran.result.failures
    assert pixels(ran, "thought") == [255 - n for n in range(20)], "in order"


# --- batches ---


def test_a_batch_grows_while_that_makes_it_quicker() -> None:
    size = BatchSize()
    seconds = {2: 2.0, 4: 2.5, 8: 3.5, 16: 8.0}
    for _ in range(10):
        size.took(size.size, seconds[size.size])
    assert size.size == 8


def test_a_fixed_batch_stays_and_shrinks_only_when_memory_is_short() -> None:
    size = BatchSize(8)
    size.took(8, 1.0)
    assert size.size == 8
    size.short(8)
    assert size.size == 4
    size.took(4, 0.1)
    assert size.size == 4


def test_out_of_memory_halves_the_batch_and_goes_on(many: Path, run: Run) -> None:
    ran = run(
        f'name: x\nsteps:\n  photo: {{node: Grey, path: "{many}"}}\n  hungry: {{node: Hungry, image: photo, most: 3}}\n',
        batch=8, window=64,
    )
    assert states(ran)["hungry"] == "20 ran"
    assert toys.calls.count("Hungry×8") == 1
    assert toys.calls.count("Hungry×4") == 2, "halved, and once more from the other half"
    assert toys.calls.count("Hungry×2") == 10


def test_out_of_memory_of_one_element_fails_it_and_names_the_sizes(
    many: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.calls.PAUSES", ())
    ran = run(
        f'name: x\nsteps:\n  photo: {{node: Grey, path: "{many}/n01.txt"}}\n  hungry: {{node: Hungry, image: photo, most: 0}}\n'
    )
    (failure,) = ran.result.failures
    assert failure.error == "memory is too short for the toy; the inputs: image uint8 (1, 1, 1)"
    assert failure.traceback == ""


def test_what_a_node_makes_of_one_input_is_grouped_too() -> None:
    groups: list[int] = []

    def work(items: Any) -> list[int]:
        groups.append(len(items))
        if len(items) > 2:
            raise OutOfMemory("short")
        return [2 * item for item in items]

    with grouping(BatchSize(5)):
        assert in_batches(list(range(6)), work) == [0, 2, 4, 6, 8, 10]
    assert groups == [5, 2, 2, 2]


def test_pictures_with_texts_of_their_own_go_together(many: Path, run: Run) -> None:
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{many}/n0[0-5].txt"}}
  measure: {{node: Measure, image: photo}}
  said: {{node: Describe, image: photo, words: "it is ${{measure.words}}"}}
""", batch=3)
    assert [value.value for _, _, value in ran.values("said", "output") if isinstance(value, Text)] == [
        f"it is mean {n}: {n}" for n in range(6)
    ]
    assert [call for call in toys.calls if call.startswith("Describe")] == ["Describe×3", "Describe×3"]


# --- several at one store ---

SLOW = 'name: x\nsteps:\n  photo: {{node: Grey, path: "{}"}}\n  slow: {{node: Slow, image: photo}}\n'


def test_two_runs_on_one_store_share_the_work_and_make_nothing_twice(many: Path, tmp_path: Path) -> None:
    toys.calls.clear()
    runs = [Execution(Pipeline.from_yaml(SLOW.format(many)).graph(), Store(tmp_path / "store")) for _ in range(2)]
    threads = [threading.Thread(target=each.run) for each in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert toys.calls.count("Slow") == 20
    ran = [each.result.steps["slow"].ran for each in runs]
    assert sum(ran) == 20 and min(ran) >= 4, ran
    assert pixels(runs[0], "slow") == pixels(runs[1], "slow") == list(range(20))


def test_a_run_waits_for_what_another_is_making_and_takes_it(many: Path, store: Store) -> None:
    text = SLOW.format(f"{many}/n01.txt")
    graph = Pipeline.from_yaml(text).graph()
    first = Execution(graph, store)
    first.run()
    (call,) = first.walk("slow")
    manifest = call.manifest
    assert manifest
    store.forget(call.key)
    toys.calls.clear()
    second = Execution(graph, store)
    with Claims(store.folder / "claims").claimed([call.key]) as mine:
        assert mine == {call.key}
        running = threading.Thread(target=second.run)
        running.start()
        running.join(0.3)
        assert running.is_alive() and "Slow" not in toys.calls
        store.record(call.key, manifest)
    running.join(10)
    assert second.result.steps["slow"].cached == 1
    assert "Slow" not in toys.calls


def test_the_claim_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flows.claims import Claims\n"
        "with Claims(Path(sys.argv[1])).claimed(['k']) as mine:\n    print(mine, flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert other.stdout and other.stdout.readline() == "{'k'}\n"
    with Claims(tmp_path).claimed(["k", "l"]) as mine:
        assert mine == {"l"}
    other.kill()
    other.communicate()
    assert (tmp_path / "k").exists()
    with Claims(tmp_path).claimed(["k"]) as mine:
        assert mine == {"k"}
    assert list(tmp_path.iterdir()) == []


def test_models_are_prepared_only_for_steps_with_something_to_do(
    many: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []
    monkeypatch.setattr(toys.Slow, "prepare", lambda self: prepared.append("Slow"))
    graph = Pipeline.from_yaml(SLOW.format(many)).graph()
    for _ in range(2):
        execution = Execution(graph, store)
        execution.prepare()
        execution.run()
    assert prepared == ["Slow"]

