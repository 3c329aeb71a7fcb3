"""How many items go through a model at once: as many as make it quicker and memory holds. Knows no models.

The engine groups the elements of a step; a node that makes many things of one input groups them with `in_batches`.
Results do not depend on the grouping, so the size may be found by trying.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from nodes.errors import OutOfMemory

S = TypeVar("S")
T = TypeVar("T")

FIRST, LARGEST = 2, 64
GAIN = 1.05
"""A larger batch is kept if it brings at least so much more throughput."""
TRIES = 2
"""A size that is no quicker gets a second chance: machines are noisy."""


class BatchSize:
    """The size of batches for one model: `fixed`, or found by doubling until throughput stops growing.

    Once memory was short, no batch is as large again.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed, self._most = fixed, fixed or LARGEST
        self.size = fixed or FIRST
        self._best, self._best_rate = self.size, 0.0
        self._warm = self._settled = False
        self._tried = 0

    def took(self, count: int, seconds: float) -> None:
        """Learn from a batch of `count` items. The first is not counted: models are loaded and buffers made in it."""
        if self._fixed or self._settled or count != self.size:
            return
        if not self._warm:
            self._warm = True
            return
        rate = count / max(seconds, 1e-9)
        if rate > self._best_rate * GAIN:
            self._best, self._best_rate, self._tried = count, rate, 0
            self.size = min(2 * count, self._most)
            self._settled = self.size == count
            return
        self._tried += 1
        if self._tried == TRIES:
            self.size, self._settled = self._best, True

    def short(self, count: int) -> None:
        """Memory was too short for `count` items at once."""
        self._most = max(1, count // 2)
        self.size = self._best = min(self.size, self._most)
        self._settled = True


_current: ContextVar[BatchSize | None] = ContextVar("batch_size", default=None)


@contextmanager
def grouping(size: BatchSize) -> Iterator[None]:
    """Inside the block nodes group what they make of one input by this size."""
    token = _current.set(size)
    try:
        yield
    finally:
        _current.reset(token)


def in_batches(items: Sequence[S], work: Callable[[Sequence[S]], list[T]]) -> list[T]:
    """`work` on all items in groups, results in order. A group that memory is short for is halved.

    Raises:
        OutOfMemory: memory is too short for a single item.
    """
    size = _current.get() or BatchSize()
    found: list[T] = []
    while len(found) < len(items):
        group = items[len(found) : len(found) + size.size]
        started = time.perf_counter()
        try:
            found += work(group)
        except OutOfMemory:
            if len(group) == 1:
                raise
            size.short(len(group))
        else:
            size.took(len(group), time.perf_counter() - started)
    return found
