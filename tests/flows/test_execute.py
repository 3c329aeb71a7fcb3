"""Failures, lists, texts: what a run does with each element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.store import Store
from nodes.errors import PipelineError
from tests import toys
from tests.flows.conftest import Run, states


def values(execution: Execution, step: str, output: str = "output") -> list:  # type: ignore[type-arg]
    return [value for _, _, value in execution.values(step, output)]


def test_one_bad_picture_fails_alone_and_its_downstream_is_skipped(photos: Path, run: Run) -> None:
    (photos / "b.txt").write_text("13 1\n")
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{photos}"}}
  fussy: {{node: Fussy, image: photo}}
  negative: {{node: Invert, image: fussy}}
""", batch=3)
    assert states(ran) == {"photo": "3 ran", "fussy": "2 ran, 1 failed", "negative": "2 ran, 1 skipped"}
    assert toys.calls.count("Fussy×3") == 1
    (failure,) = ran.result.failures
    assert (failure.step, failure.id, failure.error) == ("fussy", "b", "RuntimeError: thirteen")
    assert "toys.py" in failure.traceback
    again = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{photos}"}}
  fussy: {{node: Fussy, image: photo}}
  negative: {{node: Invert, image: fussy}}
""")
    assert states(again)["fussy"] == "2 cached, 1 failed"


def test_what_the_user_did_has_no_traceback(photos: Path, run: Run) -> None:
    (photos / "b.png").write_bytes(b"no picture")
    ran = run(f'name: x\nsteps:\n  photo: {{node: Load, path: "{photos}/*.png"}}\n')
    (failure,) = ran.result.failures
    assert failure.error == f"{photos}/b.png: not a picture Pillow can read: unknown format"
    assert failure.traceback == ""


def test_a_run_stops_after_too_many_failures_and_keeps_what_is_done(photos: Path, run: Run) -> None:
    for name in "ab":
        (photos / f"{name}.txt").write_text(f"13 {ord(name)}\n")
    ran = run(
        f'name: x\nsteps:\n  photo: {{node: Grey, path: "{photos}"}}\n  fussy: {{node: Fussy, image: photo}}\n',
        max_failures=1,
    )
    assert ran.result.stopped == "more than 1 failed; the same command goes on with the rest"
    assert states(ran) == {"photo": "3 ran", "fussy": "2 failed"}


def test_a_node_that_returns_what_it_does_not_declare_is_named(photos: Path, run: Run) -> None:
    ran = run(f'name: x\nsteps:\n  photo: {{node: Grey, path: "{photos}"}}\n  wrong: {{node: Wrong, image: photo}}\n')
    assert ran.result.failures[0].error == "Wrong.run: expected Boxes, got Image"


def test_a_list_fans_out_and_joins_again(photos: Path, run: Run) -> None:
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{photos}"}}
  rows: {{node: Rows, image: photo}}
  negative: {{node: Invert, image: rows}}
  back: {{node: Stack, images: negative}}
  all: {{node: Stack, images: back}}
""")
    assert states(ran) == {"photo": "3 ran", "rows": "3 ran", "negative": "6 ran", "back": "3 ran", "all": "1 ran"}
    photo = values(ran, "photo")[1].pixels
    assert (values(ran, "back")[1].pixels == 255 - photo).all()
    assert values(ran, "all")[0].pixels.shape == (6, 2, 1)
    assert ran.planner.elements.id_of(("photo", "rows"), (1, 0)) == "b/0"


def test_no_detection_means_no_crops_and_is_no_error(photos: Path, run: Run) -> None:
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{photos}"}}
  spot: {{node: BrightSpot, image: photo, threshold: 254}}
  cuts: {{node: Crop, image: photo, boxes: spot}}
  negative: {{node: Invert, image: cuts.images}}
""")
    assert states(ran) == {"photo": "3 ran", "spot": "3 ran", "cuts": "3 ran", "negative": ""}
    assert ran.result.failures == []


def test_a_join_needs_all_unless_its_node_can_do_without(photos: Path, run: Run) -> None:
    (photos / "b.txt").write_text("13 1\n13 1\n")
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{photos}"}}
  fussy: {{node: Fussy, image: photo}}
  stack: {{node: Stack, images: fussy}}
  count: {{node: Tolerant, images: fussy}}
""")
    assert states(ran)["stack"] == "1 skipped"
    assert states(ran)["count"] == "1 ran"
    assert values(ran, "count")[0].value == 2
    assert ran.result.steps["count"].notes == {"1 missing": 1}


def test_what_one_list_lacks_the_others_of_a_join_lack_too(photos: Path, run: Run) -> None:
    (photos / "b.txt").write_text("13 1\n")
    (photos / "c.txt").write_text("no number\n")
    (photos / "d.txt").write_text("40 250\n")
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{photos}"}}
  fussy: {{node: Fussy, image: photo}}
  negative: {{node: Invert, image: fussy}}
  pairs: {{node: Pairs, left: photo, right: negative}}
  turned: {{node: Pairs, left: negative, right: photo}}
