"""What runs again and what does not, and the reasons given."""

from __future__ import annotations

import os
import sys
import time
from importlib import util
from pathlib import Path

import pytest

from flows.execute import Execution
from flows.objects import DAY, blob_name, manifest_name
from flows.pipeline import Pipeline
from flows.plan import Call
from flows.store import Ref, Store
from tests import toys
from tests.flows.conftest import Run, reasons, states

CHAIN = """
name: chain
params: {{add: 0, threshold: 200}}
steps:
  photo: {{node: Grey, path: "{photos}"}}
  negative: {{node: Invert, image: photo, add: "${{add}}"}}
  spot: {{node: BrightSpot, image: negative, threshold: "${{threshold}}"}}
  cut: {{node: Crop, image: negative, boxes: spot}}
"""


def chain(photos: Path) -> str:
    return CHAIN.format(photos=photos)


def test_a_second_run_calls_nothing(photos: Path, run: Run) -> None:
    first = run(chain(photos))
    assert states(first) == {"photo": "3 ran", "negative": "3 ran", "spot": "3 ran", "cut": "3 ran"}
    again = run(chain(photos))
    assert states(again) == {"photo": "3 cached", "negative": "3 cached", "spot": "3 cached", "cut": "3 cached"}
    assert toys.calls == []


def test_a_changed_param_reruns_its_step_and_what_follows(photos: Path, run: Run) -> None:
    run(chain(photos))
    changed = run(chain(photos), {"add": 3})
    assert states(changed)["photo"] == "3 cached"
    assert changed.result.steps["negative"].reasons == {"add changed: 0 → 3": 3}
    assert toys.calls.count("Invert") == 3


def test_a_threshold_that_finds_the_same_boxes_reruns_nothing_below(photos: Path, run: Run) -> None:
    run(chain(photos))
    changed = run(chain(photos), {"threshold": 201})
    assert states(changed) == {"photo": "3 cached", "negative": "3 cached", "spot": "3 ran", "cut": "3 cached"}


def test_one_more_picture_runs_alone(photos: Path, run: Run, store: Store) -> None:
    run(chain(photos))
    (photos / "aa.txt").write_text("1 2\n3 4\n")
    assert reasons(chain(photos), store)["photo"] == ["a: cached", "aa: run new picture", "b: cached", "c: cached"]
    more = run(chain(photos))
    assert states(more) == dict.fromkeys(("photo", "negative", "spot", "cut"), "1 ran, 3 cached")
    assert more.result.steps["negative"].reasons == {"new picture": 1}


def test_a_touched_or_renamed_picture_runs_nothing(photos: Path, run: Run) -> None:
    run(chain(photos))
    os.utime(photos / "a.txt", (1, 1))
    (photos / "b.txt").rename(photos / "zebra.txt")
    again = run(chain(photos))
    assert toys.calls == []
    assert states(again)["cut"] == "3 cached"


def test_a_changed_picture_runs_and_says_so(photos: Path, run: Run) -> None:
    run(chain(photos))
    (photos / "a.txt").write_text("9 9\n9 9\n")
    again = run(chain(photos))
    assert again.result.steps["photo"].reasons == {"picture changed": 1}
    assert again.result.steps["negative"].reasons == {"image changed": 1}


def test_a_plan_says_what_would_run_and_runs_nothing(photos: Path, run: Run, store: Store) -> None:
    toys.calls.clear()
    assert reasons(chain(photos), store)["photo"] == ["a: run first run", "b: run first run", "c: run first run"]
    assert reasons(chain(photos), store)["cut"] == ["a: waits negative", "b: waits negative", "c: waits negative"]
    run(chain(photos))
    toys.calls.clear()
    plan = reasons(chain(photos), store, add=1)
    assert plan["negative"] == [f"{name}: run add changed: 0 → 1" for name in "abc"]
    assert plan["spot"] == [f"{name}: waits negative" for name in "abc"]
    assert toys.calls == []


def test_a_forced_step_runs_whatever_the_store_has(photos: Path, run: Run) -> None:
    run(chain(photos))
    forced = run(chain(photos), force=frozenset({"negative"}))
    assert states(forced) == {"photo": "3 cached", "negative": "3 ran", "spot": "3 cached", "cut": "3 cached"}
    assert forced.result.steps["negative"].reasons == {"forced": 3}


def test_equal_pictures_are_worked_on_once(photos: Path, run: Run) -> None:
    (photos / "b.txt").write_bytes((photos / "a.txt").read_bytes())
    both = run(chain(photos))
    assert toys.calls.count("Invert") == 2
    assert states(both)["negative"] == "2 ran, 1 cached"


def test_1_and_1_0_and_true_are_three_values(tmp_path: Path, store: Store) -> None:
    from flows.keys import digest

    assert len({digest("Step", value) for value in (1, 1.0, True, "1")}) == 4


def own_node(tmp_path: Path, body: str) -> None:
    """Import a module with a node of one's own, as `--nodes` does."""
    file = tmp_path / "own_nodes.py"
    file.write_text(
        "import numpy as np\nfrom nodes import Image, Node\n\n\nclass Own(Node):\n"
        f"    def run(self, image: Image) -> Image:\n        {body}\n"
    )
    spec = util.spec_from_file_location("own_nodes", file)
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    sys.modules["own_nodes"] = module
    spec.loader.exec_module(module)


