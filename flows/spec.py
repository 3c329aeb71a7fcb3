"""A pipeline as written: its params and steps, read from YAML and written to it. Knows no node classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flows.reading import PLAIN, Path_, Reader, Value, tree_of
from nodes.errors import PipelineError, Problem, nearest

MAX_BYTES = 4 * 2**20
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PIPELINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REFERENCE = re.compile(r"\$\{([^}]*)\}")

_TOP = ("name", "description", "models", "params", "steps", "outputs")
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_PARAM_KEYS = ("type", "default", "ge", "gt", "le", "lt", "choices", "help")
PARAM_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "str": str, "int": int, "float": (int, float), "bool": bool, "list": list,
}


Models = str | Mapping[str, str | Mapping[str, Value]]
"""A set's name, or for each role a model: its source, or a mapping of its source and options."""


@dataclass(frozen=True)
class Param:
    """One param of a pipeline: its default, and in the long form its type, bounds, choices and help."""

    default: Value
    type: str = ""
    bounds: Mapping[str, float] = field(default_factory=dict)
    choices: tuple[Value, ...] = ()
    help: str = ""

    @property
    def kind(self) -> str:
        """The type's name, taken from the default where none is given."""
        return self.type or next((name for name, t in PARAM_TYPES.items() if _is(self.default, t)), "any")

    def fault(self, value: Value) -> str:
        """What is wrong with `value` for this param, or nothing."""
        kind = self.kind
        if kind != "any" and not _is(value, PARAM_TYPES[kind]):
            return f"expected {kind}, got {type(value).__name__} {shown(value)}"
        for key, bound in self.bounds.items():
            if not {"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}[key]:
                return f"expected a value {SIGNS[key]} {bound}, got {shown(value)}"
        if self.choices and value not in self.choices:
            return f"expected one of {', '.join(map(shown, self.choices))}, got {shown(value)}"
        return ""


@dataclass(frozen=True)
class StepSpec:
    """One step as written: the node's name, and its keys with their values."""

    node: str
    keys: Mapping[str, Value]


@dataclass(frozen=True)
class Spec:
    """A pipeline as written. Two are equal when they say the same, wherever it stands."""

    name: str
    description: str = ""
    models: Models = "toybox"
    params: Mapping[str, Param] = field(default_factory=dict)
    steps: Mapping[str, StepSpec] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    file: str = field(default="", compare=False)
    positions: Mapping[Path_, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem at a place of the file: the deepest part of `path` that was written down."""
        while path and path not in self.positions:
            path = path[:-1]
        line, column = self.positions.get(path, (0, 0))
        return Problem(message, self.file if line else "", line, column)


def _is(value: Value, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def shown(value: Value) -> str:
    """A value as a message shows it: strings quoted, long ones cut."""
    text = f'"{value}"' if isinstance(value, str) else "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1]


# --- reading ---


def parse(text: str, file: str = "<text>") -> Spec:
    """Read a pipeline.

    Raises:
        PipelineError: with all that is wrong in the text, each with file, line and column.
    """
    try:
        tree, reader = tree_of(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise PipelineError([Problem(f"not YAML: {message}", file, line, column)]) from None
    except yaml.YAMLError as error:
        raise PipelineError([Problem(f"not YAML: {str(error).partition(chr(10))[0]}", file, 1, 1)]) from None
    if not isinstance(tree, dict):
        raise PipelineError(reader.problems or [Problem("a pipeline is a mapping with name, steps and outputs", file, 1, 1)])
    spec = _spec(tree, reader)
    if reader.problems:
        raise PipelineError(reader.problems)
    return spec


def value_of(text: str, param: Param) -> Value:
    """A value typed on a command line, for a param: text stays text, all else is read as YAML reads it."""
    if param.kind == "str":
        return text
    try:
        value, reader = tree_of(text, "")
    except (yaml.YAMLError, PipelineError):
        return text
    return text if reader.problems or not reader.positions else value


def read(path: Path) -> Spec:
    """Read a pipeline's file.

    Raises:
        PipelineError: it is not there, not text, or not a pipeline.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PipelineError([Problem(f"{path}: expected at most {MAX_BYTES} bytes, got {path.stat().st_size}")])
        return parse(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise PipelineError([Problem(f"{path}: {error.strerror or error}{_beside(path)}")]) from None
    except UnicodeDecodeError as error:
        raise PipelineError([Problem(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})")]) from None


def _beside(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.glob("*.y*ml")]
        return nearest(path.name, names) if names else ""
    except OSError:
        return ""


def _spec(tree: dict[str, Value], reader: Reader) -> Spec:
    draft = Spec("", file=reader.file, positions=reader.positions)

    def fault(message: str, *path: str | int) -> None:
        if path not in reader.faulty:
            reader.problems.append(draft.problem(message, *path))

    for key in tree:
        if key not in _TOP:
            fault(f'unknown key "{key}"{nearest(key, _TOP)}', key)
    for key in ("name", "steps"):
        if key not in tree:
            fault(f'the key "{key}" is missing')
    name, description, outputs = tree.get("name"), tree.get("description", ""), tree.get("outputs", [])
    if "name" in tree and not (isinstance(name, str) and PIPELINE_NAME.fullmatch(name)):
        fault(f"name: expected letters, digits, - and _, got {shown(name)}", "name")
    if not isinstance(description, str):
        fault(f"description: expected text, got {shown(description)}", "description")
    models = tree.get("models", "toybox")
    if not isinstance(models, str | dict):
        fault(f"models: expected a set's name or a mapping role: model, got {shown(models)}", "models")
        models = "toybox"
    for role, model in models.items() if isinstance(models, dict) else ():
        if not isinstance(model.get("source") if isinstance(model, dict) else model, str):
            expected = "expected a model, or a mapping with source: and options"
            fault(f"models: {role}: {expected}, got {shown(model)}", "models", role)
    if not (isinstance(outputs, list) and all(isinstance(o, str) for o in outputs)):
        fault(f"outputs: expected a list of steps, got {shown(outputs)}", "outputs")
        outputs = []
    raw_params, raw_steps = tree.get("params") or {}, tree.get("steps", {})
    if not isinstance(raw_params, dict):
        fault(f"params: expected a mapping, got {shown(raw_params)}", "params")
        raw_params = {}
    if "steps" in tree and not (isinstance(raw_steps, dict) and raw_steps):
        fault(f"steps: expected a mapping of at least one step, got {shown(raw_steps)}", "steps")
    raw_steps = raw_steps if isinstance(raw_steps, dict) else {}
    params = {}
    for key, value in raw_params.items():
        if not NAME.fullmatch(key):
            fault(f'param "{key}": a name is letters, digits and _', "params", key)
        elif param := _param(key, value, fault):
            params[key] = param
    steps = {}
    for key, value in raw_steps.items():
        if not NAME.fullmatch(key):
            fault(f'step "{key}": a name is letters, digits and _', "steps", key)
        elif key in raw_params:
            fault(f'step "{key}": a param has the same name; params and steps share one space of names', "steps", key)
        elif not isinstance(value, dict):
            fault(f'step "{key}": expected a mapping with node: and its keys, got {shown(value)}', "steps", key)
        elif not isinstance(value.get("node"), str):
            fault(f'step "{key}": the key "node" is missing' if "node" not in value else
                  f'step "{key}": node: expected a name, got {shown(value["node"])}', "steps", key, "node")
        else:
            steps[key] = StepSpec(value["node"], {k: v for k, v in value.items() if k != "node"})
    return Spec(str(name), str(description), models, params, steps, tuple(outputs), reader.file, reader.positions)


def _param(name: str, value: Value, fault: Any) -> Param | None:
    if not isinstance(value, dict):
        return Param(value)
    where, wrong = ("params", name), False
    for key in value:
        if key not in _PARAM_KEYS:
            fault(f'param "{name}": unknown key "{key}"{nearest(key, _PARAM_KEYS)}', *where, key)
            wrong = True
    if "default" not in value:
        fault(f'param "{name}": the key "default" is missing', *where)
        return None
    kind = value.get("type", "")
    if kind and (not isinstance(kind, str) or kind not in PARAM_TYPES):
        fault(f'param "{name}": unknown type {shown(kind)}{nearest(str(kind), PARAM_TYPES)}', *where, "type")
        return None
    bounds = {k: value[k] for k in SIGNS if k in value}
    for key, bound in bounds.items():
        if not _is(bound, (int, float)):
            fault(f'param "{name}": {key}: expected a number, got {shown(bound)}', *where, key)
            wrong = True
    choices = value.get("choices", [])
    if not isinstance(choices, list):
        fault(f'param "{name}": choices: expected a list, got {shown(choices)}', *where, "choices")
        wrong = True
    if wrong:
        return None
    param = Param(value["default"], kind, bounds, tuple(choices), str(value.get("help", "")))
    if bounds and param.kind not in ("int", "float"):
        fault(f'param "{name}": bounds need a number, and its type is {param.kind}', *where)
        return None
    if message := param.fault(param.default):
        fault(f'param "{name}": default: {message}', *where, "default")
        return None
    return param


# --- writing ---


def dump(spec: Spec) -> str:
    """The pipeline as YAML that reads back equal, one step a line."""
    models = spec.models if isinstance(spec.models, str) else dict(spec.models)
    lines = [f"name: {_yaml(spec.name)}"]
    lines += [f"description: {_yaml(spec.description)}"] if spec.description else []
    lines.append(f"models: {_yaml(models)}")
    lines += ["params:"] if spec.params else []
    lines += [f"  {name}: {_yaml(_param_value(param))}" for name, param in spec.params.items()]
    lines.append("steps:")
    lines += [f"  {name}: {_yaml({'node': step.node, **step.keys})}" for name, step in spec.steps.items()]
    lines += [f"outputs: {_yaml(list(spec.outputs))}"] if spec.outputs else []
    return "\n".join(lines) + "\n"


def _param_value(param: Param) -> Value:
    long: dict[str, Value] = {"type": param.type} if param.type else {}
    long |= {"default": param.default, **param.bounds}
    long |= {"choices": list(param.choices)} if param.choices else {}
    long |= {"help": param.help} if param.help else {}
    return param.default if long == {"default": param.default} and not isinstance(param.default, dict) else long


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes by our own rules, so that what is a string stays one."""

    yaml_implicit_resolvers = {
        first: [
            *((f"tag:yaml.org,2002:{kind}", pattern) for kind, pattern in PLAIN.get(first, ())),
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, ()),
        ]
        for first in {*PLAIN, *yaml.SafeDumper.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(value: Value) -> str:
    """A value on one line."""
    text: str = yaml.dump(
        [value], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20, default_flow_style=True
    )
    return text.strip()[1:-1]
