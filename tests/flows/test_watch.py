"""A folder that is watched: files count when they are whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

import pytest

from flows import watch
from nodes.errors import UserError


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watch, "SETTLED", 0.6)
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


class Watched:
    """The batches of a folder, each with the sizes that its files had by then, but for those that are not whole."""

    def __init__(self, inbox: Path) -> None:
        self.batches: Queue[tuple[int, list[int]]] = Queue()
        self._found: Iterator[watch.Arrived] = watch.batches(inbox, [inbox / "out"])
        threading.Thread(target=self._watch, args=(inbox,), daemon=True).start()
        time.sleep(0.5)

    def _watch(self, inbox: Path) -> None:
        for found in self._found:
            files = [file for file in inbox.rglob("*") if file.is_file() and file not in found.unfinished]
            self.batches.put((found.count, sorted(file.stat().st_size for file in files)))

    def next(self) -> tuple[int, list[int]]:
        return self.batches.get(timeout=10)


def test_what_lies_there_comes_first_and_what_arrives_when_it_is_whole(inbox: Path) -> None:
    (inbox / "old.png").write_bytes(b"1234")
    watched = Watched(inbox)
    assert watched.next() == (1, [4])
    with (inbox / "new.png").open("wb") as new:
        for _ in range(8):
            new.write(b"x" * 100)
            new.flush()
            time.sleep(0.2)
    assert watched.next() == (1, [4, 800])


def test_a_file_that_still_grows_does_not_hold_up_the_others(inbox: Path) -> None:
    watched, over = Watched(inbox), threading.Event()

    def grow() -> None:
        with (inbox / "long.png").open("wb") as growing:
            while not over.wait(0.1):
                growing.write(b"x" * 100)
                growing.flush()

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        for size in (1, 2):
            (inbox / f"{size}.png").write_bytes(b"1" * size)
            assert watched.next() == (1, [1, 2][:size])
    finally:
        over.set()
        growing.join()
    assert watched.next() == (1, [1, 2, (inbox / "long.png").stat().st_size])


def test_a_folder_moved_in_counts_with_all_its_files_and_results_do_not(inbox: Path, tmp_path: Path) -> None:
    watched = Watched(inbox)
    (inbox / "out").mkdir()
    (inbox / "out" / "result.png").write_bytes(b"1")
    with pytest.raises(Empty):
        watched.batches.get(timeout=2)
    (tmp_path / "trip").mkdir()
    for name in ("a", "b"):
        (tmp_path / "trip" / name).write_bytes(b"22")
    (tmp_path / "trip").rename(inbox / "trip")
    assert watched.next() == (2, [1, 2, 2])


def test_a_file_that_is_gone_again_calls_for_nothing(inbox: Path) -> None:
    watched = Watched(inbox)
    (inbox / ".new.png.part").write_bytes(b"1")
    time.sleep(0.3)
    (inbox / ".new.png.part").unlink()
    with pytest.raises(Empty):
        watched.batches.get(timeout=2)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--watch .*/nowhere: no such folder$"):
        next(watch.batches(tmp_path / "nowhere"))
