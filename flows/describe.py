"""Node classes as words for people, and as a JSON Schema for editors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Interval

from flows.spec import PARAM_TYPES, Param
from nodes.base import Model, Node, Port
from nodes.errors import UserError, nearest


def described(classes: Mapping[str, type[Node]], name: str | None) -> str:
    """One line for each class, or all about one.

    Raises:
        UserError: there is no such class.
    """
    if name is None:
        width = max(map(len, classes))
        return "".join(f"{n:<{width}}  {_first_line(c)}\n" for n, c in sorted(classes.items()))
    if name not in classes:
        raise UserError(f'unknown node "{name}"{nearest(name, classes)}')
    cls = classes[name]
    lines = [inspect.cleandoc(cls.__doc__ or name), "", "ports:"]
    lines += [f"  {p.name}: {p}{' (optional)' if p.optional else ''}" for p in cls.ports.values()] or ["  none"]
    lines += ["outputs:"] + [f"  {p.name}: {p}" for p in cls.outputs.values()] + ["params:"]
    for field, spec in cls.model_json_schema()["properties"].items():
        default = f" = {spec['default']!r}" if "default" in spec and not isinstance(spec["default"], dict) else ""
        bounds = "".join(
            f", {sign} {spec[key]}" for key, sign in
            (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")) if key in spec
        )
        lines.append(f"  {field}: {_kind(spec)}{default}{bounds}")
    return "\n".join(lines) + "\n"


def _first_line(cls: type[Node]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


def _kind(spec: Mapping[str, Any]) -> str:
    if "anyOf" in spec:
        return " or ".join(_kind(each) for each in spec["anyOf"])
    if "enum" in spec:
        return " | ".join(map(str, spec["enum"]))
    return "model" if "$ref" in spec else str(spec.get("type", "any")).replace("null", "nothing")


_REFERENCE = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_.]*\}"}


def json_schema(classes: Mapping[str, type[Node]]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a pipeline's YAML."""
    step_kinds = {name: _step(cls) for name, cls in sorted(classes.items())}
    number = {"type": "number"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Photoloom pipeline",
        "type": "object",
        "required": ["name", "steps"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "description": {"type": "string"},
            "models": {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": _model()}]},
            "params": {"type": "object", "additionalProperties": {"anyOf": [
                {"type": ["string", "number", "boolean", "array", "null"]},
                {"type": "object", "required": ["default"], "additionalProperties": False, "properties": {
                    "type": {"enum": list(PARAM_TYPES)}, "default": {}, "ge": number, "gt": number, "le": number,
                    "lt": number, "choices": {"type": "array"}, "help": {"type": "string"},
                }},
            ]}},
            "steps": {"type": "object", "minProperties": 1, "additionalProperties": {
                "type": "object", "required": ["node"], "properties": {"node": {"enum": list(step_kinds)}},
                "allOf": [
                    {"if": {"properties": {"node": {"const": name}}}, "then": kind} for name, kind in step_kinds.items()
                ],
            }},
            "outputs": {"type": "array", "items": {"type": "string"}},
        },
    }


def _model() -> dict[str, Any]:
    found = {name: spec for name, spec in Model.model_json_schema()["properties"].items() if name != "role"}
    options = {"type": "object", "required": ["source"], "additionalProperties": False, "properties": found}
    words = "A hub id, id@revision or a folder; with options, a mapping."
    return {"anyOf": [{"type": "string"}, options], "description": words}


def _step(cls: type[Node]) -> dict[str, Any]:
    schema = cls.model_json_schema()
    properties: dict[str, Any] = {"node": {"const": cls.__name__}}
    properties |= {name: _port(port) for name, port in cls.ports.items()}
    for name, field in cls.model_fields.items():
        if isinstance(field.default, Model):
            properties[name] = _model()
        else:
            found = dict(schema["properties"][name])
            properties[name] = {"anyOf": [found, _REFERENCE]}
    required = [p.name for p in cls.ports.values() if not p.optional]
    required += [name for name in schema.get("required", []) if name not in required]
    return {"properties": properties, "required": ["node", *required], "additionalProperties": False}


def _port(port: Port) -> dict[str, Any]:
    return {"type": "string", "description": f"a step that gives {port}"}


_JSON_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array"}
_JSON_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def params_schema(params: Mapping[str, Param]) -> dict[str, Any]:
    """The JSON Schema of a pipeline's params: a form for people, and what is refused before anything runs."""
    properties = {name: {"position": place, **_param(name, param)} for place, (name, param) in enumerate(params.items())}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _param(name: str, param: Param) -> dict[str, Any]:
    schema: dict[str, Any] = {"title": name, "default": param.default}
    schema |= {"type": _JSON_TYPES[param.kind]} if param.kind in _JSON_TYPES else {}
    schema |= {"description": param.help} if param.help else {}
    schema |= {"enum": list(param.choices)} if param.choices else {}
    return schema | {_JSON_BOUNDS[key]: bound for key, bound in param.bounds.items()}


def annotation(param: Param) -> Any:
    """The type of a param in a function's signature, with its choices or its bounds."""
    if param.choices and all(isinstance(choice, str | int) for choice in param.choices):
        return Literal[param.choices]
    kind = {"str": str, "int": int, "float": float, "bool": bool, "list": list}.get(param.kind, Any)
    return Annotated[kind, Interval(**param.bounds)] if param.bounds else kind
