"""What lies beside a picture: masks and texts on the picture's own lineage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil

from flows.execute import Execution
from flows.pipeline import Pipeline
from flows.plan import Planner, make_plan
from flows.report import Writer
from flows.store import Store
from nodes import LoadMask, LoadText
from nodes.errors import PipelineError
from tests import toys
from tests.flows.conftest import Run, states
from tests.flows.test_execute import values

WORDS = """
name: beside
params: {photos: "photos/**/*.txt", place: "words/{stem}.words"}
steps:
  photo: {node: Grey, path: "${photos}"}
  words: {node: LoadText, like: photo, path: "${place}"}
  said:  {node: Say, text: "a photo of ${words}"}
outputs: [said]
"""


@pytest.fixture
def words(photos: Path) -> Path:
    """A text beside each of the pictures a, b, c."""
    folder = photos.parent / "words"
    folder.mkdir()
    for name, text in (("a", "an apple"), ("b", "a boat"), ("c", "a cat")):
        (folder / f"{name}.words").write_text(f"{text}\n")
    return folder


def test_each_picture_has_a_prompt_of_its_own(words: Path, run: Run) -> None:
    ran = run(WORDS)
    assert [text.value for text in values(ran, "said")] == ["a photo of an apple", "a photo of a boat", "a photo of a cat"]
    assert states(run(WORDS)) == {"photo": "3 cached", "words": "3 cached", "said": "3 cached"}


def test_a_changed_text_runs_for_its_picture_alone(words: Path, run: Run, store: Store) -> None:
    run(WORDS)
    (words / "b.words").write_text("a bee")
    planned = make_plan(Planner(Pipeline.from_yaml(WORDS).graph(), store), {"photo", "words", "said"})
    assert [call.reason for call in planned[1].calls if call.state == "run"] == ["file changed"]
    assert states(run(WORDS)) == {"photo": "3 cached", "words": "1 ran, 2 cached", "said": "1 ran, 2 cached"}


def test_an_absent_file_fails_alone_and_the_same_command_takes_it_up(words: Path, run: Run) -> None:
    for name in "ac":
        (words / f"{name}.words").rename(words / f"{name}.late")
    ran = run(WORDS)
    assert states(ran) == {"photo": "3 ran", "words": "1 ran, 2 failed", "said": "1 ran, 2 skipped"}
    assert [(failure.id, failure.error, failure.traceback) for failure in ran.result.failures] == [
        ("a", "words/a.words: no such file", ""), ("c", "words/c.words: no such file", ""),
    ]
    (words / "a.late").rename(words / "a.words")
    again = run(WORDS)
    assert states(again) == {"photo": "3 cached", "words": "1 ran, 1 cached, 1 failed", "said": "1 ran, 1 cached, 1 skipped"}
    assert toys.calls == ["Say"]


def test_too_many_absent_files_stop_the_run(words: Path, run: Run) -> None:
    shutil.rmtree(words)
    ran = run(WORDS, max_failures=1)
    assert ran.result.stopped == "more than 1 failed; the same command goes on with the rest"
    assert states(ran)["words"] == "2 failed"
    words.mkdir()
    for name in "abc":
        (words / f"{name}.words").write_text(name)
    assert states(run(WORDS, max_failures=1)) == {"photo": "3 cached", "words": "3 ran", "said": "3 ran"}


def test_a_picture_is_not_read_to_find_what_lies_beside_it(words: Path, run: Run) -> None:
    (words.parent / "photos" / "b.txt").write_text("no number")
    ran = run(WORDS)
    assert states(ran) == {"photo": "2 ran, 1 failed", "words": "3 ran", "said": "3 ran"}


def test_names_and_folders_tell_files_of_one_stem_apart(tmp_path: Path, store: Store) -> None:
    for name in ("cats/tom.png", "cats/tom.jpg", "dogs/tom.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pil.new("RGB", (2, 2), "red").save(path)
        Path(f"{path}.txt").write_text(f"name {name}")
    for folder in ("cats", "dogs"):
        (tmp_path / "in" / folder / "tom.txt").write_text(f"stem {folder}")
    pipeline = Pipeline.from_yaml("""
