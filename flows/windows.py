"""In which order steps and windows of elements are gone through, and how large the windows are."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from flows.elements import Elements
from flows.graph import Bound, Graph

FIRST, LARGEST = 16, 256
LEAST = 8
"""So many make a batch worth it; where memory does not hold them, the store reads again what it let go of."""


@dataclass(frozen=True)
class Round:
    """Steps that go together over one window of their outermost list; `window` is None where they run once. `following`
    is the next window, empty after the last."""

    steps: tuple[Bound, ...]
    number: int = 0
    window: range | None = None
    following: range = range(0)


def rounds(graph: Graph, elements: Elements, size: Callable[[], int], only: set[str]) -> Iterator[Round]:
    """All steps with all windows of their outermost list, in an order in which what they rest on is through.

    Steps between two joins over whole lists go together: window after window, and within a window step after step,
    so that a model does all it can for the window before the next has its turn. `size` is asked for each window.
    """
    groups: dict[tuple[int, Hashable], list[Bound]] = {}
    for step in graph:
        if step.name in only:
            groups.setdefault(graph.group(step), []).append(step)
    for _, steps in sorted(groups.items(), key=lambda item: item[0][0]):
        if not (root := steps[0].over[:1]):
            yield Round(tuple(steps))
            continue
        count, number, window = elements.count(root, ()) or 0, 0, range(0)
        while number == 0 or window:
            if number == 0:
                window = range(min(size(), count))
            following = range(window.stop, min(window.stop + size(), count))
            yield Round(tuple(steps), number, window, following)
            elements.let_go(steps, window)
            number, window = number + 1, following


class WindowSize:
    """How many elements go through the steps together: `fixed`, or as many as memory holds by what those before took."""

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self._size = fixed or FIRST
        self._budget = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 64, 256 * 2**20)

    def size(self) -> int:
        """The size of the next window."""
        return self._size

    def took(self, elements: int, moved: int) -> None:
        """A window of so many elements is through, which moved values of so many bytes."""
        if not self._fixed and elements and (each := moved // elements):
            self._size = max(LEAST, min(self._budget // each, 2 * self._size, LARGEST))