def test_changed_code_of_an_own_node_reruns_it_and_the_old_code_is_still_cached(
    tmp_path: Path, photos: Path, run: Run
) -> None:
    text = f'name: own\nsteps:\n  photo: {{node: Grey, path: "{photos}"}}\n  own: {{node: Own, image: photo}}\n'
    own_node(tmp_path, "return Image(image.pixels + np.uint8(1))")
    run(text)
    own_node(tmp_path, "return Image(image.pixels + np.uint8(2))")
    changed = run(text)
    assert states(changed) == {"photo": "3 cached", "own": "3 ran"}
    assert changed.result.steps["own"].reasons == {"node version": 3}
    own_node(tmp_path, "return Image(image.pixels + np.uint8(1))")
    assert states(run(text))["own"] == "3 cached"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def first_call(execution: Execution, step: str, index: int = 0) -> Call:
    return list(execution.walk(step))[index]


def first_ref(execution: Execution, step: str) -> Ref:
    manifest = first_call(execution, step).manifest
    assert manifest
    return next(manifest.refs())


def test_a_damaged_value_is_made_again_and_said(photos: Path, run: Run, tmp_path: Path) -> None:
    ran = run(chain(photos))
    ref = first_ref(ran, "negative")
    damage(tmp_path / "store" / blob_name(ref.digest))
    fresh = Store(tmp_path / "store")
    execution = Execution(Pipeline.from_yaml(chain(photos)).graph({"threshold": 199}), fresh)
    execution.run()
    assert execution.result.failures == []
    assert execution.result.steps["negative"].reasons == {"damaged": 1}
    assert fresh.verify() == []


def test_a_damaged_manifest_is_a_miss_that_is_said(photos: Path, run: Run, store: Store) -> None:
    ran = run(chain(photos))
    key = first_call(ran, "negative", 1).key
    damage(store.folder / manifest_name(key))
    again = run(chain(photos))
    assert states(again)["negative"] == "1 ran, 2 cached"
    assert again.result.steps["negative"].reasons == {"damaged": 1}


def test_what_failed_last_time_is_not_said_to_be_removed(photos: Path, run: Run) -> None:
    (photos / "b.txt").write_text("no picture")
    assert states(run(chain(photos)))["photo"] == "2 ran, 1 failed"
    (photos / "b.txt").write_text("20 21\n22 250\n")
    assert run(chain(photos)).result.steps["photo"].reasons == {"new picture": 1}


def test_what_was_removed_from_the_store_runs_again(
    photos: Path, run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(chain(photos))
    assert store.collect(0) == 0 and store.info()["results"] == 12, "young results stay, with their values"
    monkeypatch.setattr("flows.store.YOUNG", -10)
    assert store.collect(0) > 0
    assert store.info()["results"] == 0
    again = run(chain(photos))
    assert again.result.steps["photo"].reasons == {"removed from the store": 3}


def test_what_is_used_stays_longest_in_a_store_that_is_too_large(
    photos: Path, run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(chain(photos))
    keys = [first_call(ran, step, 0).key for step in ("photo", "negative")]
    monkeypatch.setattr("flows.store.YOUNG", -10)
    for path in (store.folder / "manifests").glob("*/*"):
        os.utime(path, (time.time() - 3 * DAY,) * 2)
    used = store.look_up(keys[1])
    assert used is not None
    least = sum((store.folder / name).stat().st_size for name in (
        manifest_name(keys[1]), *(blob_name(ref.digest) for ref in used.refs())
    ))
    store.collect(least)
    assert [store.look_up(key) is not None for key in keys] == [False, True]
    assert store.info()["results"] == 1


def test_what_a_writer_that_died_began_is_gone_after_a_day(photos: Path, run: Run, store: Store) -> None:
    run(chain(photos))
    folder = next((store.folder / "blobs").iterdir())
    old, young = folder / ".old.1.1", folder / ".young.2.2"
    for draft in (old, young):
        draft.write_bytes(b"1")
    os.utime(old, (time.time() - DAY - 60,) * 2)
    before = store.info()
    store.collect(2**30)
    assert (old.exists(), young.exists()) == (False, True)
    assert store.info() == before


def test_verify_names_and_removes_what_is_damaged(photos: Path, run: Run, store: Store) -> None:
    ran = run(chain(photos))
    digest = first_ref(ran, "photo").digest
    damage(store.folder / blob_name(digest))
    found = store.verify()
    assert found[0] == f"value {digest[:12]} is damaged"
    assert all("which is missing" in line for line in found[1:])
    assert store.verify() == []


def test_results_do_not_depend_on_windows_or_batches(photos: Path, run: Run, tmp_path: Path) -> None:
    digests = set()
    for window, batch in ((1, 1), (2, 3), (64, 8)):
        execution = Execution(
            Pipeline.from_yaml(chain(photos)).graph(), Store(tmp_path / f"store-{window}"), window=window, batch=batch
        )
        execution.run()
        digests.add(tuple(first_ref(execution, step).digest for step in ("photo", "negative", "spot")))
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["replace_object", "replace_background", "generate_and_refine", "find_similar", "per_object"])
def test_each_shipped_pipeline_is_right(name: str) -> None:
    Pipeline.from_yaml(Path(__file__).parents[2] / "pipelines" / f"{name}.yaml")