name: apart
steps:
  photo: {node: Load, path: in}
  by_name: {node: LoadText, like: photo, path: "{folder}/{name}.txt"}
  by_stem: {node: LoadText, like: photo, path: "{folder}/{stem}.txt"}
outputs: [by_name, by_stem]
""")
    execution = Execution(pipeline.graph(), store)
    writer = Writer(execution.graph, tmp_path / "run", execution=execution)
    execution.finished = writer
    assert execution.run().failures == []
    assert {path.relative_to(tmp_path / "run").as_posix(): path.read_text() for path in (tmp_path / "run").rglob("*.txt")} == {
        "by_name/cats/tom.jpg.txt": "name cats/tom.jpg", "by_name/cats/tom.png.txt": "name cats/tom.png",
        "by_name/dogs/tom.txt": "name dogs/tom.png",
        "by_stem/cats/tom.jpg.txt": "stem cats", "by_stem/cats/tom.png.txt": "stem cats", "by_stem/dogs/tom.txt": "stem dogs",
    }


def test_the_id_leads_to_another_tree_of_the_same_shape(tmp_path: Path, run: Run) -> None:
    for name, grey in (("cats/tom", 0), ("rex", 255)):
        for folder in ("in", "masks"):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pil.new("L", (2, 3), grey).save(path)
    ran = run("""
name: x
steps:
  photo: {node: Load, path: in}
  mask: {node: LoadMask, like: photo, path: "masks/{id}.png"}
""")
    assert [mask.union.tolist() for mask in values(ran, "mask")] == [[[0, 0]] * 3, [[255, 255]] * 3]


def test_what_lies_beside_a_crop_is_found_by_its_picture_and_its_number(photos: Path, run: Run, store: Store) -> None:
    for name in "ab":
        (photos / name).mkdir()
        for row in "01":
            (photos / name / f"{row}.words").write_text(f"{name} row {row}")
    text = """
name: deep
steps:
  photo: {node: Grey, path: "photos/[ab].txt"}
  rows: {node: Rows, image: photo}
  words: {node: LoadText, like: rows, path: "photos/{id}.words"}
  whose: {node: LoadText, like: words, path: "{folder}/{name}"}
"""
    graph = Pipeline.from_yaml(text).graph()
    assert graph.steps["words"].lineage == graph.steps["whose"].gives == ("photo", "rows")
    planned = {step.name: step.states() for step in make_plan(Planner(graph, store), set(graph.steps))}
    assert planned["words"] == {"depends on rows": 1}
    ran = run(text)
    assert [found.value for found in values(ran, "words")] == ["a row 0", "a row 1", "b row 0", "b row 1"]
    assert [found.value for found in values(ran, "whose")] == ["10 11\n12 250"] * 2 + ["20 21\n22 250"] * 2


def test_braces_in_names_are_left_alone_and_nothing_is_evaluated(photos: Path, run: Run) -> None:
    odd = photos / "{id}%s{0.x}.txt"
    odd.write_text("1 2")
    Path(f"{odd}.{{1}}.words").write_text("odd")
    ran = run("""
name: x
steps:
  photo: {node: Grey, path: "photos/{*"}
  words: {node: LoadText, like: photo, path: "{folder}/{name}.{1}.words"}
""")
    assert [found.value for found in values(ran, "words")] == ["odd"]


def test_without_like_masks_and_texts_are_lists_of_their_own(words: Path, run: Run) -> None:
    pil.new("L", (1, 1), 255).save(words / "m.png")
    (words / "t.txt").write_text("one")
    ran = run("name: x\nsteps:\n  mask: {node: LoadMask, path: words}\n  text: {node: LoadText, path: words}\n")
    assert states(ran) == {"mask": "1 ran", "text": "1 ran"}
    assert ran.planner.elements.root_ids == {"mask": ("m",), "text": ("t",)}
    assert np.asarray(values(ran, "mask")[0].union).tolist() == [[255]]


# --- where the files may lie ---


@pytest.fixture
def below(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder from which the pictures and a secret lie further up; pictures have texts beside them."""
    (tmp_path / "secret.words").write_text("secret")
    for name in "abc":
        (photos / f"{name}.words").write_text(name)
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def beside(folder: Path, path: str) -> Pipeline:
    file = folder / "p.yaml"
    file.write_text(
        'name: p\nparams: {photos: x, more: x}\nsteps:\n  photo: {node: Grey, path: "${photos}"}\n'
        f'  words: {{node: LoadText, like: photo, path: "{path}"}}\n'
    )
    return Pipeline.from_yaml(file)


