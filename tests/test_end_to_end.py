"""The main job as a user runs it: the command, a real Prefect server, the toybox models, pictures on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pil
from PIL import ImageFilter

from tests.conftest import EXAMPLES, Workplace, task_runs

TRUTH = json.loads((EXAMPLES / "truth.json").read_text("utf-8"))
PHOTOS = ("--set", "photos=photos/*")


def picture(path: Path) -> pil.Image:
    with pil.open(path) as found:
        found.load()
        return found


def states(found: dict[str, Any]) -> dict[str, str]:
    return {
        name: ", ".join(f"{step[s]} {s}" for s in ("ran", "cached", "failed", "skipped") if step[s])
        for name, step in found["steps"].items()
    }


def iou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(w, 0) * max(h, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def test_cats_are_found_cut_out_and_replaced_and_nothing_runs_twice(workplace: Workplace) -> None:
    workplace.add("cat-blue.png", "cat-apple-white.png")
    pipeline = Path(workplace.folder / "replace_object.yaml")
    pipeline.write_text(pipeline.read_text().replace("outputs: [edited]", "outputs: [boxes, masks, edited]"))
    first = workplace.run("replace_object.yaml", *PHOTOS)
    assert states(first) == dict.fromkeys(("photo", "boxes", "masks", "edited"), "2 ran")
    assert {run["name"]: run["state_name"] for run in task_runs(workplace.environment, "replace-object")} == {
        f"{name}-0": "Completed" for name in first["steps"]
    }

    files = {step: {f["id"]: workplace.folder / f["path"] for f in found} for step, found in first["outputs"].items()}
    for name in ("cat-blue", "cat-apple-white"):
        truth = TRUTH[f"{name}.png"]
        cat = truth["labels"].index("cat")
        boxes = json.loads(files["boxes"][name].read_text())
        assert boxes["labels"] == ["cat"]
        assert iou(boxes["xyxy"][0], truth["boxes"][cat]) > 0.8
        mask = np.asarray(picture(files["masks"][name])) > 0
        inside = np.asarray(picture(EXAMPLES / "truth" / f"{name}.png")) == cat + 1
        assert (mask & inside).sum() / (mask | inside).sum() > 0.8
        before = np.asarray(picture(EXAMPLES / f"{name}.png").convert("RGB")).astype(int)
        after = np.asarray(picture(files["edited"][name])).astype(int)
        ys, xs = np.nonzero(mask)
        outside = np.ones_like(mask)
        outside[max(ys.min() - 10, 0) : ys.max() + 11, max(xs.min() - 10, 0) : xs.max() + 11] = False
        assert (before[outside] == after[outside]).all()
        assert np.abs(before - after)[mask].mean() > 20
        assert "a rocket" in picture(files["edited"][name]).info["parameters"]
        assert "Seed: 7" in picture(files["edited"][name]).info["parameters"]

    # Our own detector names what stands there now.
    (workplace.folder / "look.yaml").write_text(
        f"name: look\nsteps:\n  photo: {{node: Load, path: {Path(first['report']).parent}/edited}}\n"
        "  boxes: {node: Detect, image: photo}\noutputs: [boxes]\n"
    )
    seen = workplace.run("look.yaml")["outputs"]["boxes"]
    labels = {file["id"]: json.loads((workplace.folder / file["path"]).read_text())["labels"] for file in seen}
    assert labels["cat-blue"] == ["rocket"]
    assert sorted(labels["cat-apple-white"]) == ["apple", "rocket"]

    again = workplace.run("replace_object.yaml", *PHOTOS)
    assert states(again) == dict.fromkeys(("photo", "boxes", "masks", "edited"), "2 cached")
    assert {run["state_name"] for run in task_runs(workplace.environment, "replace-object")} == {"Cached"}
    for old, new in zip(first["outputs"]["edited"], again["outputs"]["edited"], strict=True):
        assert (workplace.folder / old["path"]).read_bytes() == (workplace.folder / new["path"]).read_bytes()

    # The same boxes come of another threshold: masks and inpainting stay.
    text = (workplace.folder / "replace_object.yaml").read_text().replace("labels:", "threshold: 0.6, labels:")
    (workplace.folder / "replace_object.yaml").write_text(text)
    lower = workplace.run("replace_object.yaml", *PHOTOS)
    assert states(lower) == {"photo": "2 cached", "boxes": "2 ran", "masks": "2 cached", "edited": "2 cached"}
    assert lower["steps"]["boxes"]["reasons"] == {"threshold changed: 0.7 → 0.6": 2}

    # Another prompt: only inpainting runs. Names and dates of files don't count.
    os.utime(workplace.folder / "photos" / "cat-blue.png", (1, 1))
    (workplace.folder / "photos" / "cat-apple-white.png").rename(workplace.folder / "photos" / "renamed.png")
    frog = workplace.run("replace_object.yaml", *PHOTOS, "--set", "prompt=a frog")
    assert states(frog) == {"photo": "2 cached", "boxes": "2 cached", "masks": "2 cached", "edited": "2 ran"}
    assert frog["steps"]["edited"]["reasons"]['prompt changed: "a rocket" → "a frog"'] == 1

    # One more picture, without a cat: only it runs, and passes unchanged.
    workplace.add("fox-grey.png")
    more = workplace.run("replace_object.yaml", *PHOTOS)
    assert states(more)["edited"] == "1 ran, 2 cached"
    assert more["steps"]["edited"]["notes"] == {"no mask: passed unchanged": 1}
    fox = next(f["path"] for f in more["outputs"]["edited"] if f["id"] == "fox-grey")
    assert (np.asarray(picture(workplace.folder / fox)) == np.asarray(picture(EXAMPLES / "fox-grey.png"))).all()


def test_the_same_seed_gives_the_same_bytes_alone_and_in_a_new_process(workplace: Workplace) -> None:
    workplace.add("cat-blue.png", "cat-pink.png")
    both = workplace.run("replace_object.yaml", *PHOTOS, "--store", "one", "--no-metadata")
    alone = workplace.run("replace_object.yaml", "--set", "photos=photos/cat-pink.png", "--store", "two", "--no-metadata")
    (pink,) = [f["path"] for f in both["outputs"]["edited"] if f["id"] == "cat-pink"]
    (single,) = [f["path"] for f in alone["outputs"]["edited"]]
    assert (workplace.folder / pink).read_bytes() == (workplace.folder / single).read_bytes()
    assert picture(workplace.folder / single).info == {}


def test_a_background_is_replaced_and_saved_as_webp(workplace: Workplace) -> None:
    workplace.add("cat-blue.png")
    with (workplace.folder / "replace_background.yaml").open("a") as pipeline:
        pipeline.write("outputs: [masks]\n")
    found = workplace.run("replace_background.yaml", *PHOTOS)
    (file,) = found["outputs"]["files"]
    assert file["path"].endswith("/files/cat-blue-edited.webp")
    before = np.asarray(picture(EXAMPLES / "cat-blue.png").convert("RGB")).astype(int)
    after = np.asarray(picture(workplace.folder / file["path"])).astype(int)
    mask = picture(workplace.folder / found["outputs"]["masks"][0]["path"])
    core = np.asarray(mask.filter(ImageFilter.MinFilter(21))) > 0
    assert core.sum() > 500
    assert (before[core] == after[core]).all()
    corner = after[:10, :10].mean(axis=(0, 1))
    assert corner[1] > corner[0] and corner[1] > corner[2], f"not green: {corner}"


def test_pictures_are_generated_with_following_seeds_and_refined(workplace: Workplace) -> None:
    found = workplace.run("generate_and_refine.yaml", "--set", "count=2")
    files = found["outputs"]["refined"]
    assert [file["id"] for file in files] == ["0", "1"]
    pictures = [picture(workplace.folder / file["path"]) for file in files]
    assert [each.size for each in pictures] == [(128, 128)] * 2
    for each in pictures:
        edge = np.asarray(each).astype(int)[:6].mean(axis=(0, 1))
        assert edge[2] > edge[0] + 20, f"the backdrop is not blue: {edge}"
    assert np.asarray(pictures[0]).tobytes() != np.asarray(pictures[1]).tobytes()


def test_the_pictures_nearest_to_a_cat_are_cats(workplace: Workplace) -> None:
    workplace.add("cat-blue.png", "cat-green.jpg", "cat-pink.png", "fox-grey.png", "robot-yellow.png", "mushroom-white.png")
    found = workplace.run(
        "find_similar.yaml", "--set", "query=photos/cat-blue.png", "--set", "photos=photos", "--set", "count=3"
    )
    (sheet,) = found["outputs"]["sheet"]
    assert picture(workplace.folder / sheet["path"]).width == 280
    scores = [json.loads((workplace.folder / f["path"]).read_text())["value"] for f in found["outputs"]["nearest.scores"]]
    assert scores[0] == 1.0
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3


def test_each_object_is_changed_by_itself_and_all_around_stays(workplace: Workplace) -> None:
    workplace.add("cat-cat-purple.png", "fox-grey.png")
    pipeline = workplace.folder / "per_object.yaml"
    pipeline.write_text(pipeline.read_text().replace("outputs: [edited]", "outputs: [cut.places, made, edited]"))
    found = workplace.run("per_object.yaml", *PHOTOS)
    assert states(found) == {"photo": "2 ran", "boxes": "2 ran", "cut": "2 ran", "made": "2 ran", "edited": "2 ran"}
    assert found["steps"]["edited"]["notes"] == {"no crops: passed unchanged": 1}
    files = {step: {f["id"]: workplace.folder / f["path"] for f in given} for step, given in found["outputs"].items()}
    assert set(files["made"]) == set(files["cut.places"]) == {"cat-cat-purple/0", "cat-cat-purple/1"}
    assert {picture(path).size for path in files["made"].values()} == {(128, 128)}

    before = np.asarray(picture(EXAMPLES / "cat-cat-purple.png").convert("RGB")).astype(int)
    after = np.asarray(picture(files["edited"]["cat-cat-purple"])).astype(int)
    outside = np.ones(before.shape[:2], bool)
    for path in files["cut.places"].values():
        place = json.loads(path.read_text())
        assert place["labels"] == ["cat"]
        left, top, right, bottom = map(int, place["xyxy"][0])
        middle = np.s_[top + 20 : bottom - 20, left + 20 : right - 20]
        assert np.abs(before[middle] - after[middle]).mean() > 20
        outside[top:bottom, left:right] = False
    assert outside.sum() > 5000
    assert (before[outside] == after[outside]).all()
    fox = picture(files["edited"]["fox-grey"])
    assert (np.asarray(fox) == np.asarray(picture(EXAMPLES / "fox-grey.png"))).all()


def test_an_unreadable_picture_fails_alone_and_the_exit_code_says_so(workplace: Workplace) -> None:
    workplace.add("cat-blue.png")
    (workplace.folder / "photos" / "broken.png").write_bytes(b"no picture")
    ran = workplace.photoloom("run", "replace_object.yaml", *PHOTOS)
    assert ran.returncode == 1
    assert "failed: photo broken: photos/broken.png: not a picture Pillow can read: unknown format" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "edited: 1 in outputs/replace-object/" in ran.stdout
