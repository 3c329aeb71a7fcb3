"""Sweeps: a checked pipeline → the same pipeline with the steps that swept params reach copied for each combination.

Steps that none reaches stay single, so that what combinations share runs once. What comes out is bound, planned and run
like any other pipeline. Knows no node classes and nothing of Prefect.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flows.graph import Bound, Graph
from flows.reading import Path_, Value
from flows.spec import REFERENCE, Spec, StepSpec, shown
from nodes.errors import PipelineError, Problem, nearest

MAX_COMBINATIONS = 10_000
_NAME_LENGTH = 100
_VALUE_LENGTH = 32

Point = tuple[int, ...]
"""One combination: for each of some swept params, the position of its value."""


@dataclass(frozen=True)
class Sweep:
    """What became of a pipeline.

    `values` are those of each swept param, in the order given; `reach` says for each step which of these params reach
    it, in that order; `copies` are its copies' names by their point in `reach`, for a step that none reaches its own.
    `given` are the values of the params that the copies use, as the caller gave them.
    """

    spec: Spec
    values: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    given: Mapping[str, Value] = field(default_factory=dict)
    reach: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    copies: Mapping[str, Mapping[Point, str]] = field(default_factory=dict)

    def named(self, steps: Iterable[str]) -> list[str]:
        """The steps of the swept pipeline that stand for `steps` of the one written."""
        return [copy for step in steps for copy in self.copies.get(step, {(): step}).values()]


def values_of(spec: Spec, given: Mapping[str, Value], sweep: Mapping[str, Iterable[Value]]) -> dict[str, list[Value]]:
    """The values to sweep over, each right for its param.

    Raises:
        PipelineError: with all that is wrong with them.
    """
    found: dict[str, list[Value]] = {}
    problems = []
    for name, values in sweep.items():
        if name not in spec.params:
            problems.append(f'unknown param "{name}"{nearest(name, spec.params)}')
        elif isinstance(values, str) or not isinstance(values, Iterable):
            problems.append(f'param "{name}": a sweep takes a list of values, got {shown(values)}')
        else:
            found[name] = [_plain(value) for value in values]
            problems += [f'param "{name}": {fault}' for fault in _faults(spec, given, name, found[name])]
    if not problems and (count := math.prod(map(len, found.values()))) > MAX_COMBINATIONS:
        problems.append(f"a sweep of {count} combinations; expected at most {MAX_COMBINATIONS}")
    if problems:
        raise PipelineError(map(Problem, problems))
    return found


def _faults(spec: Spec, given: Mapping[str, Value], name: str, values: Sequence[Value]) -> Iterator[str]:
    if not values:
        yield "a sweep takes at least one value, got none"
    if name in given:
        yield f"it is set to {shown(given[name])} and swept; do one of the two"
    if not any(name in _references(step.keys) for step in spec.steps.values()):
        yield f"no step uses ${{{name}}}, so nothing would differ"
    for index, value in enumerate(values):
        if fault := spec.params[name].fault(value):
            yield fault
        elif value in values[:index] and value not in values[index + 1 :]:
            yield f"the value {shown(value)} stands in the sweep twice"


def _plain(value: Value) -> Value:
    """A number of NumPy's as Python's own, which can be written down."""
    return value.item() if callable(getattr(value, "item", None)) else value


def swept(graph: Graph, values: Mapping[str, Sequence[Value]]) -> Sweep:
    """The pipeline that runs every combination of `values`, from the graph of the one written."""
    spec = graph.spec
    taken = {*spec.params, *spec.steps}
    params = {
        name: [_fresh(f"{name}_{_letters(value) or number}", taken) for number, value in enumerate(listed, 1)]
        for name, listed in values.items()
    }
    reach = _reach(graph, list(values))
    copies = {
        name: {point: _fresh("__".join([name, *_at(point, reached, params)]), taken) if point else name
               for point in itertools.product(*(range(len(values[each])) for each in reached))}
        for name, reached in reach.items()
    }

    def copy(step: Bound, point: Point) -> StepSpec:
        reached = reach[step.name]
        names = dict(zip(reached, _at(point, reached, params), strict=True))
        for above in {wire.step for wire in step.wires.values()}:
            names[above] = copies[above][tuple(point[reached.index(each)] for each in reach[above])]
        return _copied(step, spec.steps[step.name], names)

    given = {params[name][index]: value for name, listed in values.items() for index, value in enumerate(listed)}
    outputs = [(output, copied) for output in spec.outputs for copied in copies[output.partition(".")[0]].values()]
    found = replace(
        spec,
        params={name: param for name, param in spec.params.items() if name not in values} | {
            made: replace(spec.params[name], default=given[made]) for name in values for made in params[name]
        },
        steps={copied: copy(step, point) for step in graph for point, copied in copies[step.name].items()},
        outputs=tuple(_moved(output, {output.partition(".")[0]: copied}) for output, copied in outputs),
        positions=_positions(spec, copies),
    )
    return Sweep(found, values, given, reach, copies)


def _reach(graph: Graph, params: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each step the swept params that it, or a step that it rests on, uses."""
    found: dict[str, tuple[str, ...]] = {}
    for step in graph:
        used = _references(graph.spec.steps[step.name].keys).union(*(found[wire.step] for wire in step.wires.values()))
        found[step.name] = tuple(name for name in params if name in used)
    return found


def _at(point: Point, reached: Sequence[str], params: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of the params that stand for the swept ones at a point."""
    return [params[name][index] for name, index in zip(reached, point, strict=True)]


def _positions(spec: Spec, copies: Mapping[str, Mapping[Point, str]]) -> dict[Path_, tuple[int, int]]:
    """Where each thing stands in the file; a copy's keys stand where those of its step do."""
    found = dict(spec.positions)
    for path, position in spec.positions.items():
        if path[0:1] == ("steps",) and len(path) > 1:
            found |= {("steps", copy, *path[2:]): position for copy in copies[str(path[1])].values()}
    return found


def _copied(step: Bound, written: StepSpec, names: Mapping[str, str]) -> StepSpec:
    """A step with the params and steps that it names called by their new names."""
    return StepSpec(written.node, {
        key: _moved(value, names) if key in step.wires else _renamed(value, names) for key, value in written.keys.items()
    })


def _moved(name: str, names: Mapping[str, str]) -> str:
    """`step` or `step.output` under the step's new name."""
    step, dot, output = name.partition(".")
    return f"{names.get(step, step)}{dot}{output}"


def _renamed(value: Value, names: Mapping[str, str]) -> Value:
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    return REFERENCE.sub(lambda match: f"${{{_moved(match[1], names)}}}", value)


def _references(value: Value) -> set[str]:
    """The names inside `${…}` in a value, however deep."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*map(_references, value))
    return set(REFERENCE.findall(value)) if isinstance(value, str) else set()


def _letters(value: Value) -> str:
    """A value in the letters that a step's name may have: `0.5` as `0_5`, `-1` as `minus_1`, `a red frog` as `a_red_frog`."""
    text = re.sub(r"^-(?=[\d.])", "minus_", text_of(value))
    return re.sub(r"[^A-Za-z0-9]+", "_", text)[:_VALUE_LENGTH].strip("_")


def text_of(value: Value) -> str:
    """A value as people read it: `3` for 3.0, `true`, `null`, `a, b` for a list, `""`, other texts as they are."""
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _fresh(name: str, taken: set[str]) -> str:
    """The name, or with a number where it is taken; then it is."""
    name = name[:_NAME_LENGTH]
    found = next(each for each in itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2))) if each not in taken)
    taken.add(found)
    return found