def test_what_lies_below_the_folder_of_a_picture_that_the_caller_named_is_read(below: Path, photos: Path, store: Store) -> None:
    graph = beside(below, "{folder}/{stem}.words").graph({"photos": str(photos)})
    execution = Execution(graph, store)
    assert execution.run().failures == []
    assert [found.value for found in values(execution, "words")] == ["a", "b", "c"]


@pytest.mark.parametrize("path", ["{folder}/../secret.words", "../secret.words", "{folder}/link.words"])
def test_a_template_that_leads_elsewhere_is_refused(path: str, below: Path, photos: Path, store: Store) -> None:
    (photos / "link.words").symlink_to(below.parent / "secret.words")
    pipeline = beside(below, path)
    with pytest.raises(PipelineError) as error:
        Execution(pipeline.graph({"photos": str(photos)}), store)
    named = Path(path.replace("{folder}", str(photos)))
    assert str(error.value) == (
        f'{below}/p.yaml:5:40: step "words": path: {named} lies outside the pipeline\'s folder and the working directory; '
        f"allow it with --allow {named.parent}"
    )
    assert Execution(pipeline.graph({"photos": str(photos)}, allow=[below.parent]), store).run().failures == []


def test_a_template_that_the_caller_gives_may_lead_anywhere(below: Path, photos: Path, store: Store) -> None:
    given = {"photos": str(photos), "more": "{folder}/../secret.words"}
    execution = Execution(beside(below, "${more}").graph(given), store)
    assert execution.run().failures == []
    assert [found.value for found in values(execution, "words")] == ["secret"] * 3


def test_pictures_that_the_file_itself_names_open_no_other_folder(below: Path, store: Store) -> None:
    (below / "own").mkdir()
    (below / "own" / "d.txt").write_text("1")
    pipeline = beside(below, "{folder}/../../secret.words")
    (below / "p.yaml").write_text((below / "p.yaml").read_text().replace("${photos}", "own"))
    pipeline = Pipeline.from_yaml(below / "p.yaml")
    with pytest.raises(PipelineError, match="own/../../secret.words lies outside"):
        Execution(pipeline.graph(), store)


def test_a_link_beside_a_crop_that_leads_elsewhere_fails_alone(below: Path, photos: Path, store: Store) -> None:
    (photos / "a").mkdir()
    (photos / "a" / "0.words").symlink_to(below.parent / "secret.words")
    (photos / "a" / "1.words").write_text("fine")
    file = below / "p.yaml"
    file.write_text(
        'name: p\nparams: {photos: x}\nsteps:\n  photo: {node: Grey, path: "${photos}"}\n  rows: {node: Rows, image: photo}\n'
        '  words: {node: LoadText, like: rows, path: "{folder}/{id}.words"}\n'
    )
    execution = Execution(Pipeline.from_yaml(file).graph({"photos": str(photos / "a.txt")}), store)
    (failure,) = execution.run().failures
    assert failure.id == "a/0"
    assert failure.error.startswith(f"{photos}/a/0.words lies outside the pipeline's folder")
    assert [found.value for found in values(execution, "words")] == ["fine"]


def test_the_python_form_says_the_same(words: Path, store: Store) -> None:
    photo = toys.Grey(path="photos").step("photo")
    text = LoadText(path="words/{stem}.words").step("words", like=photo)
    mask = LoadMask(path="words/{stem}.png").step("mask", like=photo)
    pipeline = Pipeline("beside", outputs=[text, mask])
    assert "words: {node: LoadText, like: photo, path: 'words/{stem}.words'}" in pipeline.to_yaml()
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
    execution = Execution(pipeline.graph(), store, only={"words"})
    execution.run()
    assert [found.value for found in values(execution, "words")] == ["an apple", "a boat", "a cat"]
