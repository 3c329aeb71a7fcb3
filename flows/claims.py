"""Who is at what: one process or thread claims a key while it makes what the key gives, so that nothing is made twice.

A claim is a lock on a file, which the system lets go of when its process ends, however it ends. Losing one to a race or a
file system without locks costs a result made twice, never a wrong one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.keys import Digest

try:
    import fcntl
except ImportError:  # a system without them: processes do not share work there
    fcntl = None  # type: ignore[assignment]


class Claims:
    """The claims in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def claimed(self, keys: list[Digest]) -> Iterator[set[Digest]]:
        """Claim those keys that nobody else has claimed, for the length of the block; gives them."""
        held: dict[Digest, int] = {}
        try:
            for key in keys:
                if (lock := self._lock(key)) is not None:
                    held[key] = lock
            yield set(held)
        finally:
            for key, lock in held.items():
                with contextlib.suppress(OSError):
                    (self._folder / key).unlink()
                os.close(lock)

    def _lock(self, key: Digest) -> int | None:
        """An open file with our lock on it, or None if another has it."""
        found = os.open(self._folder / key, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o644)
        if fcntl is None:
            return found
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(found)
            return None
        except OSError:
            return found  # no locks on this file system
        return found
