"""What may pass is tried again; what will not is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toys
from tests.flows.conftest import Run, states

FLAKY = """
name: x
steps:
  photo: {node: Grey, path: photos}
  kept:  {node: Flaky, image: photo, times: %s}
"""


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes time."""
    found: list[float] = []
    monkeypatch.setattr("flows.calls.sleep", found.append)
    return found


def test_a_connection_that_fails_is_tried_again(photos: Path, run: Run, slept: list[float]) -> None:
    assert states(run(FLAKY % 2))["kept"] == "3 ran"
    assert toys.calls.count("Flaky") == 5, "two failures of the first, and three that went well"
    assert slept == [1.0, 5.0]


def test_a_network_that_stays_away_is_waited_for_once(photos: Path, run: Run, slept: list[float]) -> None:
    ran = run(FLAKY % 99)
    assert states(ran)["kept"] == "3 failed"
    assert {failure.error for failure in ran.result.failures} == {"RuntimeError: no answer"}
    assert (toys.calls.count("Flaky"), slept) == (5, [1.0, 5.0])


def test_what_the_user_is_to_put_right_is_not_tried_again(photos: Path, run: Run, slept: list[float]) -> None:
    assert states(run(FLAKY % "1, network: false"))["kept"] == "2 ran, 1 failed"
    assert (toys.calls.count("Flaky"), slept) == (3, [])


def test_memory_that_is_short_for_one_element_is_waited_for(photos: Path, run: Run, slept: list[float]) -> None:
    ran = run((FLAKY % 0).replace("Flaky, image: photo, times", "Hungry, image: photo, most"))
    assert states(ran)["kept"] == "3 failed"
    assert (toys.calls.count("Hungry×1"), slept) == (5, [1.0, 5.0])
