"""A run as people see it: bars on a terminal, a line for each step and window otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from flows.graph import Bound
from flows.plan import Call


class Lines:
    """Plain lines: one when a step's window is through, one for each failure."""

    def __init__(self) -> None:
        self._step, self._left, self._total, self._began = "", 0, 0, 0.0
        self._counts: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def step(self, step: Bound, total: int) -> None:
        self._step, self._left, self._total, self._began, self._counts = step.name, total, total, time.monotonic(), {}

    def element(self, call: Call, state: str) -> None:
        self._counts[state] = self._counts.get(state, 0) + 1
        self._left -= 1
        if self._left == 0:
            counts = ", ".join(f"{count} {state}" for state, count in self._counts.items())
            print(f"{self._step}: {counts} in {time.monotonic() - self._began:.1f} s", file=sys.stderr)

    def part(self, step: Bound, done: int, total: int) -> None:
        pass


class Bars:
    """A bar for each step, with the picture it is at and the diffusion step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[at]}"), console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def step(self, step: Bound, total: int) -> None:
        if step.name not in self._tasks:
            self._tasks[step.name] = self._progress.add_task(step.name, total=0, at="")
        task = self._progress.tasks[self._tasks[step.name]]
        self._progress.update(task.id, total=(task.total or 0) + total)

    def element(self, call: Call, state: str) -> None:
        self._progress.update(self._tasks[call.step.name], advance=1, at=f"{call.id} {state}")

    def part(self, step: Bound, done: int, total: int) -> None:
        self._progress.update(self._tasks[step.name], at=f"diffusion step {done}/{total}")


def watcher() -> Lines | Bars:
    """Bars if somebody watches a terminal, else lines."""
    return Bars() if sys.stderr.isatty() else Lines()