""")
    assert states(ran)["negative"] == "2 ran, 2 skipped"
    for step, rows in (("pairs", [[10, 245], [40, 215]]), ("turned", [[245, 10], [215, 40]])):
        assert values(ran, step)[0].pixels[..., 0].tolist() == rows
        assert ran.result.steps[step].notes == {"2 missing": 1}


def test_a_join_of_a_list_that_never_came_is_skipped(photos: Path, run: Run) -> None:
    (photos / "b.txt").write_text("13 1\n")
    ran = run(f"""
name: x
steps:
  photo: {{node: Grey, path: "{photos}/[ab].txt"}}
  fussy: {{node: Fussy, image: photo}}
  rows: {{node: Rows, image: fussy}}
  negative: {{node: Invert, image: rows}}
  count: {{node: Tolerant, images: negative}}
""")
    assert [value.value for value in values(ran, "count")] == [2]
    assert states(ran)["count"] == "1 ran, 1 skipped"


def test_a_step_inside_a_text_is_a_wire(photos: Path, run: Run) -> None:
    text = f"""
name: x
steps:
  photo: {{node: Grey, path: "{photos}"}}
  measure: {{node: Measure, image: photo}}
  said: {{node: Say, text: "a picture of ${{measure.words}}", times: 2}}
  added: {{node: Add, image: photo, amount: "${{measure.mean}}"}}
"""
    ran = run(text)
    assert [value.value for value in values(ran, "said")][0] == "a picture of mean 71" * 2
    assert values(ran, "added")[0].pixels[0, 0, 0] == 10 + 70
    assert states(run(text))["said"] == "3 cached"


def test_two_files_of_one_stem_keep_their_suffix_and_folders_their_names(tmp_path: Path, run: Run) -> None:
    from PIL import Image as pil

    (tmp_path / "p" / "cats").mkdir(parents=True)
    for name in ("cats/tom.png", "cats/tom.jpg", "dog.png"):
        pil.new("RGB", (4, 4), "red").save(tmp_path / "p" / name)
    ran = run(f'name: x\nsteps:\n  photo: {{node: Load, path: "{tmp_path}/p"}}\n')
    assert ran.planner.elements.root_ids["photo"] == ("cats/tom.jpg", "cats/tom.png", "dog")


def test_no_file_is_an_error_before_anything_runs(tmp_path: Path, run: Run) -> None:
    with pytest.raises(PipelineError) as error:
        run(f'name: x\nsteps:\n  photo: {{node: Load, path: "{tmp_path}/*.png"}}\n')
    assert str(error.value) == f'<text>:3:23: step "photo": path: no file matches "{tmp_path}/*.png"'.replace(
        f"{tmp_path}/*.png", shown_short(f"{tmp_path}/*.png")
    )


def shown_short(text: str) -> str:
    from flows.spec import shown

    return shown(text).strip('"')


def test_a_file_outside_the_allowed_folders_is_refused_unless_the_caller_names_it(
    tmp_path: Path, photos: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    (inside / "pipe.yaml").write_text(
        f'name: x\nparams: {{where: "{photos}"}}\nsteps:\n  photo: {{node: Grey, path: "${{where}}"}}\n'
    )
    pipeline = Pipeline.from_yaml(inside / "pipe.yaml")
    with pytest.raises(PipelineError, match="lies outside the pipeline's folder and the working directory"):
        Execution(pipeline.graph(), store)
    (inside / "link").symlink_to(photos)
    with pytest.raises(PipelineError, match="lies outside"):
        (inside / "pipe.yaml").write_text('name: x\nsteps:\n  photo: {node: Grey, path: "link/*.txt"}\n')
        Execution(Pipeline.from_yaml(inside / "pipe.yaml").graph(), store)
    assert Execution(pipeline.graph({"where": str(photos)}), store).run().failures == []
    assert Execution(pipeline.graph(allow=[photos]), store).run().failures == []


def test_only_a_step_and_what_it_rests_on_runs(photos: Path, run: Run) -> None:
    ran = run(
        f'name: x\nsteps:\n  photo: {{node: Grey, path: "{photos}"}}\n  negative: {{node: Invert, image: photo}}\n'
        "  spot: {node: BrightSpot, image: negative}\n",
        only={"negative"},
    )
    assert states(ran) == {"photo": "3 ran", "negative": "3 ran"}


def test_the_python_form_runs_like_the_yaml(photos: Path, store: Store) -> None:
    photo = toys.Grey(path=str(photos)).step("photo")
    negative = toys.Invert(add=2).step("negative", image=photo)
    pipeline = Pipeline("x", outputs=[negative])
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
    execution = Execution(pipeline.graph(), store)
    execution.run()
    assert (values(execution, "negative")[0].pixels[0, 0] == np.uint8(255 - 10 + 2)).all()
