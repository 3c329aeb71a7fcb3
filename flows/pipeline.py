"""A pipeline in Python: from YAML or from steps, checked, planned, run, or handed on as a Prefect flow."""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nodes  # noqa: F401
from flows.check import bind
from flows.describe import annotation
from flows.execute import Execution
from flows.graph import Graph
from flows.grids import write_grids
from flows.plan import PlannedStep, Planner, make_plan
from flows.reading import Value
from flows.remote import caller_on
from flows.report import Writer, leave, markdown, new_run_folder
from flows.results import Watcher
from flows.spec import PIPELINE_NAME, Models, Param, Spec, StepSpec, dump, parse, read, shown
from flows.store import Store, open_store
from flows.sweep import Sweep, swept, values_of
from nodes.artifacts import Artifact
from nodes.base import Model, Node, Output, Step, registered
from nodes.errors import PipelineError, Problem, UserError, nearest

if TYPE_CHECKING:
    from prefect import Flow, State

DEFAULT_OUT = Path("outputs")
DEFAULT_STORE = Path("outputs/store")


def known_nodes() -> Mapping[str, type[Node]]:
    """The node classes that a pipeline may name: those shipped, those installed under the entry point group
    `photoloom.nodes`, and those defined in this process."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="photoloom.nodes"):
        entry.load()
    return registered()


@dataclass(frozen=True)
class RunResult:
    """What a run gave. `result["edited"]` are the artifacts of a step or output, in order; `report` is the report's path."""

    status: str
    summary: Mapping[str, Any]
    report: Path
    _values: Mapping[str, Callable[[], list[Artifact]]]

    def __getitem__(self, name: str) -> list[Artifact]:
        if name not in self._values:
            raise KeyError(f"{name}; known: {', '.join(self._values)}")
        return self._values[name]()


