"""The command: what it prints where, and its exit codes."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image as pil
from yaml import safe_load

from tests.conftest import ROOT, Workplace, command, task_runs

NODE = """from nodes import Image, Node


class Half(Node):
    def run(self, image: Image) -> Image:
        return Image(image.pixels // 2)
"""
HALVED = 'name: halved\nsteps:\n  photo: {node: Load, path: photos}\n  half: {node: Half, image: photo}\noutputs: [half]\n'


@pytest.fixture
def halves(workplace: Workplace) -> Workplace:
    """A pipeline with a node of the user's own, and two pictures."""
    workplace.add("cat-blue.png", "dog-green.png")
    (workplace.folder / "own.py").write_text(NODE)
    (workplace.folder / "halved.yaml").write_text(HALVED)
    return workplace


def test_schema_is_the_one_shipped_and_fits_the_shipped_pipelines(halves: Workplace) -> None:
    shown = halves.photoloom("schema")
    assert shown.stdout == (ROOT / "pipelines" / "schema.json").read_text("utf-8"), (
        "write it again: photoloom schema > pipelines/schema.json"
    )
    Draft202012Validator.check_schema(json.loads(shown.stdout))
    validator = Draft202012Validator(json.loads(shown.stdout))
    for path in (ROOT / "pipelines").glob("*.yaml"):
        assert not list(validator.iter_errors(safe_load(path.read_text("utf-8")))), path
    wrong = safe_load((ROOT / "pipelines" / "replace_object.yaml").read_text("utf-8"))
    for key, value in (("promt", "x"), ("strength", 7), ("image", 3)):
        steps = {**wrong["steps"], "edited": {**wrong["steps"]["edited"], key: value}}
        assert not validator.is_valid({**wrong, "steps": steps}), key
    assert not validator.is_valid({**wrong, "steps": {"a": {"node": "Nope"}}})
    own = json.loads(halves.photoloom("schema", "--nodes", "own.py").stdout)
    assert Draft202012Validator(own).is_valid(safe_load(HALVED))
    assert not validator.is_valid(safe_load(HALVED))


def test_nodes_are_listed_and_described(workplace: Workplace) -> None:
    listed = workplace.photoloom("nodes").stdout
    names = [line.split()[0] for line in listed.splitlines()]
    assert {"Load", "Detect", "Segment", "Embed", "Generate", "Inpaint", "Refine", "Save"} <= set(names)
    assert names == sorted(names)
    for name in names:
        told = workplace.photoloom("nodes", name).stdout if name in ("Detect", "Load") else "ports:\noutputs:\nparams:\n"
        assert all(part in told for part in ("ports:\n", "outputs:\n", "params:\n")), name
    wrong = workplace.photoloom("nodes", "Detekt")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert 'unknown node "Detekt"; did you mean "Detect"?' in wrong.stderr


def test_store_commands(halves: Workplace) -> None:
    halves.run("halved.yaml", "--nodes", "own.py")
    before = json.loads(halves.photoloom("store", "info", "--json").stdout)
    assert before["results"] == before["values"] == 6, "two pictures: read, halved, and encoded as the files in the outputs"
    assert halves.photoloom("store", "info").stdout == f"6 results, 6 values, {before['bytes']:,} bytes\n"
    assert halves.photoloom("store", "verify").stdout == "all right\n"
    blob = min((halves.folder / "outputs" / "store" / "blobs").glob("*/*"))
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    found = halves.photoloom("store", "verify")
    assert found.returncode == 1
    assert "is damaged" in found.stdout and "which is missing" in found.stdout
    assert halves.photoloom("store", "verify").returncode == 0, "what was damaged is gone"
    again = halves.run("halved.yaml", "--nodes", "own.py")
    assert again["status"] == "done"
    assert sum(step["ran"] for step in again["steps"].values()) >= 1

    for path in (halves.folder / "outputs" / "store").glob("*/*/*"):
        os.utime(path, (1, 1))
    assert halves.photoloom("store", "gc", "--max-size", "1G").stdout == "freed 0 bytes\n"
    assert halves.photoloom("store", "gc", "--max-size", "0").stdout.startswith("freed ")
    assert json.loads(halves.photoloom("store", "info", "--json").stdout) == {"results": 0, "values": 0, "bytes": 0}
    wrong = halves.photoloom("store", "gc", "--max-size", "much")
    assert wrong.returncode == 2
    assert wrong.stderr == "photoloom: --max-size much: expected a number with K, M or G, such as 20G\n"


def test_plan_as_json_says_what_run_then_does(halves: Workplace) -> None:
    def planned() -> dict[str, list[str]]:
        ran = halves.photoloom("plan", "halved.yaml", "--nodes", "own.py", "--json")
        return {step: [call["state"] for call in calls] for step, calls in json.loads(ran.stdout).items()}

    assert planned()["photo"] == ["run", "run"]
    done = halves.run("halved.yaml", "--nodes", "own.py")
    assert [done["steps"][name]["ran"] for name in ("photo", "half")] == [2, 2]
    assert planned() == {"photo": ["cached", "cached"], "half": ["cached", "cached"]}
    (halves.folder / "own.py").write_text(NODE.replace("// 2", "// 3"))
    assert planned() == {"photo": ["cached", "cached"], "half": ["run", "run"]}
    (halves.folder / "own.py").write_text(NODE)
    assert planned() == {"photo": ["cached", "cached"], "half": ["cached", "cached"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "nowhere.yaml"), "nowhere.yaml: No such file or directory"),
        (("check", "replace_objekt.yaml"), 'did you mean "replace_object.yaml"?'),
        (("run", "replace_object.yaml", "--set", "promt=x"), '--set promt=x: unknown param "promt"; did you mean "prompt"?'),
        (("run", "replace_object.yaml", "--set", "prompt"), "--set prompt: write --set NAME=VALUE"),
        (("run", "replace_object.yaml", "--models", "toybx"), 'unknown model set "toybx"; did you mean "toybox"?'),
        (("run", "replace_object.yaml", "--only", "edit"), 'unknown step "edit"; did you mean "edited"?'),
        (("run", "replace_object.yaml", "--force", "edit"), 'unknown step "edit"; did you mean "edited"?'),
        (("store", "info", "--store", "nowhere"), "--store nowhere: there is no store"),
        (("deploy", "find_similar.yaml", "--interval", "9", "--name", "a/b"), "--name a/b: a deployment's name holds none"),
        (("run", "halved.yaml", "--nodes", "none.py"), "--nodes none.py: no such Python file"),
        (("run", "halved.yaml", "--nodes", "faulty.py"), "--nodes faulty.py: ZeroDivisionError: division by zero"),
        (("run", "halved.yaml"), 'unknown node "Half"'),
    ],
)
def test_what_a_user_did_is_told_in_a_line(halves: Workplace, words: tuple[str, ...], message: str) -> None:
    (halves.folder / "faulty.py").write_text("1 / 0\n")
    ran = halves.photoloom(*words)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (halves.folder / "outputs" / "replace-object").exists(), "no run was begun"
    assert not (halves.folder / "nowhere").exists(), "looking at a store makes none"


