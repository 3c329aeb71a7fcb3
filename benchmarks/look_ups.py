"""What a store costs per look-up, value read and value kept: in a folder, and where URLs are named, in a bucket.

    python benchmarks/look_ups.py                       # a folder
    python benchmarks/look_ups.py s3://bucket/prefix    # beside it a bucket, as the environment's credentials reach it
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from flows.keys import digest
from flows.shared import Shared
from flows.store import Manifest, Ref, Store, open_store
from nodes import Image

SIDE = 512
"""Pixels of a picture's side: 768 KB."""


def timed(what: str, work: Callable[[Any], object], items: Iterable[Any], together: Store | None = None) -> None:
    """Print the milliseconds that each took, one after another or as the store does several."""
    listed = list(items)
    started = time.perf_counter()
    if together:
        together.objects.together(work, listed)
    else:
        for item in listed:
            work(item)
    print(f"| {what} | {1000 * (time.perf_counter() - started) / len(listed):.3f} |")


def measure(name: str, opened: Callable[[], Store], count: int) -> None:
    """Print a table for a store, in which new pictures are kept; "here" is what this process has at hand."""
    started = time.perf_counter()
    store = opened()
    print(f"\n{name}: {count} pictures of {SIDE}², opened in {time.perf_counter() - started:.2f} s\n\n| | ms |\n|---|---|")
    generator = np.random.default_rng(int(time.time()))
    pictures = [Image(generator.integers(0, 255, (SIDE, SIDE, 3), np.uint8)) for _ in range(count)]
    refs: list[Ref] = []
    timed("value kept", lambda picture: refs.append(store.put(picture)), pictures)
    keys = [digest("Bench", ref.digest) for ref in refs]
    made = dict(zip(keys, refs, strict=True))
    timed("result kept", lambda key: store.record(str(key), Manifest({"output": made[str(key)]}, {}, {})), keys)
    timed("look-up, found here", lambda key: store.look_up(str(key)), keys * 20)
    with tempfile.TemporaryDirectory() as folder:
        fresh = elsewhere(store, Path(folder))
        timed("look-up, found", lambda key: fresh.look_up(str(key)), keys)
        timed("look-up, not found", lambda key: fresh.look_up(digest("None", key)), keys)
        timed("value read", lambda ref: fresh.get(ref), refs)
    with tempfile.TemporaryDirectory() as folder:
        fresh = elsewhere(store, Path(folder))
        timed("look-up, found, several at once", lambda key: fresh.look_up(str(key)), keys, fresh)
        timed("value read, several at once", lambda ref: fresh.get(ref), refs, fresh)


def elsewhere(store: Store, folder: Path) -> Store:
    """The same store without what this machine has at hand."""
    if not isinstance(store.objects, Shared):
        return Store(store.folder)
    os.environ["PHOTOLOOM_CACHE"] = str(folder)
    return open_store(store.objects.bucket.url)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        measure("A folder", lambda: Store(Path(folder)), 100)
    for url in sys.argv[1:]:
        measure(url, lambda: open_store(url), 100)  # noqa: B023
