"""What becomes of a run, as data, and who may watch it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from flows.graph import Bound
from flows.plan import Call


@dataclass(frozen=True)
class Failure:
    """One element of one step that gave nothing: what was wrong in a line, and the traceback if it was not the user's doing."""

    step: str
    id: str
    error: str
    traceback: str = ""


class Watcher(Protocol):
    """Whoever wants to see a run as it goes."""

    def step(self, step: Bound, total: int) -> None:
        """A window of a step begins, of `total` elements."""

    def element(self, call: Call, state: str) -> None:
        """An element is through: `ran`, `cached`, `failed` or `skipped`."""

    def part(self, step: Bound, done: int, total: int) -> None:
        """The node is at part `done` of `total`: a diffusion step."""


@dataclass
class StepResult:
    """What became of a step: elements by state, seconds, reasons why they ran, what was noted."""

    ran: int = 0
    cached: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def through(self) -> int:
        """Elements that are through, however they ended."""
        return self.ran + self.cached + self.failed + self.skipped


@dataclass
class Result:
    """What became of a run."""

    steps: dict[str, StepResult]
    failures: list[Failure] = field(default_factory=list)
    stopped: str = ""
    """Why the run ended before its end, if it did."""


@dataclass(frozen=True)
class WindowDone:
    """One window of one step, for whoever ran it: how many elements ended how."""

    ran: int
    cached: int
    failed: int
    skipped: int
