"""What a run leaves for people: the files of its outputs, and a report of what ran, what was cached, and why."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flows import keys
from flows.execute import Execution, parts_of
from flows.graph import Graph, Wire
from flows.keys import Digest
from flows.plan import Call
from flows.results import Failure, Result
from flows.spec import dump, shown
from flows.store import Manifest, Ref
from nodes.artifacts import File
from nodes.base import ID, Sink
from nodes.errors import Damaged, InputError, StoreError, Unreachable
from nodes.files import VERSION, as_file

TOGETHER = 256
"""Files that are noted together."""


def new_run_folder(out: Path, pipeline: str) -> Path:
    """Make `<out>/<pipeline>/<time>`, a new folder even when another run began in the same second.

    Raises:
        StoreError: it cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in itertools.count(1):
        folder = out / pipeline / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise StoreError(f"{folder} is in the way: not a folder") from None
        except OSError as error:
            raise StoreError(f"{folder} cannot be made: {error.strerror or error}") from error
    raise AssertionError


@dataclass
class Writer:
    """Writes outputs as they come, and what the steps `asked` for give. Encoded files are kept in the store too, so that a
    run from the cache encodes nothing; one that an earlier run wrote, and nobody touched since, is linked: it costs no room."""

    graph: Graph
    folder: Path
    metadata: bool = True
    execution: Execution | None = None
    asked: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._wires: dict[str, list[Wire]] = {}
        self._new: list[tuple[Digest, Path, str]] = []
        self._written: dict[Wire, list[tuple[str, str] | None]] = {}
        """The id and suffix of each file, which take less room than its path."""
        sinks = [Wire(step.name, o) for step in self.graph if isinstance(step.node, Sink) for o in step.node.outputs]
        asked = [Wire(name, output) for name in self.asked for output in self.graph.steps[name].node.outputs]
        for wire in dict.fromkeys((*self.graph.outputs, *sinks, *asked)):
            self._wires.setdefault(wire.step, []).append(wire)
            self._written[wire] = []

    def __call__(self, call: Call, outputs: Mapping[str, Ref | tuple[Ref, ...]]) -> None:
        """Write what one call of a step gave, if it is asked for."""
        assert self.execution is not None
        for wire in self._wires.get(call.step.name, ()):
            for _, id_, ref in parts_of(call, outputs[wire.output]):
                self.execution.beside(self._work(wire, id_ or call.step.name, ref))

    def _work(self, wire: Wire, id_: str, ref: Ref) -> Callable[[], None]:
        """What writes one value. Its place among the written is taken now, so that their order is that of the elements."""
        written = self._written[wire]
        place = len(written)
        written.append(None)
        node = self.graph.steps[wire.step].node

        def work() -> None:
            assert self.execution is not None
            try:
                if place and isinstance(node, Sink) and ID not in node.name:
                    raise InputError(f'name: "{node.name}" is that of the first one; put {ID} into it')
                written[place] = id_, self._write(wire, id_, ref)
            except (InputError, Unreachable) as error:
                self.execution.result.failures.append(Failure(wire.step, id_, str(error)))

        return work

    def written(self) -> dict[str, list[dict[str, str]]]:
        """The `id` and `path` of each file, by output, in the order of its elements."""
        self._remember()
        return {
            str(wire): [{"id": each[0], "path": str(self._path(wire, *each))} for each in found if each]
            for wire, found in self._written.items()
        }

    def _path(self, wire: Wire, id_: str, suffix: str) -> Path:
        node = self.graph.steps[wire.step].node
        name = node.name.replace(ID, id_) if isinstance(node, Sink) else id_
        base = self.folder / str(wire)
        path = base / f"{name}{suffix}"
        if not Path(os.path.normpath(path)).is_relative_to(base):
            raise InputError(f'step "{wire.step}": name: {name} leads out of the run\'s folder')
        return path

    def _write(self, wire: Wire, id_: str, ref: Ref) -> str:
        """Write a value; gives its file's suffix."""
        key = keys.digest("File", [VERSION, ref.digest, dict(ref.info) if self.metadata else None])
        path, suffix = self._linked(wire, id_, key) or self._made(wire, id_, ref, key)
        self._new.append((key, path, suffix))
        if len(self._new) >= TOGETHER:
            self._remember()
        return suffix

    def _linked(self, wire: Wire, id_: str, key: Digest) -> tuple[Path, str] | None:
        """Link the file that an earlier run wrote; gives its path and suffix, or nothing where that cannot be done."""
        assert self.execution is not None
        with self.execution.clock("write"):
            if before := self.execution.store.written(key):
                path = self._path(wire, id_, before[1])
                with suppress(OSError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.link(before[0], path)
                    return path, before[1]
        return None

    def _made(self, wire: Wire, id_: str, ref: Ref, key: Digest) -> tuple[Path, str]:
        """Write the file anew; gives its path and suffix."""
        assert self.execution is not None
        file = self._file(wire.step, ref, key)
        path = self._path(wire, id_, file.suffix)
        with self.execution.clock("write"):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.data.data)
            except OSError as error:
                raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
        return path, file.suffix

    def _remember(self) -> None:
        """Note where files were written, many at once."""
        if self.execution:
            some, self._new = self._new, []
            self.execution.store.note_written(some)

    def _file(self, step: str, ref: Ref, key: Digest) -> File:
        assert self.execution is not None
        store = self.execution.store
        try:
            if (kept := store.look_up(key)) and isinstance(one := kept.outputs["file"], Ref):
                found = store.get(one)
                if isinstance(found, File):
                    return found
        except (Damaged, Unreachable):
            pass  # encoding it again is all there is to do
        with self.execution.clock("encode"):
            file = as_file(self.execution.value(step, ref), self.metadata)
        with suppress(Unreachable):
            store.record(key, Manifest({"file": store.put(file)}, {}, {}))
        return file