def test_what_lies_beside_a_picture_is_read_and_what_lies_elsewhere_is_not(halves: Workplace) -> None:
    (halves.folder / "beside.yaml").write_text(
        'name: beside\nparams: {place: "{folder}/{stem}.txt"}\nsteps:\n  photo: {node: Load, path: photos}\n'
        '  words: {node: LoadText, like: photo, path: "${place}"}\noutputs: [words]\n'
    )
    (halves.folder / "photos" / "cat-blue.txt").write_text("a cat\n")
    ran = halves.photoloom("run", "beside.yaml")
    assert ran.returncode == 1
    assert "failed: words dog-green: photos/dog-green.txt: no such file\n" in ran.stderr
    (file,) = (halves.folder / "outputs" / "beside").glob("*/words/*")
    assert (file.name, file.read_text()) == ("cat-blue.txt", "a cat")
    (halves.folder / "photos" / "dog-green.txt").write_text("a dog\n")
    again = halves.run("beside.yaml")
    assert [again["steps"]["words"][state] for state in ("cached", "ran", "failed")] == [1, 1, 0]
    assert [found["id"] for found in again["outputs"]["words"]] == ["cat-blue", "dog-green"]

    text = (halves.folder / "beside.yaml").read_text().replace("{folder}/{stem}.txt", "{folder}/../../../etc/passwd")
    (halves.folder / "beside.yaml").write_text(text)
    refused = halves.photoloom("run", "beside.yaml")
    assert refused.returncode == 2
    assert refused.stderr.endswith(
        'beside.yaml:5:40: step "words": path: photos/../../../etc/passwd lies outside the pipeline\'s folder and the working '
        "directory; allow it with --allow photos/../../../etc\n"
    )


