"""Where the seconds of a run go. Time inside an inner block counts there and not in the outer one; threads that work beside
the main one are counted by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by the name of what they went to."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock, self._local, self._main = threading.Lock(), threading.local(), threading.get_ident()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of the block under `name`."""
        stack: list[float] = self._local.__dict__.setdefault("inner", [])
        stack.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            inner = stack.pop()
            if stack:
                stack[-1] += taken
            self.add(name if threading.get_ident() == self._main else f"{name} (beside)", taken - inner)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
