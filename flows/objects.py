"""Bytes under names: the few operations on which the store rests, and a folder that has them. Knows nothing of values."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from flows.claims import Claims
from flows.keys import Digest
from nodes.errors import StoreError, UserError

S = TypeVar("S")
T = TypeVar("T")
Parts = Sequence[bytes | memoryview]
"""The bytes to write, one part after another."""
DAY = 86_400


class Found(NamedTuple):
    """A name that is there, its size in bytes, and when it was written (or said to be of use), in seconds since 1970."""

    name: str
    size: int
    modified: float


class Claiming(Protocol):
    """Whoever keeps processes from making the same thing at once."""

    def claimed(self, keys: list[Digest]) -> AbstractContextManager[set[Digest]]:
        """Claim those keys that nobody else has claimed, for the length of the block; gives them."""


class Objects(Protocol):
    """Bytes under names such as `blobs/ab/cdef….safetensors`. A reader sees all of them or nothing.

    Raises:
        StoreError: they cannot be read or written; `Unreachable` where that may pass.
    """

    url: str
    """Where they are, for another process that stands elsewhere."""
    lanes: int
    """How many requests it is well to make at once."""

    def read(self, name: str, *, fresh: bool = False) -> bytes | None:
        """The bytes, or None; where `fresh`, not those of a copy nearby."""

    def keep(self, name: str, parts: Parts) -> None:
        """Write them under a name that tells its contents: nothing is done where it is there."""

    def replace(self, name: str, parts: Parts) -> None:
        """Write them, whatever is there."""

    def used(self, name: str) -> None:
        """It was of use, which may count like writing it. Costs next to nothing: it may be forgotten, or be a day late."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove those that are there."""

    def listed(self, folder: str) -> Iterator[Found]:
        """What is there below `blobs` or `manifests`."""

    def together(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """`work` on each item, `lanes` at once, results in order. It must not wait for what other such work does."""

    def claims(self) -> Claiming:
        """Who is at what."""


def bytes_of(option: str, text: str) -> int:
    """A size such as `500M` or `20G` in bytes.

    Raises:
        UserError: it is none; `option` says whose.
    """
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    digits = text.upper().removesuffix("B")
    unit = units.get(digits[-1:], 1)
    number = digits[:-1] if unit > 1 else digits
    if not number.isdigit():
        raise UserError(f"{option} {text}: expected a number with K, M or G, such as 20G")
    return int(number) * unit


def blob_name(digest: Digest) -> str:
    """The name of a value's bytes."""
    return f"blobs/{digest[:2]}/{digest[2:]}.safetensors"


def manifest_name(key: Digest) -> str:
    """The name of what a key gave."""
    return f"manifests/{key[:2]}/{key[2:]}.json"


def digest_in(name: str) -> Digest:
    """The digest that such a name was made of."""
    _, start, rest = name.split("/")
    return start + rest.partition(".")[0]


def sealed(body: bytes) -> bytes:
    """A line of bytes with its own digest below it, for a name that does not tell the contents."""
    return b"%b\n%b\n" % (body, hashlib.sha256(body).hexdigest().encode())


def sound(name: str, data: bytes) -> bool:
    """Whether bytes are what their name or their seal says."""
    if name.startswith("blobs/"):
        return hashlib.sha256(data).hexdigest() == digest_in(name)
    body, _, seal = data.partition(b"\n")
    return hashlib.sha256(body).hexdigest().encode() == seal.strip()


class Folder:
    """Files in a folder, each written under a temporary name and renamed.

    Raises:
        StoreError: the folder cannot be made or used.
    """

    lanes = 1

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, str(folder.resolve())
        self._base = f"{folder}{os.sep}"
        try:
            for name in ("blobs", "manifests"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the store {folder} cannot be used: {error.strerror or error}") from error

    def read(self, name: str, *, fresh: bool = False) -> bytes | None:
        """The file's bytes, or None."""
        try:
            with open(self._base + name, "rb") as file:
                return file.read()
        except OSError:
            return None

    def keep(self, name: str, parts: Parts) -> None:
        """Write a file unless it is there in full."""
        try:
            present = os.stat(self._base + name).st_size == sum(map(len, parts))
        except FileNotFoundError:
            present = False
        if not present:
            self.replace(name, parts)

    def replace(self, name: str, parts: Parts) -> None:
        """Write a file."""
        path = self.folder / name
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                for part in parts:
                    file.write(part)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StoreError(f"the store cannot be written: {path.parent}: {error.strerror or error}") from error
        draft.replace(path)

    def used(self, name: str) -> None:
        """Set the file's time of change to now, once a day at most."""
        with suppress(OSError):
            if time.time() - os.stat(self._base + name).st_mtime > DAY:
                os.utime(self._base + name)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def listed(self, folder: str) -> Iterator[Found]:
        """The files below a folder, but for drafts and what is removed meanwhile. A draft whose writer died is removed."""
        for path in (self.folder / folder).glob("*/*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                if path.name.startswith("."):
                    if time.time() - stat.st_mtime > DAY:
                        path.unlink()
                else:
                    yield Found(f"{folder}/{path.parent.name}/{path.name}", stat.st_size, stat.st_mtime)

    def together(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """One after another: a disk answers at once."""
        return [work(item) for item in items]

    def claims(self) -> Claiming:
        """Locks on files."""
        return Claims(self.folder / "claims")