def summary(
    run: Path, result: Result, written: Mapping[str, Any], seconds: float, where: Mapping[str, float],
    grids: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """The run as JSON: what `--json` prints and `report.json` holds."""
    return {
        "run": run.name,
        "status": status_of(result),
        "seconds": round(seconds, 3),
        "steps": {
            name: {**asdict(step), "seconds": round(step.seconds, 3)} for name, step in result.steps.items()
        },
        "where": {name: round(taken, 3) for name, taken in where.items()},
        "outputs": written,
        "grids": list(grids),
        "failures": [{"step": f.step, "id": f.id, "error": f.error} for f in result.failures],
        "stopped": result.stopped,
        "report": str(run / "report.md"),
    }


def status_of(result: Result) -> str:
    """`done`, `failed` when some elements failed, `stopped` when the run ended before its end."""
    return "stopped" if result.stopped else "failed" if result.failures else "done"


def leave(
    execution: Execution, run: Path, written: Mapping[str, Any], started: float, grids: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Write the report, the pipeline with its params as it ran, and full tracebacks of what was not the user's doing."""
    graph, result = execution.graph, execution.result
    found = summary(run, result, written, time.monotonic() - started, execution.where(), grids)
    found["params"] = {name: param.default for name, param in graph.as_run.params.items()}
    number = itertools.count()
    for failure, line in zip(result.failures, found["failures"], strict=True):
        if failure.traceback:
            trace = run / "errors" / f"{next(number):04d}-{failure.step}.txt"
            trace.parent.mkdir(exist_ok=True)
            trace.write_text(f"{failure.step} {failure.id}\n\n{failure.traceback}", "utf-8")
            line["traceback"] = str(trace)
    with (run / "report.json").open("w", encoding="utf-8") as file:  # not as one text: it names every file
        json.dump(found, file, ensure_ascii=False, indent=1)
        file.write("\n")
    (run / "report.md").write_text(markdown(graph, found), "utf-8")
    (run / "pipeline.yaml").write_text(dump(graph.as_run), "utf-8")
    return found


def told(failure: Mapping[str, str]) -> str:
    """A failure in a line."""
    more = f" (traceback: {failure['traceback']})" if "traceback" in failure else ""
    return f"{' '.join(filter(None, (failure['step'], failure['id'])))}: {failure['error']}{more}"


def markdown(graph: Graph, found: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [f"# {graph.name}: {found['status']} in {found['seconds']} s", ""]
    if found["params"]:
        lines += [", ".join(f"{name}: {shown(value)}" for name, value in found["params"].items()), ""]
    lines += ["| step | node | ran | cached | failed | skipped | seconds | why it ran |", "|---|---|---|---|---|---|---|---|"]
    for name, step in found["steps"].items():
        why = "; ".join(f"{reason} ({count})" for reason, count in {**step["reasons"], **step["notes"]}.items())
        counts = " | ".join(str(step[state]) for state in ("ran", "cached", "failed", "skipped", "seconds"))
        lines.append(f"| {name} | {type(graph.steps[name].node).__name__} | {counts} | {why.replace('|', '/')} |")
    if found["failures"]:
        lines += ["", "## Failures", ""]
        lines += [f"- {told(failure)}" for failure in found["failures"]]
    if found["stopped"]:
        lines += ["", f"Stopped: {found['stopped']}"]
    if found["grids"]:
        lines += ["", "## Grids", ""] + [f"- {each['output']} {each['id']}: {each['path']}" for each in found["grids"]]
    lines += ["", "## Files", ""]
    for step, files in found["outputs"].items():
        lines += [f"- {step}: {len(files)}"] + [f"  - {file['path']}" for file in files[:20]]
    return "\n".join(lines) + "\n"
