"""Which list a step runs over, what must be over before it, and where its files may lie."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from flows.graph import mermaid, order
from flows.pipeline import Pipeline
from flows.store import Store
from nodes import Image
from nodes.errors import PipelineError
from tests import toys
from tests.flows.conftest import Run, states

assert toys.Grey, "its import makes the toy nodes known"

TEXT = """
name: lists
steps:
  photo: {node: Grey, path: "photos/*.txt"}
  rows: {node: Rows, image: photo}
  negative: {node: Invert, image: rows}
  whole: {node: Stack, images: negative}
  all: {node: Stack, images: whole}
  light: {node: Add, image: all, amount: 5}
  note: {node: Say, text: hello}
"""


def test_lists_nest_and_join() -> None:
    graph = Pipeline.from_yaml(TEXT).graph()
    assert {step.name: (step.lineage, step.gives) for step in graph} == {
        "photo": ((), ("photo",)),
        "rows": (("photo",), ("photo", "rows")),
        "negative": (("photo", "rows"), ("photo", "rows")),
        "whole": (("photo",), ("photo",)),
        "all": ((), ()),
        "light": ((), ()),
        "note": ((), ()),
    }
    assert dict(graph.phases) == {"photo": 0, "rows": 0, "negative": 0, "whole": 0, "all": 1, "light": 1, "note": 0}


def test_lists_give_the_pixels_that_the_rule_says(photos: Path, run: Run) -> None:
    done = run(TEXT)
    assert states(done) == {
        "photo": "3 ran", "rows": "3 ran", "negative": "6 ran", "whole": "3 ran", "all": "1 ran",
        "light": "1 ran", "note": "1 ran",
    }
    light = next(value for _, _, value in done.values("light", "output"))
    assert cast(Image, light).pixels[..., 0].tolist() == [[250, 249], [248, 10], [240, 239], [238, 10], [230, 229], [228, 10]]


def test_lists_of_different_origin_do_not_meet() -> None:
    text = TEXT + """
  other: {node: Grey, path: "photos/a.txt"}
  spot: {node: BrightSpot, image: other}
  wrong: {node: Crop, image: photo, boxes: spot}
"""
    with pytest.raises(PipelineError, match='"boxes" comes from a different list than "image": other, not photo'):
        Pipeline.from_yaml(text)


def test_the_order_written_is_kept_where_it_is_free() -> None:
    assert order({"b": [], "a": [], "d": ["c"], "c": []}) == (["b", "a", "c", "d"], [])
    assert order({"a": ["b"], "b": ["c"], "c": ["a"]})[0] == []
    assert len(order({str(n): [str(n - 1)] if n else [] for n in range(20_000)})[0]) == 20_000


def test_a_cycle_is_told_as_a_path() -> None:
    text = "name: a\nsteps:\n  a: {node: Invert, image: c}\n  b: {node: Invert, image: a}\n  c: {node: Invert, image: b}\n"
    with pytest.raises(PipelineError, match="the steps form a cycle: a → b → c → a"):
        Pipeline.from_yaml(text)


def test_mermaid_names_steps_types_and_ports() -> None:
    text = "name: m\nsteps: {one: {node: Say, text: a}, two: {node: Say, text: \"${one} b\"}}\n"
    assert mermaid(Pipeline.from_yaml(text).graph()) == (
        'flowchart LR\n    one["one<br/><small>Say</small>"]\n    two["two<br/><small>Say</small>"]\n'
        '    one -- "Text → one" --> two\n'
    )


def test_a_file_reads_only_under_its_folder(
    photos: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "project" / "deep"
    below.mkdir(parents=True)
    file = below / "p.yaml"
    monkeypatch.chdir(below)
    file.write_text(f'name: p\nparams: {{photos: "{photos}"}}\nsteps: {{photo: {{node: Grey, path: "${{photos}}"}}}}\n')
    pipeline = Pipeline.from_yaml(file)
    with pytest.raises(PipelineError, match="photos"):
        pipeline.plan(store=store.folder)
    for asked in ({"params": {"photos": str(photos)}}, {"allow": [photos]}, {"allow": [tmp_path]}):
        (step,) = pipeline.plan(store=store.folder, **asked)  # type: ignore[arg-type]
        assert len(step.calls) == 3
    (below / "link").symlink_to(photos)
    file.write_text('name: p\nsteps: {photo: {node: Grey, path: "link/*.txt"}}\n')
    with pytest.raises(PipelineError, match="link"):
        Pipeline.from_yaml(file).plan(store=store.folder)
