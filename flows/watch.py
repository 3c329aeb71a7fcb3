"""Waits for files to arrive in a folder, and to be whole. Knows nothing of pipelines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodes.errors import UserError

SETTLED = 2.0
"""Seconds for which a file's size and time must not change for it to be whole."""
PATIENCE = 60.0
"""Seconds after which a file counts that cannot be read all the same: the run will say what is wrong with it."""
LOOK = 250
"""Milliseconds between two looks at files that are not whole yet."""

Look = tuple[int, int]
"""A file's size and time of change."""


@dataclass(frozen=True)
class Arrived:
    """How many files have come, or changed, and are whole; and which are there and are not."""

    count: int
    unfinished: frozenset[Path]


def batches(folder: Path, apart_from: Sequence[Path] = ()) -> Iterator[Arrived]:
    """The files below a folder, and then those that come or change, as they are whole.

    Files below `apart_from` are not looked at: a run that writes there would call for the next one.

    Raises:
        UserError: there is no such folder.
    """
    from watchfiles import watch

    if not folder.is_dir():
        raise UserError(f"--watch {folder}: no such folder")
    left_out = [path.resolve() for path in apart_from]
    waiting: dict[Path, tuple[Look, float]] = {}
    places = [folder.resolve()]  # what lies there already, looked up when the watch has begun
    for changes in watch(folder, watch_filter=None, rust_timeout=LOOK, yield_on_timeout=True):
        places += [Path(path) for _, path in changes]
        for file in _files(places, left_out):
            waiting.setdefault(file, ((-1, -1), 0.0))
        places = []
        if whole := _whole(waiting):
            for file in whole:
                del waiting[file]
            yield Arrived(len(whole), frozenset(waiting))


def _files(places: Sequence[Path], left_out: Sequence[Path]) -> Iterator[Path]:
    """The files among places and, where a whole folder was moved in, below them."""
    for place in places:
        for path in place.rglob("*") if place.is_dir() else (place,):
            if path.is_file() and not any(path.is_relative_to(folder) for folder in left_out):
                yield path


def _whole(waiting: dict[Path, tuple[Look, float]]) -> list[Path]:
    """Look at each file again; gives those that have stayed the same for long enough and can be read."""
    found, now = [], time.monotonic()
    for file, (before, since) in list(waiting.items()):
        try:
            stat = file.stat()
        except FileNotFoundError:
            del waiting[file]
            continue
        look = stat.st_size, stat.st_mtime_ns
        waiting[file] = look, since if look == before else now
        still = now - waiting[file][1]
        if still >= PATIENCE or (still >= SETTLED and _readable(file)):
            found.append(file)
    return found


def _readable(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError:
        return False
    return True