def test_what_a_node_did_is_told_in_a_line_and_kept_in_full(halves: Workplace) -> None:
    (halves.folder / "own.py").write_text(NODE.replace("pixels // 2", "pixels // (1 // len(image.info.get('no', ())))"))
    ran = halves.photoloom("run", "halved.yaml", "--nodes", "own.py")
    assert ran.returncode == 1
    told = re.findall(r"failed: half (\S+): ZeroDivisionError: .* \(traceback: (\S+)\)\n", ran.stderr)
    assert [name for name, _ in told] == ["cat-blue", "dog-green"]
    for name, file in told:
        text = (halves.folder / file).read_text("utf-8")
        assert text.startswith(f"half {name}\n\nTraceback") and "own.py" in text
    assert "Traceback" not in ran.stderr + ran.stdout
    assert "NoneType" not in ran.stderr and "ERROR" not in ran.stderr, "Prefect does not say it again in words of its own"


def test_a_run_interrupted_leaves_a_report_and_few_words(halves: Workplace) -> None:
    slow = NODE.replace("return", "import time\n        print('began', flush=True)\n        time.sleep(30)\n        return")
    (halves.folder / "own.py").write_text(slow)
    with subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "halved.yaml", "--nodes", "own.py"], cwd=halves.folder, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**halves.environment, "PYTHONPATH": str(ROOT)},
    ) as running:
        assert running.stdout and running.stdout.readline() == "began\n"
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.splitlines()[-1] == "interrupted; the same command takes up where this one stopped"
    assert "ERROR" not in said and "Traceback" not in said
    (report,) = (halves.folder / "outputs" / "halved").glob("*/report.json")
    found = json.loads(report.read_text())
    assert (found["status"], found["stopped"], found["steps"]["photo"]["ran"]) == ("stopped", "interrupted", 2)


def test_a_runs_folder_says_how_it_was_made_and_makes_it_again(halves: Workplace) -> None:
    by = NODE.replace("// 2", "// self.by").replace("class Half(Node):", "class Half(Node):\n    by: int = 2\n")
    (halves.folder / "by.py").write_text(by)
    (halves.folder / "by.yaml").write_text(
        "name: by\nparams: {by: 2, photos: photos}\nsteps:\n  photo: {node: Load, path: \"${photos}\"}\n"
        "  half: {node: Half, image: photo, by: \"${by}\"}\noutputs: [half]\n"
    )
    first = halves.run("by.yaml", "--nodes", "by.py", "--set", "by=5", "--set", "photos=photos/cat*")
    folder = halves.folder / Path(first["report"]).parent
    assert json.loads((folder / "report.json").read_text())["params"] == {"by": 5, "photos": "photos/cat*"}
    assert '\nby: 5, photos: "photos/cat*"\n' in (folder / "report.md").read_text()
    again = halves.run(str(folder / "pipeline.yaml"), "--nodes", "by.py")
    assert [again["steps"]["half"][state] for state in ("cached", "ran")] == [1, 0]
    one, two = (halves.folder / found["outputs"]["half"][0]["path"] for found in (first, again))
    assert one != two and one.read_bytes() == two.read_bytes()


def test_a_picture_that_a_run_wrote_already_takes_no_room_again(halves: Workplace) -> None:
    def made() -> Path:
        found = halves.run("halved.yaml", "--nodes", "own.py")
        return halves.folder / next(each["path"] for each in found["outputs"]["half"] if each["id"] == "cat-blue")

    first = made()
    whole = first.read_bytes()
    second = made()
    assert second != first and second.samefile(first)
    second.unlink()
    assert made().read_bytes() == first.read_bytes() == whole
    third = made()
    with third.open("ab") as file:
        file.write(b"touched")
    fourth = made()
    assert not fourth.samefile(third)
    assert fourth.read_bytes() == whole


def test_what_a_run_wrote_is_not_what_the_next_one_works_on(halves: Workplace) -> None:
    for _ in range(2):
        found = halves.run("halved.yaml", "--nodes", "own.py")
        (halves.folder / "halved.yaml").write_text(HALVED.replace("path: photos", 'path: "**/*.png"'))
    assert [each["id"] for each in found["outputs"]["half"]] == ["photos/cat-blue", "photos/dog-green"]
    assert [call["id"] for call in json.loads(
        halves.photoloom("plan", "halved.yaml", "--nodes", "own.py", "--json").stdout
    )["photo"]] == ["photos/cat-blue", "photos/dog-green"]
    inside = Path(found["outputs"]["half"][0]["path"]).parent
    (halves.folder / "halved.yaml").write_text(HALVED.replace("path: photos", f'path: "{inside}"'))
    named = halves.run("halved.yaml", "--nodes", "own.py")
    assert [each["id"] for each in named["outputs"]["half"]] == ["cat-blue", "dog-green"], "but for what a path leads to"


