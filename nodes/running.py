"""What a node may say while it runs: how far it is. Whoever runs it listens; by default nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[int, int], None] | None] = ContextVar("listener", default=None)


def progress(done: int, total: int) -> None:
    """Say that `done` of `total` parts (diffusion steps) of the current call are done."""
    if listener := _listener.get():
        listener(done, total)


@contextmanager
def listening(listener: Callable[[int, int], None]) -> Iterator[None]:
    """Hear what nodes say inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
