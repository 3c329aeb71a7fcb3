"""A store's objects in a bucket that several machines share, and copies of those used lately on this machine's disk."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from flows.bucket import LANES, Bucket
from flows.leases import Leases
from flows.objects import Claiming, Folder, Found, Parts, bytes_of, sound
from nodes.errors import StoreError

S = TypeVar("S")
T = TypeVar("T")

MARK = "photoloom.json"
"""The object that makes a bucket's prefix a store: it holds the id by which the copies of what is in it are known."""
COPIES_BYTES = 10 * 2**30
"""What the copies of one store take on disk, unless `PHOTOLOOM_CACHE_SIZE` says otherwise."""


class Shared:
    """Objects in a bucket. Values are created, so that of two writers one wins; it does not matter which, for equal names
    mean equal bytes. A manifest replaces the one before, whole.

    Raises:
        StoreError: the bucket cannot be used; `Unreachable` where it does not answer.
    """

    lanes = LANES

    def __init__(self, url: str) -> None:
        self.bucket, self.url = Bucket(url), url
        self.folder = _cache() / self._id()
        size = os.environ.get("PHOTOLOOM_CACHE_SIZE")
        self._copies = Copies(self.folder, bytes_of("PHOTOLOOM_CACHE_SIZE", size) if size else COPIES_BYTES)

    def _id(self) -> str:
        """What the copies are known by: a bucket that is emptied and begun again gets new ones."""
        mark = self.bucket.fetch(MARK)
        if mark is None:
            self.bucket.create(MARK, json.dumps({"store": uuid4().hex}).encode())
            mark = self.bucket.fetch(MARK)
        found = re.fullmatch(rb'\{"store": "([0-9a-f]{32})"\}', mark or b"")
        if not found:
            raise StoreError(f"the store {self.bucket.url}: {MARK} there is not that of a store")
        return found[1].decode()

    def read(self, name: str, *, fresh: bool = False) -> bytes | None:
        """The bytes, from the copy if there is a sound one and they need not be fresh."""
        if fresh:
            return self.bucket.fetch(name)
        if (copy := self._copies.read(name)) is not None:
            return copy
        data = self.bucket.fetch(name)
        if data is not None and sound(name, data):
            self._copies.replace(name, [data])
        return data

    def keep(self, name: str, parts: Parts) -> None:
        """Create an object, unless it is there."""
        self.bucket.create(name, b"".join(parts))
        self._copies.replace(name, parts)

    def replace(self, name: str, parts: Parts) -> None:
        """Write an object."""
        self.bucket.write(name, b"".join(parts))
        self._copies.replace(name, parts)

    def used(self, name: str) -> None:
        """Nothing: a bucket has no time but that of writing, and each request has its price."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, and their copies here."""
        gone = list(names)
        self.bucket.together(self.bucket.remove, gone)
        self._copies.delete(gone)

    def listed(self, folder: str) -> Iterator[Found]:
        """What is in the bucket below a folder."""
        return self.bucket.listed(folder)

    def together(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """`work` on each item, many at once."""
        return self.bucket.together(work, items)

    def claims(self) -> Claiming:
        """Claims as objects in the bucket."""
        return Leases(self.bucket)


class Copies(Folder):
    """Copies in a folder that may take `most` bytes: what was used longest ago goes first. A damaged one is none."""

    def __init__(self, folder: Path, most: int) -> None:
        super().__init__(folder)
        self._most, self._room = most, 0
        self._lock = threading.Lock()

    def read(self, name: str, *, fresh: bool = False) -> bytes | None:
        """A copy's bytes, or None."""
        data = super().read(name)
        if data is None:
            return None
        if not sound(name, data):
            self.delete([name])
            return None
        with suppress(OSError):
            os.utime(self.folder / name)
        return data

    def replace(self, name: str, parts: Parts) -> None:
        """Write a copy if that can be done; a disk that is full costs reading from the bucket again."""
        size = sum(map(len, parts))
        if size > self._most // 10:
            return
        with self._lock:
            self._room -= size
            if self._room < 0:
                self._make_room(size)
        with suppress(StoreError):
            super().replace(name, parts)

    def _make_room(self, size: int) -> None:
        """Remove the oldest copies until a tenth is free. What other processes write is seen the next time."""
        copies = sorted((*self.listed("blobs"), *self.listed("manifests")), key=lambda found: found.modified, reverse=True)
        total = size
        for found in copies:
            total += found.size
            if total > self._most * 0.9:
                self.delete([found.name])
                total -= found.size
        self._room = self._most // 10


def _cache() -> Path:
    """Where copies lie: `PHOTOLOOM_CACHE`, else the user's folder for such things."""
    if named := os.environ.get("PHOTOLOOM_CACHE"):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "photoloom"
    try:
        return Path.home() / ".cache" / "photoloom"
    except RuntimeError:
        raise StoreError("there is no home folder for copies of the store: name a folder with PHOTOLOOM_CACHE") from None