class Pipeline:
    """A graph of nodes with a name. From steps:

        photo = Load(path="photos").step("photo")
        boxes = Detect(labels=("cat",)).step("boxes", image=photo)
        Pipeline("find-cats", outputs=[boxes]).run()

    Raises:
        PipelineError: with all that is wrong, as soon as it is made.
    """

    def __init__(
        self,
        name: str,
        outputs: Sequence[Step | Output],
        models: Models = "toybox",
        description: str = "",
    ) -> None:
        steps: dict[str, Step] = {}
        if not isinstance(outputs, Sequence):
            raise UserError(f"outputs: expected a list of steps, got {type(outputs).__name__}: write outputs=[…]")
        for output in outputs:
            _collect(output.step if isinstance(output, Output) else output, steps)
        if not PIPELINE_NAME.fullmatch(name):
            raise PipelineError([Problem(f'name: expected letters, digits, - and _, got "{name}"')])
        specs = {step.name: StepSpec(type(step.node).__name__, _keys(step)) for step in steps.values()}
        names = tuple(_wire(output) if isinstance(output, Output) else output.name for output in outputs)
        self.spec = Spec(name, description, models, {}, specs, names)
        self.graph()

    @classmethod
    def from_spec(cls, spec: Spec) -> Pipeline:
        """A pipeline as written; it is checked when its graph is asked for, with the params it then gets."""
        found = cls.__new__(cls)
        found.spec = spec
        return found

    @classmethod
    def from_yaml(cls, path: str | Path) -> Pipeline:
        """Read a pipeline's file, or its text if it holds a line break.

        Raises:
            PipelineError: with all that is wrong.
        """
        spec = parse(path) if isinstance(path, str) and "\n" in path else read(Path(path))
        found = cls.from_spec(spec)
        found.graph()
        return found

    def to_yaml(self) -> str:
        """The pipeline as YAML, which reads back equal."""
        return dump(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    def graph(
        self, params: Mapping[str, Value] | None = None, models: Models | None = None,
        allow: Sequence[Path] = (),
    ) -> Graph:
        """The checked graph with params bound.

        Raises:
            PipelineError: with all that is wrong.
        """
        return bind(self.spec, known_nodes(), params, models, tuple(allow))

    def _swept(
        self, params: Mapping[str, Value] | None, models: Models | None, allow: Sequence[Path],
        sweep: Mapping[str, Iterable[Value]] | None,
    ) -> tuple[Graph, Sweep]:
        """The graph with the steps that a sweep reaches copied, and what became of each."""
        if not sweep:
            return self.graph(params, models, allow), Sweep(self.spec)
        values = values_of(self.spec, params or {}, sweep)
        first = {name: listed[0] for name, listed in values.items()}
        found = swept(self.graph({**(params or {}), **first}, models, allow), values)
        return bind(found.spec, known_nodes(), {**(params or {}), **found.given}, models, tuple(allow)), found

    def plan(
        self, params: Mapping[str, Value] | None = None, *, sweep: Mapping[str, Iterable[Value]] | None = None,
        models: Models | None = None, store: str | Path = DEFAULT_STORE, allow: Sequence[Path] = (),
        only: Sequence[str] = (), force: Sequence[str] = (),
    ) -> list[PlannedStep]:
        """What a run would do, and why, without doing it."""
        graph, swept = self._swept(params, models, allow, sweep)
        wanted, again = (_known(graph, swept.named(names)) for names in (only, force))
        kept = open_store(store)
        return make_plan(Planner(_without_results(graph, DEFAULT_OUT, kept), kept, again), graph.needed(wanted))

    def run(
        self, params: Mapping[str, Value] | None = None, *, sweep: Mapping[str, Iterable[Value]] | None = None,
        models: Models | None = None,
        store: str | Path = DEFAULT_STORE, out: str | Path = DEFAULT_OUT, allow: Sequence[Path] = (),
        only: Sequence[str] = (), force: Sequence[str] = (), max_failures: int | None = None, metadata: bool = True,
        watcher: Watcher | None = None, say: Callable[[str], None] | None = None,
        window: int | None = None, batch: int | None = None, on: str | None = None, apart_from: frozenset[Path] = frozenset(),
    ) -> RunResult:
        """Run as a Prefect flow, on the server that is configured or a local one.

        With `sweep`, such as `{"seed": [1, 2, 3]}`, every combination of its values runs, and the pictures of each output
        come on a labelled grid too. A step that a swept param reaches is copied: `edited__seed_1`, `edited__seed_2`.
        `on` says where steps that have a model are made: `here`, on a `worker`, or on a worker if there is one. Files of
        `apart_from`, by their real paths, count as not there.

        Raises:
            PipelineError: the pipeline is wrong, and nothing ran.
            UserError: the store, the folder for the outputs, the server or the workers cannot be used.
        """
        execution, swept = self._execution(
            params, sweep, models, store, allow, only, force, max_failures, watcher, window, batch, on, out, apart_from
        )
        began = time.perf_counter()

        from flows.flow_run import as_flow
        from flows.server import connected

        with connected(say):

            def body() -> State[dict[str, Any]]:
                execution.clock.add("Prefect (start)", time.perf_counter() - began)
                shown = {"pipeline": self.spec.file or self.spec.name, "params": {**(params or {}), **swept.values}}
                return _in_flow(execution, swept, Path(out), metadata, shown)

            found: dict[str, Any] = as_flow(self.spec.name, body)()
        return RunResult(found["status"], found, Path(found["report"]), _values(execution))

    def _execution(
        self, params: Mapping[str, Value] | None, sweep: Mapping[str, Iterable[Value]] | None = None,
        models: Models | None = None, store: str | Path = DEFAULT_STORE, allow: Sequence[Path] = (),
        only: Sequence[str] = (), force: Sequence[str] = (), max_failures: int | None = None, watcher: Watcher | None = None,
        window: int | None = None, batch: int | None = None, on: str | None = None, out: str | Path = DEFAULT_OUT,
        apart_from: frozenset[Path] = frozenset(),
    ) -> tuple[Execution, Sweep]:
        for option, number in (("window", window), ("batch", batch)):
            if number is not None and not (isinstance(number, int) and number > 0):
                raise UserError(f"{option}: expected None or a number from 1 on, got {shown(number)}")
        graph, swept = self._swept(params, models, allow, sweep)
        wanted, again = (_known(graph, swept.named(names)) for names in (only, force))
        kept = open_store(store)
        execution = Execution(
            _without_results(graph, out, kept, apart_from), kept, only=wanted, force=again,
            max_failures=max_failures, watcher=watcher, window=window, batch=batch, caller=caller_on(on),
        )
        _ = execution.planner.identities  # absent models are said before a server or a flow is started
        execution.prepare()
        return execution, swept

    def run_in_flow(
        self, params: Mapping[str, Value], *, models: Models | None, store: str, out: str, allow: Sequence[Path],
        max_failures: int | None,
    ) -> State[dict[str, Any]]:
        """Run inside the current flow, and give the state to end it in, which holds the summary."""
        execution, swept = self._execution(params, models=models, store=store, out=out, allow=allow, max_failures=max_failures)
        return _in_flow(execution, swept, Path(out), metadata=True)

    def flow(self, *, out: str | Path = DEFAULT_OUT, metadata: bool = True, **options: Any) -> Flow[..., Any]:
        """A Prefect flow of this pipeline whose parameters are the pipeline's params: to call in other flows, or to serve
        on a schedule. `options` are those of `run` but `say`; the flow gives the run's summary. From then on this process
        records its flows where `run` does: on the server that is configured, or a local one.

        Raises:
            ServerError: no Prefect server answers.
        """
        from flows.flow_run import as_flow
        from flows.server import join

        join()

        def body(**params: Any) -> State[dict[str, Any]]:
            return _in_flow(*self._execution(params, out=out, **options), Path(out), metadata)

        shown = {name: param for name, param in self.spec.params.items() if name not in (options.get("sweep") or ())}
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=param.default, annotation=annotation(param))
            for name, param in shown.items()
        ]
        helps = "".join(f"\n    {name}: {param.help}" for name, param in shown.items() if param.help)
        body.__doc__ = (self.spec.description or self.spec.name) + (f"\n\nArgs:{helps}" if helps else "")
        body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        body.__annotations__ = {p.name: p.annotation for p in parameters}
        return as_flow(self.spec.name, body)  # type: ignore[no-any-return]


