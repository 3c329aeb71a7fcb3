"""Spec → graph: names, params, ports, types, lists and cycles are checked, and all that is wrong is said at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from flows import sources
from flows.graph import Bound, Graph, Lineage, Wire, order
from flows.reading import Value
from flows.spec import REFERENCE, SIGNS, Models, Spec, StepSpec, shown
from nodes.artifacts import Artifact, Score, Text
from nodes.base import ID, Model, Node, Port, Sink, Source, outputs_of, with_model_sources
from nodes.errors import ModelError, PipelineError, Problem, nearest
from nodes.models import SETS, filled

HINTED_NAMES = 200_000
"""Names compared in search of the nearest one for all of a pipeline's problems; after that they come without a hint."""


@dataclass
class _Draft:
    """A step on its way: its class is known, its keys are sorted into wires and params."""

    spec: StepSpec
    cls: type[Node]
    wires: dict[str, Wire] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    trusted: set[str] = field(default_factory=set)

    def key_of(self, wire: str) -> str:
        """The key in the file that a wire comes from: its port, or the param whose text it stands in."""
        return wire if wire in self.cls.ports else next(key for key, text in self.texts.items() if wire in text)


class _Binder:
    def __init__(
        self, spec: Spec, classes: Mapping[str, type[Node]], given: Mapping[str, Value], models: Models | None
    ) -> None:
        self.spec, self.classes, self.given = spec, classes, given
        self.problems: list[Problem] = []
        self.compared = 0
        self.givers: dict[type[Artifact], list[tuple[str, str]]] = {}
        self.values = {name: param.default for name, param in spec.params.items()}
        self.models = self._models(models)

    def fault(self, message: str, *path: str | int) -> None:
        self.problems.append(self.spec.problem(message, *path))

    def nearest(self, name: str, known: Collection[str]) -> str:
        """The nearest name known, as long as the time for it is linear in the size of the pipeline."""
        self.compared += len(known)
        return nearest(name, known) if self.compared <= HINTED_NAMES else ""

    def giving(self, kind: type[Artifact], but: str) -> list[str]:
        """Up to three wires that carry a type, from other steps than `but`."""
        if kind not in self.givers:
            self.givers[kind] = [
                (name, str(Wire(name, output.name))) for name, step in self.spec.steps.items() if step.node in self.classes
                for output in self.classes[step.node].outputs.values() if issubclass(output.type, kind)
            ]
        return list(islice((wire for name, wire in self.givers[kind] if name != but), 3))

    # --- what the caller gives ---

    def take_given(self) -> None:
        for name, value in self.given.items():
            if name not in self.spec.params:
                self.problems.append(Problem(f'unknown param "{name}"{self.nearest(name, self.spec.params)}'))
                continue
            param = self.spec.params[name]
            if message := param.fault(value):
                self.problems.append(Problem(f'param "{name}": {message}'))
            else:
                self.values[name] = value

    def _models(self, models: Models | None) -> Mapping[str, str | Mapping[str, Value]]:
        self.chosen = chosen = self.spec.models if models is None else models
        if not isinstance(chosen, str):
            return {role: self._model(role, model) for role, model in chosen.items()}
        if chosen not in SETS:
            message = f'unknown model set "{chosen}"{self.nearest(chosen, SETS)}'
            self.problems.append(Problem(message) if models is not None else self.spec.problem(message, "models"))
        return SETS.get(chosen, SETS["toybox"])

    def _model(self, role: str, model: str | Mapping[str, Value]) -> str | Mapping[str, Value]:
        try:
            filled(Model(role=role), {role: model})
        except ModelError as error:
            self.fault(str(error), "models", role)
            return ""
        return model

    # --- one step ---

    def draft(self, name: str, step: StepSpec) -> _Draft | None:
        where = ("steps", name)
        cls = self.classes.get(step.node)
        if cls is None:
            self.fault(f'step "{name}": unknown node "{step.node}"{self.nearest(step.node, self.classes)}', *where, "node")
            return None
        draft = _Draft(step, cls)
        for key, value in step.keys.items():
            if key in cls.ports:
                self._wire(name, draft, key, value)
            elif key in cls.model_fields:
                draft.values[key] = self._value(name, draft, key, value)
            else:
                known = self.nearest(key, [*cls.ports, *cls.model_fields])
                self.fault(f'step "{name}": {step.node} has no param or port "{key}"{known}', *where, key)
        return draft

    def _wire(self, name: str, draft: _Draft, port: str, value: Value) -> None:
        if not isinstance(value, str):
            self.fault(f'step "{name}": port "{port}": expected a step\'s name, got {shown(value)}', "steps", name, port)
        elif wire := self._source(name, port, value, port):
            draft.wires[port] = wire

    def _source(self, name: str, key: str, value: str, port: str) -> Wire | None:
        """The wire that `value` names, or None after saying why there is none."""
        step, _, output = value.partition(".")
        where = ("steps", name, key)
        if step not in self.spec.steps:
            self.fault(f'step "{name}": port "{port}": unknown step "{step}"{self.nearest(step, self.spec.steps)}', *where)
            return None
        cls = self.classes.get(self.spec.steps[step].node)
        if cls is None:
            return None
        if not output and len(cls.outputs) > 1:
            self.fault(f'step "{name}": port "{port}": "{step}" has several outputs; name one: {outputs_of(step, cls)}', *where)
            return None
        output = output or next(iter(cls.outputs))
        if output not in cls.outputs:
            known = self.nearest(output, cls.outputs)
            self.fault(f'step "{name}": port "{port}": "{step}" has no output "{output}"{known}', *where)
            return None
        return Wire(step, output)

    def _value(self, name: str, draft: _Draft, key: str, value: Value, *deeper: str | int) -> Value:
        """`value` with the pipeline's params put in; a step's Text or Score becomes a wire and stays as a template."""
        if isinstance(value, list):
            return [self._value(name, draft, key, item, *deeper, index) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {k: self._value(name, draft, key, item, *deeper, k) for k, item in value.items()}
        if not isinstance(value, str):
            return value
        for reference in REFERENCE.findall(value):
            step = reference.partition(".")[0]
            if reference in self.values:
                if reference in self.given:
                    draft.trusted.add(key)
            elif step in self.spec.steps and not deeper:
                if wire := self._source(name, key, reference, f"${{{reference}}}"):
                    draft.wires[f"${{{reference}}}"] = wire
                    draft.texts[key] = ""
            else:
                known = self.nearest(reference, [*self.values, *self.spec.steps])
                self.fault(f'step "{name}": {key}: unknown ${{{reference}}}{known}', "steps", name, key, *deeper)
                return value
        if (whole := REFERENCE.fullmatch(value)) and whole[1] in self.values:
            return self.values[whole[1]]
        text = REFERENCE.sub(lambda m: _inside(self.values[m[1]]) if m[1] in self.values else m[0], value)
        if key in draft.texts:
            draft.texts[key] = text
        return text

    def build(self, name: str, draft: _Draft) -> Node | None:
        """The step's node with its params validated, its model found in the set, its paths confined."""
        for port in draft.cls.ports.values():
            if port.name not in draft.spec.keys and not port.optional:
                self._missing(name, draft.cls, port)
        if issubclass(draft.cls, Source):
            self._source_params(name, draft)
        if issubclass(draft.cls, Sink) and isinstance(wanted := draft.values.get("name"), str):
            for word in [place for place in sources.places_in(wanted) if place != "id"] + sources.mistyped(wanted):
                self.fault(f'step "{name}": name: unknown {{{word}}}; known: {ID}', "steps", name, "name")
        self._known_before(name, draft, draft.cls.counted, " and ".join(draft.cls.counted))
        values = {key: _for_field(draft.cls, key, value) for key, value in draft.values.items()}
        # A number that a step gives comes when the pipeline runs, and is validated then.
        later = {key for key in draft.texts if draft.cls.model_fields[key].annotation is not str}
        now = {key: value for key, value in values.items() if key not in later}
        try:
            node = draft.cls.model_validate(now)
        except ValidationError as error:
            faults = [fault for fault in error.errors() if not later.intersection(fault["loc"][:1])]
            for fault in faults:
                self._param_fault(name, draft, fault)
            if faults:
                return None
            node = draft.cls.model_construct(**with_model_sources(draft.cls, now), **dict.fromkeys(later))
        update = {}
        for key in draft.cls.model_fields:
            if isinstance(model := getattr(node, key), Model):
                try:
                    update[key] = filled(model, self.models)
                except ModelError as error:
                    self.fault(f'step "{name}": {error}', "steps", name, key)
        return node.model_copy(update=update)

    def _source_params(self, name: str, draft: _Draft) -> None:
        """A source's files are known before anything runs, and a template's words are known ones."""
        self._known_before(name, draft, draft.texts, "a source's params")
        path, ports = draft.values.get("path"), draft.cls.ports
        if not isinstance(path, str) or not ports:
            return
        wrong = [f"unknown {{{word}}}{self.nearest(word, sources.PLACES)}" for word in sources.mistyped(path)]
        if not ports.keys() & draft.spec.keys.keys():
            wrong = [f"{{{place}}} is that of a picture, and none is wired{self._such_as(next(iter(ports)))}"
                     for place in sources.places_in(path)[:1]]
        for message in wrong:
            self.fault(f'step "{name}": path: {message}', "steps", name, "path")

    def _known_before(self, name: str, draft: _Draft, keys: Collection[str], what: str) -> None:
        """Check that no step gives these params."""
        for key in (key for key in draft.texts if key in keys):
            given = ", ".join(f"${{{found}}}" for found in REFERENCE.findall(draft.texts[key]))
            self.fault(f'step "{name}": {key}: {given} comes of a step, and {what} must be known before anything runs',
                       "steps", name, key)

    def _missing(self, name: str, cls: type[Node], port: Port) -> None:
        fitting = [f"{port.name}: {wire}" for wire in self.giving(port.type, name)]
        write = f"; write {' or '.join(fitting)}" if fitting else f"; no step gives {port.type.__name__}"
        self.fault(f'step "{name}": {cls.__name__} needs its port "{port.name}" ({port}){write}', "steps", name)

    def _param_fault(self, name: str, draft: _Draft, fault: Any) -> None:
        message = fault["msg"].replace("Input should be", "expected").removeprefix("Value error, ")
        if not fault["loc"]:  # of the params together
            self.fault(f'step "{name}": {message}', "steps", name)
            return
        key, *deeper = fault["loc"]
        if fault["type"] == "missing":
            self.fault(f'step "{name}": {draft.cls.__name__} needs its param "{key}"', "steps", name)
            return
        for bound, sign in SIGNS.items():
            if bound in fault.get("ctx", {}):
                message = f"expected a value {sign} {fault['ctx'][bound]:g}"
        place = "".join(f"[{part}]" for part in deeper if isinstance(part, int))
        self.fault(f'step "{name}": {key}{place}: {message}, got {shown(_plain(fault["input"]))}', "steps", name, key, *deeper)

    # --- the graph ---

    def graph(self) -> Graph:
        self.take_given()
        drafts = {n: d for n, s in self.spec.steps.items() if (d := self.draft(n, s))}
        nodes = {n: node for n, d in drafts.items() if (node := self.build(n, d))}
        edges = {n: [w.step for w in d.wires.values() if w.step in drafts] for n, d in drafts.items()}
        names, cycle = order(edges)
        if cycle:
            after = drafts[cycle[1]]
            port = next(p for p, wire in after.wires.items() if wire.step == cycle[0])
            self.fault(f"the steps form a cycle: {' → '.join(cycle)}", "steps", cycle[1], port)
        steps: dict[str, Bound] = {}
        gives: dict[str, Lineage] = {}
        for name in names:
            lineage = self.lineage(name, drafts[name], drafts, gives)
            if lineage is None:
                continue
            cls = drafts[name].cls
            opens = issubclass(cls, Source) and not drafts[name].wires
            many = opens or any(port.many for port in cls.outputs.values())
            gives[name] = (*lineage, name) if many else lineage
            if name in nodes:
                draft = drafts[name]
                steps[name] = Bound(name, nodes[name], draft.wires, lineage, gives[name], draft.texts,
                                    frozenset(draft.trusted))
        outputs = self.outputs()
        if self.problems:
            raise PipelineError(self.problems)
        params = {name: replace(param, default=self.values[name]) for name, param in self.spec.params.items()}
        return Graph(self.spec, steps, outputs, self.models, replace(self.spec, params=params, models=self.chosen))

    def lineage(
        self, name: str, draft: _Draft, drafts: Mapping[str, _Draft], gives: Mapping[str, Lineage]
    ) -> Lineage | None:
        """The lists that a step runs over, after checking the type and the depth of each of its wires."""
        if any(wire.step not in gives for wire in draft.wires.values()):
            return None
        before = len(self.problems)
        longest: Lineage = ()
        longest_port = ""
        for key, wire in draft.wires.items():
            self._carries(name, draft, key, drafts)
            lineage, words = gives[wire.step], _as_path(gives[wire.step])
            if (port := draft.cls.ports.get(key)) and port.many:
                if not lineage:
                    found = drafts[wire.step].cls.outputs[wire.output].type.__name__
                    self.fault(f'step "{name}": port "{key}" takes a list ({port}), and "{wire}" gives a single {found}',
                               "steps", name, key)
                lineage = lineage[:-1]
                words = f"{words} is a list for each {_as_path(lineage)}" if lineage else words
            if lineage[: len(longest)] == longest:
                longest, longest_port = lineage, key
            elif longest[: len(lineage)] != lineage:
                self.fault(f'step "{name}": "{key}" comes from a different list than "{longest_port}": {words}, '
                           f"not {_as_path(longest)}", "steps", name, draft.key_of(key))
        if len(self.problems) == before:
            self._aligned(name, draft, gives)
            self._rests_on_files(name, draft, drafts, longest, longest_port)
        return longest if len(self.problems) == before else None

    def _carries(self, name: str, draft: _Draft, key: str, drafts: Mapping[str, _Draft]) -> None:
        """Check the type of what a wire carries to a port or into a text."""
        wire = draft.wires[key]
        found = drafts[wire.step].cls.outputs[wire.output].type
        port = draft.cls.ports.get(key)
        if port is None:
            if not issubclass(found, Text | Score):
                param = draft.key_of(key)
                self.fault(f'step "{name}": {param}: {key} must give Text or Score, and gives {found.__name__}',
                           "steps", name, param)
        elif not issubclass(found, port.type):
            fitting = self.giving(port.type, name)
            hint = f"; {port.type.__name__} comes from: {', '.join(fitting)}" if fitting else ""
            self.fault(f'step "{name}": port "{key}" of {draft.cls.__name__} takes {port.type.__name__}, '
                       f'and "{wire}" gives {found.__name__}{hint}', "steps", name, key)

    def _aligned(self, name: str, draft: _Draft, gives: Mapping[str, Lineage]) -> None:
        """Check that the lists of a node that goes through them side by side are one list."""
        many = [key for key in draft.wires if draft.cls.aligned and key in draft.cls.ports and draft.cls.ports[key].many]
        for key in many[1:]:
            lineage, first = (gives[draft.wires[each].step] for each in (key, many[0]))
            if lineage != first:
                self.fault(f'step "{name}": "{key}" must be of the same list as "{many[0]}": {_as_path(lineage)}, '
                           f"not {_as_path(first)}", "steps", name, key)

    def _rests_on_files(
        self, name: str, draft: _Draft, drafts: Mapping[str, _Draft], lineage: Lineage, port: str
    ) -> None:
        """Check that a source that reads what lies beside others' files has such files."""
        if issubclass(draft.cls, Source) and port and not (lineage and issubclass(drafts[lineage[0]].cls, Source)):
            self.fault(f'step "{name}": "{port}" must rest on files, and "{draft.wires[port]}" rests on none'
                       f"{self._such_as(port)}", "steps", name, port)

    def _such_as(self, port: str) -> str:
        """`; write like: photo`."""
        return f"; write {port}: {self.files}" if self.files else ""

    @cached_property
    def files(self) -> str:
        """The first step that has a list of files of its own, or nothing."""
        known = ((name, step, self.classes.get(step.node)) for name, step in self.spec.steps.items())
        return next((name for name, step, cls in known
                     if cls and issubclass(cls, Source) and not cls.ports.keys() & step.keys.keys()), "")

    def outputs(self) -> tuple[Wire, ...]:
        found = []
        for index, value in enumerate(self.spec.outputs):
            step, _, output = value.partition(".")
            if step not in self.spec.steps:
                self.fault(f'outputs: unknown step "{step}"{self.nearest(step, self.spec.steps)}', "outputs", index)
            elif cls := self.classes.get(self.spec.steps[step].node):
                if output and output not in cls.outputs:
                    known = self.nearest(output, cls.outputs)
                    self.fault(f'outputs: "{step}" has no output "{output}"{known}', "outputs", index)
                else:
                    found += [Wire(step, name) for name in ([output] if output else cls.outputs)]
        return tuple(found)


def _inside(value: Value) -> str:
    """A param's value inside a text: as YAML would write it."""
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def _as_path(lineage: Lineage) -> str:
    return " / ".join(lineage)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _for_field(cls: type[Node], key: str, value: Value) -> Value:
    """Lists as the tuples that frozen params hold, unless the field asks for a list."""
    return value if get_origin(cls.model_fields[key].annotation) is list else _tuples(value)


def _tuples(value: Value) -> Value:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def bind(
    spec: Spec,
    classes: Mapping[str, type[Node]],
    values: Mapping[str, Value] | None = None,
    models: Models | None = None,
    allow: tuple[Path, ...] = (),
) -> Graph:
    """Check a pipeline and bind it: `values` for its params, `models` in place of its own set.

    What the file itself names must lie under the file's folder, the working directory or `allow`; what `values` name
    may lie anywhere.

    Raises:
        PipelineError: with all problems found.
    """
    binder = _Binder(spec, classes, values or {}, models)
    graph = binder.graph()
    if not spec.file:
        return graph
    roots = tuple(Path(os.path.realpath(p)) for p in (Path(spec.file).parent, Path.cwd(), *allow))
    return replace(graph, roots=roots)
