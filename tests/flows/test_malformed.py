"""What is said of malformed pipelines, word for word: `malformed.txt` holds each beside the text expected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.check import bind
from flows.pipeline import known_nodes
from flows.spec import parse
from nodes.errors import PipelineError

TEXT = Path(__file__).with_name("malformed.txt").read_text("utf-8")
CASES = re.findall(r"^### (.+)\n((?:.*\n)*?)### says\n((?:.+\n)+)", TEXT, re.M)
SHIPPED = {name: cls for name, cls in known_nodes().items() if cls.__module__.startswith("nodes.")}
PHOTO = "name: p\nsteps:\n  photo: {node: Load, path: photos}\n"


def said(text: str) -> str:
    with pytest.raises(PipelineError) as error:
        bind(parse(text, "p.yaml"), SHIPPED)
    return str(error.value)


@pytest.mark.parametrize(("text", "expected"), [pytest.param(text, says, id=name) for name, text, says in CASES])
def test_a_malformed_pipeline_is_refused_in_these_words(text: str, expected: str) -> None:
    assert said(text) + "\n" == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("", "p.yaml:1:1: a pipeline is a mapping with name, steps and outputs"),
    ("name: p\0\n", "p.yaml:1:1: not YAML: unacceptable character #x0000: special characters are not allowed"),
    ("name: " + "[" * 5000, "p.yaml:1:1: not YAML: nested too deeply"),
    (PHOTO + "  made: {node: Generate, prompt: x, seed: " + "9" * 5000 + "}\n",
     "p.yaml:4:43: expected a number of at most 100 digits, got 5000"),
], ids=["empty", "null byte", "deep", "long number"])  # fmt: skip
def test_hostile_text_is_refused_too(text: str, expected: str) -> None:
    assert said(text) == expected


def test_there_are_all_the_kinds_of_fault() -> None:
    assert len({name for name, *_ in CASES}) == len(CASES) >= 50
