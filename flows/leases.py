"""Claims for a bucket: objects that only one process can create, renewed while held, and taken over when their owner is silent.

Losing one to a race, to clocks that differ or to a bad network costs a result made twice, never a wrong one: what a key
gives is written whole, and whoever wrote it, it is what the key stands for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from flows.bucket import Bucket
from flows.keys import Digest
from nodes.errors import StoreError

SILENT = 60.0
"""Seconds after which a claim that was not renewed is free. Machines' clocks must agree to a good part of that."""
AGAIN = 0.5
"""Seconds between two looks at a claim that another has."""


class Leases:
    """The claims in a bucket of one process. Threads may share them."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._held: dict[Digest, bool] = {}  # asked for, and whether to be renewed
        self._busy: dict[Digest, float] = {}
        self._lock = threading.Lock()
        self._renewing: threading.Thread | None = None

    @contextmanager
    def claimed(self, keys: list[Digest]) -> Iterator[set[Digest]]:
        """Claim those keys that nobody else has claimed, for the length of the block; gives them."""
        asked = self._asked(keys)
        mine = set(asked)
        try:
            mine = {key for key, won in zip(asked, self._bucket.together(self._claim, asked), strict=True) if won}
            others = set(asked) - mine
            with self._lock:
                self._held.update(dict.fromkeys(mine, True))
                self._busy.update(dict.fromkeys(others, time.monotonic() + AGAIN))
            self._let_go(others)
            yield set(mine)
        finally:
            with self._lock:
                self._held.update(dict.fromkeys(mine, False))
            self._bucket.together(self._remove, mine)
            self._let_go(mine)

    def _let_go(self, keys: set[Digest]) -> None:
        with self._lock:
            for key in keys:
                self._held.pop(key, None)

    def _asked(self, keys: list[Digest]) -> list[Digest]:
        """Those keys that it is worth to ask for now."""
        with self._lock:
            now = time.monotonic()
            asked = [key for key in dict.fromkeys(keys) if key not in self._held and self._busy.get(key, 0.0) < now]
            self._held.update(dict.fromkeys(asked, False))
            if asked and self._renewing is None:
                self._renewing = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._renewing.start()
            return asked

    def _claim(self, key: Digest) -> bool:
        name = _name(key)
        try:
            if self._bucket.create(name, self._word()):
                return True
            if not self._is_free(self._bucket.fetch(name)):
                return False
            self._bucket.remove(name)
            return self._bucket.create(name, self._word())
        except StoreError:
            return True  # nobody can be asked; the result is kept if the service is back by then

    def _word(self) -> bytes:
        return json.dumps({"owner": self._owner, "time": time.time()}).encode()

    def _is_free(self, word: bytes | None) -> bool:
        """Whether a claim has been let go of, left behind, or written by ourselves in an attempt whose answer was lost."""
        if word is None:
            return True
        try:
            found = json.loads(word)
            return bool(found["owner"] == self._owner or time.time() - found["time"] > SILENT)
        except (ValueError, KeyError, TypeError):
            return True

    def _remove(self, key: Digest) -> None:
        with contextlib.suppress(StoreError):
            self._bucket.remove(_name(key))

    def _renew(self) -> None:
        """Say again and again that what is held is held; ends when nothing is."""
        while True:
            time.sleep(SILENT / 4)
            # Inside the lock, so that no claim is written again after it was removed.
            with self._lock:
                if not self._held:
                    self._renewing = None
                    return
                for key in (key for key, won in self._held.items() if won):
                    with contextlib.suppress(StoreError):
                        self._bucket.write(_name(key), self._word())


def _name(key: Digest) -> str:
    return f"claims/{key}"