def _in_flow(
    execution: Execution, swept: Sweep, out: Path, metadata: bool, shown: dict[str, Any] | None = None
) -> State[dict[str, Any]]:
    """Run a graph inside the current flow, leave its files and its report, and give the state that holds the summary. `shown`
    are the parameters that the run's page tells, where the flow has none of its own."""
    from flows.flow_run import end_run, name_run, run_graph

    started = time.monotonic()
    graph, run = execution.graph, new_run_folder(out, execution.graph.name)
    name_run(run.name, graph.name, shown)
    writer = Writer(graph, run, metadata, execution, sorted(execution.asked))
    execution.finished = writer
    try:
        result = run_graph(execution)
    except BaseException as error:
        execution.result.stopped = str(error) if isinstance(error, UserError) else "interrupted"
        with suppress(OSError):
            leave(execution, run, writer.written(), started)
        raise
    grids = write_grids(swept, graph, run, execution.values, result.failures)
    found = leave(execution, run, writer.written(), started, grids)
    return end_run(found, markdown(graph, found))


def _known(graph: Graph, names: Sequence[str]) -> frozenset[str]:
    """The names of steps.

    Raises:
        PipelineError: one is no step's.
    """
    if wrong := [name for name in names if name not in graph.steps]:
        raise PipelineError([Problem(f'unknown step "{wrong[0]}"{nearest(wrong[0], graph.steps)}')])
    return frozenset(names)


def _without_results(graph: Graph, out: str | Path, store: Store, also: frozenset[Path] = frozenset()) -> Graph:
    """The graph whose sources leave out the folders that runs write into: what they made is not what they are to work on."""
    written = (Path(os.path.realpath(each)) for each in (out, Path(out) / graph.name, store.folder))
    return replace(graph, apart_from=frozenset(written) | also)


def _values(execution: Execution) -> dict[str, Callable[[], list[Artifact]]]:
    def reader(step: str, output: str) -> Callable[[], list[Artifact]]:
        return lambda: [value for _, _, value in execution.values(step, output)]

    found = {}
    for name in execution.result.steps:
        outputs = list(execution.graph.steps[name].node.outputs)
        for output in outputs:
            found[name if len(outputs) == 1 else f"{name}.{output}"] = reader(name, output)
    return found


def _collect(step: Step, found: dict[str, Step]) -> None:
    """All steps that a step rests on, and then itself."""
    path = [step]
    while path:
        last = path[-1]
        if found.get(last.name, last) is not last:
            raise UserError(f'two steps are named "{last.name}"')
        missing = (wire.step for wire in last.wires.values() if found.get(wire.step.name) is not wire.step)
        if above := next(missing, None):
            path.append(above)
        else:
            found[last.name] = path.pop()


def _wire(output: Output) -> str:
    return output.step.name if len(output.step.node.outputs) == 1 else f"{output.step.name}.{output.port}"


def _keys(step: Step) -> dict[str, Value]:
    wires = {port: _wire(output) for port, output in step.wires.items()}
    values: dict[str, Value] = json.loads(step.node.model_dump_json(exclude_unset=True))
    for name in values:
        if isinstance(getattr(step.node, name), Model):
            options = {key: value for key, value in values[name].items() if key != "role"}
            values[name] = options["source"] if set(options) == {"source"} else options
    return wires | values


__all__ = ["Param", "Pipeline", "RunResult", "known_nodes"]