def test_a_file_is_found_whatever_stands_in_its_name_and_a_step_asked_for_is_written(halves: Workplace) -> None:
    name = "[1] 100% ${x} {stem}.png"
    (halves.folder / "photos" / "cat-blue.png").rename(halves.folder / "photos" / name)
    (halves.folder / "halved.yaml").write_text('params: {at: x}\n' + HALVED.replace("path: photos", 'path: "${at}"'))
    found = halves.run("halved.yaml", "--nodes", "own.py", "--set", f"at=photos/{name}", "--only", "photo")
    assert [each["id"] for each in found["outputs"]["photo"]] == [name.removesuffix(".png")]
    assert (halves.folder / found["outputs"]["photo"][0]["path"]).is_file()
    assert found["outputs"]["half"] == []


def test_pictures_of_one_name_do_not_overwrite_each_other(halves: Workplace) -> None:
    (halves.folder / "halved.yaml").write_text(
        'name: halved\nsteps:\n  photo: {node: Load, path: photos}\n  file: {node: Save, image: photo, name: one}\n'
    )
    ran = halves.photoloom("run", "halved.yaml")
    assert ran.returncode == 1
    assert 'failed: file dog-green: name: "one" is that of the first one; put {id} into it\n' in ran.stderr
    (file,) = (halves.folder / "outputs" / "halved").glob("*/file/*")
    with pil.open(file) as made, pil.open(halves.folder / "photos" / "cat-blue.png") as first:
        assert np.array_equal(np.asarray(made.convert("RGB")), np.asarray(first.convert("RGB")))


def test_the_command_says_its_version(tmp_path: Path) -> None:
    assert re.fullmatch(r"photoloom \d+\.\d+\.\d+\n", command({**os.environ}, tmp_path, "--version").stdout)


def test_the_server_says_whether_it_runs(server: dict[str, str], tmp_path: Path) -> None:
    assert command(server, tmp_path, "server", "status").stdout == f"running: http://127.0.0.1:{server['PHOTOLOOM_SERVER_PORT']}\n"
    elsewhere = command({**server, "PHOTOLOOM_SERVER_PORT": "9"}, tmp_path, "server", "status")
    assert (elsewhere.returncode, elsewhere.stdout) == (1, "not running: http://127.0.0.1:9\n")


SHEETS = """
name: sheets
params: {cell: {type: int, default: 64, ge: 8}, colour: white, gap: 8}
steps:
  photo: {node: Load, path: photos}
  sheet: {node: ContactSheet, images: photo, columns: 1, cell: "${cell}", background: "${colour}"}
  half: {node: Half, image: sheet}
outputs: [half]
"""


def test_a_sweep_runs_every_combination_in_one_flow_run_and_draws_a_grid(halves: Workplace) -> None:
    (halves.folder / "sheets.yaml").write_text(SHEETS)
    colours = 'colour=red, "rgb(0, 0, 254)",blue'
    words = ("sheets.yaml", "--nodes", "own.py", "--sweep", colours, "--sweep", "cell=64,32")
    found = halves.run(*words)
    names = [f"__colour_{colour}__cell_{cell}" for colour in ("red", "rgb_0_0_254", "blue") for cell in (64, 32)]
    assert list(found["steps"]) == ["photo", *(f"sheet{name}" for name in names), *(f"half{name}" for name in names)]
    assert [step["ran"] for step in found["steps"].values()] == [2] + [1] * 12
    assert {run["name"] for run in task_runs(halves.environment, "sheets")} == {f"{name}-0" for name in found["steps"]}
    assert list(found["outputs"]) == [f"half{name}" for name in names]

    (grid,) = found["grids"]
    assert (grid["id"], grid["output"]) == ("half", "half")
    assert grid["path"] == f"{Path(found['report']).parent}/grid/half/half.png"
    assert f"## Grids\n\n- half half: {grid['path']}\n" in (halves.folder / found["report"]).read_text()
    with pil.open(halves.folder / grid["path"]) as picture:
        sheet = np.asarray(picture)
    lefts = []
    for colour in ((127, 0, 0), (0, 0, 127)):
        ys, xs = np.nonzero((sheet == colour).all(axis=2))
        lefts.append(xs.min())
        assert ys.max() - ys.min() > (64 + 32) * 2, "large pictures above small ones"
    assert lefts[0] < lefts[1]

    told = halves.photoloom("run", *words).stdout
    assert re.search(r"^half__colour_red__cell_64 +1 cached ", told, re.M)
    assert re.search(r"^half: 1 as a grid of the sweep: outputs/sheets/.+/grid/half/half.png$", told, re.M)
    planned = halves.photoloom("plan", *words[:-1], "cell=64,16").stdout
    assert re.search(r"^half__colour_blue__cell_64 +1 cached$", planned, re.M)
    assert re.search(r"^half__colour_blue__cell_16 +1 depends on sheet__colour_blue__cell_16$", planned, re.M)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sweep cell", "--sweep cell: write --sweep NAME=VALUE,VALUE"),
        ("--sweep sell=3", '--sweep sell=3: unknown param "sell"; did you mean "cell"?'),
        ("--sweep cell=8 --sweep cell=9", '--sweep cell=9: "cell" is swept already; write all its values in one --sweep'),
        ("--sweep cell=", 'param "cell": a sweep takes at least one value, got none'),
        ("--sweep cell=32,,64", 'param "cell": expected int, got str ""'),
        ("--sweep cell=32,big", 'param "cell": expected int, got str "big"'),
        ("--sweep cell=32,4", 'param "cell": expected a value ≥ 8, got 4'),
        ("--sweep cell=32,64,32", 'param "cell": the value 32 stands in the sweep twice'),
        ("--sweep gap=4,8", 'param "gap": no step uses ${gap}, so nothing would differ'),
        ("--set cell=64 --sweep cell=32", 'param "cell": it is set to 64 and swept; do one of the two'),
        ("--sweep colour=red,bleu",
         'sheets.yaml:6:75: step "sheet__colour_bleu": background: unknown color specifier: \'bleu\', got "bleu"'),
    ],
)
def test_a_wrong_sweep_ends_before_anything_runs(halves: Workplace, words: str, message: str) -> None:
    (halves.folder / "sheets.yaml").write_text(SHEETS)
    ran = halves.photoloom("run", "sheets.yaml", "--nodes", "own.py", *words.split())
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"photoloom: {message}\n"
    assert not (halves.folder / "outputs").exists()


@pytest.mark.parametrize("words", [["check"], ["plan", "--set", "photos=photos"], ["graph"]])
def test_looking_at_a_pipeline_loads_nothing_heavy(words: list[str], workplace: Workplace) -> None:
    workplace.add("cat-blue.png")
    code = (
        "import sys, flows.cli\n"
        f"sys.argv = ['photoloom', *{[words[0], 'replace_object.yaml', *words[1:]]!r}]\n"
        "try:\n    flows.cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'prefect', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=workplace.folder, env={**workplace.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )
    assert ran.returncode == 0, ran.stderr


NOTED = ROOT / "tests" / "nodes" / "versions.json"


def test_a_node_whose_code_changed_has_a_new_version() -> None:
    """A shipped node's `version` is part of its cache key: changed code under an old version would give old results."""
    assert noted() == json.loads(NOTED.read_text("utf-8")), (
        "raise `version` where a node's results changed, then: python -m tests.test_cli > tests/nodes/versions.json"
    )


def noted() -> dict[str, list[str]]:
    """For each shipped node its version and a digest of its module's lines without docstrings and comments."""
    from hashlib import sha256

    import nodes
    from nodes.base import registered

    found = {}
    for name, cls in sorted(registered().items()):
        if cls.__module__.startswith("nodes.") and getattr(nodes, name, None) is cls:
            text = Path(sys.modules[cls.__module__].__file__ or "").read_text("utf-8")
            found[name] = [cls.version, sha256("\n".join(code_lines(text)).encode()).hexdigest()[:16]]
    return found


def code_lines(text: str) -> list[str]:
    """Not by way of `ast.unparse`, which writes the same code differently in each version of Python."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for part in ast.walk(ast.parse(text)):
        if isinstance(part, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(part) is not None:
            first = part.body[0]
            lines[first.lineno - 1 : first.end_lineno] = [""] * ((first.end_lineno or 0) - first.lineno + 1)
    return [line.rstrip() for line in lines if line.strip()]


if __name__ == "__main__":
    print(json.dumps(noted(), indent=1))
