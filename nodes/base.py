"""What a node is: params from its fields, input ports and outputs from the signature of `run`, all declared once.

Knows nothing of how a graph runs.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

from nodes.artifacts import Artifact
from nodes.errors import NodeDefinitionError, UserError, nearest


@dataclass(frozen=True)
class Port:
    """One input or output of a node class. `many` is a list of the type: one level of the list rule."""

    name: str
    type: type[Artifact]
    many: bool = False
    optional: bool = False

    def __str__(self) -> str:
        return f"list[{self.type.__name__}]" if self.many else self.type.__name__


class Model(BaseModel):
    """The model a node works with: a role, filled by the pipeline's model set, or a source of its own.

    `source` is a hub id, `id@revision`, or a local folder; in YAML a bare string is the source. How it runs: `dtype`
    (float32 on a processor and float16 on a GPU unless told), `channels_last`, `compile` (torch.compile), `attention` (plain
    sums, or torch's fused kernels), `vae_tiling` (decode large pictures in parts), `offload` (keep on the GPU only the part
    at work, or only the layer). All but `offload` may change a result, and so are part of what the cache knows a model by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: str
    source: str = ""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    channels_last: bool = False
    compile: bool = False
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    vae_tiling: bool = False
    offload: Literal["none", "model", "layer"] = "none"

    @property
    def options(self) -> dict[str, Any]:
        """The options that may change a result and are not the default."""
        return self.model_dump(exclude={"role", "source", "dtype", "offload"}, exclude_defaults=True)


class Node(BaseModel):
    """The base of all node classes: a frozen set of params, and `run`, whose signature declares the ports.

    A subclass is known by its name once it is defined. `run` is a function of the params, the model and the contents of
    the inputs, and of nothing else. A class that has `run_batch` too takes several items at once, each port as a list, and
    also as lists those params that it names as arguments, so that items go together whose `${step}` texts differ;
    how items are grouped must not change a result. Where the things of a list are as good made alone, `counted` says so:
    each is then made, kept and tried again by itself. `version` is part of the cache key; a class that declares none gets
    a digest of its module's source.

    Raises:
        NodeDefinitionError: at class creation, when a port has no artifact type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: ClassVar[str] = ""
    ports: ClassVar[Mapping[str, Port]] = {}
    outputs: ClassVar[Mapping[str, Port]] = {}
    tolerates_missing: ClassVar[bool] = False
    """Whether a `list` port may come without the elements that failed."""
    aligned: ClassVar[bool] = False
    """Whether what stands at one place of its `list` ports belongs together: they then must be wired to one list."""
    counted: ClassVar[tuple[str, ...]] = ()
    """Two int params of a node that gives lists, if their things can be made one by one: the first says how many there are,
    and the thing at place i is what 1 and the second plus i give."""

    varying: ClassVar[frozenset[str]] = frozenset()
    """The params that may differ between the items of a batch: those that `run_batch` takes, as lists."""

    run: ClassVar[Callable[..., Any]]
    run_batch: ClassVar[Callable[..., list[Any]]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not callable(getattr(cls, "run", None)):
            return
        cls.ports, cls.outputs = _signature(cls)
        if clash := set(cls.ports) & set(cls.model_fields):
            raise NodeDefinitionError(f"{cls.__name__}: {sorted(clash)[0]} is both a param and a port")
        _check_counted(cls)
        named = inspect.signature(cls.run_batch).parameters if cls.batches() else ()
        cls.varying = frozenset(named) & frozenset(cls.model_fields)
        if not cls.__dict__.get("version"):
            cls.version = _source_digest(cls)
        register(cls)

    @model_validator(mode="before")
    @classmethod
    def _model_by_source(cls, data: Any) -> Any:
        return with_model_sources(cls, data) if isinstance(data, dict) else data

    def prepare(self) -> None:
        """Load what `run` needs, ahead of its first call. By default there is nothing."""

    @classmethod
    def batches(cls) -> bool:
        """Whether the class can serve several items at once."""
        return callable(getattr(cls, "run_batch", None))

    def nth(self, index: int) -> Self:
        """This node, which is counted, as it makes the thing at one place of its list alone."""
        count, first = self.counted
        return self.model_copy(update={count: 1, first: getattr(self, first) + index})

    def step(self, name: str, **wires: Step | Output) -> Step:
        """This node as the step `name` of a pipeline, each input port given a step or one output of a step."""
        found = {}
        for port, source in wires.items():
            if port not in self.ports:
                raise UserError(f'step "{name}": {type(self).__name__} has no port "{port}"{nearest(port, self.ports)}')
            found[port] = source if isinstance(source, Output) else source.only
        return Step(name, self, found)


def with_model_sources(cls: type[Node], values: Mapping[str, Any]) -> dict[str, Any]:
    """The params of a class in which `model: some/id`, or a mapping of a model's options, means the field's own role."""
    roles = {name: info.default.role for name, info in cls.model_fields.items() if isinstance(info.default, Model)}
    found = dict(values)
    for name, role in roles.items():
        value = values.get(name)
        if isinstance(value, str):
            found[name] = Model(role=role, source=value)
        elif isinstance(value, dict):
            found[name] = {"role": role, **value}
    return found


class Source(Node):
    """A node that reads files: planning resolves `path` to files, and each becomes one element of a list.

    `run` takes the file and gives one artifact. `path` may hold `*`, `**` and `?`; a folder means all the files in it
    whose suffix is one of `suffixes`. It enters no cache key: the contents do.

    A port of a source says only whose files: its value is never read and enters no cache key. Where one is wired,
    there is one file for each of its elements, named by `path` with the `{folder}`, `{name}` and `{stem}` of the
    picture's file and the element's `{id}`.
    """

    path: str
    suffixes: ClassVar[tuple[str, ...]] = ()


ID = "{id}"
"""What stands for an element's id in a sink's name."""


class Sink(Node):
    """A node whose output is written under a name of its own: `name` may hold `{id}`, and enters no cache key."""

    name: str = ID


UNKEYED: Mapping[type[Node], str] = {Source: "path", Sink: "name"}
"""Params that say where things lie and change no content."""


@dataclass(frozen=True)
class Output:
    """One output of a step, as a wire's source."""

    step: Step
    port: str


@dataclass(frozen=True, eq=False)
class Step:
    """A node with a name and its inputs wired. `step.output` is one of its outputs."""

    name: str
    node: Node
    wires: Mapping[str, Output] = field(default_factory=dict)

    def __getattr__(self, port: str) -> Output:
        if port.startswith("_") or port not in self.node.outputs:
            raise AttributeError(f'step "{self.name}" has no output "{port}"{nearest(port, self.node.outputs)}')
        return Output(self, port)

    @cached_property
    def only(self) -> Output:
        """The step's one output.

        Raises:
            UserError: it has several.
        """
        if len(self.node.outputs) > 1:
            raise UserError(f'step "{self.name}" has several outputs; name one: {outputs_of(self.name, type(self.node))}')
        return Output(self, next(iter(self.node.outputs)))


def outputs_of(step: str, node: type[Node]) -> str:
    """`step.a, step.b`: what a wire may name."""
    return ", ".join(f"{step}.{port}" if len(node.outputs) > 1 else step for port in node.outputs)


# --- node classes by name ---

_classes: dict[str, type[Node]] = {}


def register(node: type[Node]) -> None:
    """Make a class known by its name; a later class of the same name takes the place of one that is not shipped here."""
    known = _classes.get(node.__name__)
    if known and known.__module__.startswith("nodes.") and known.__module__ != node.__module__:
        raise NodeDefinitionError(f"{node.__module__}.{node.__name__}: the name {node.__name__} is taken by {known.__module__}")
    _classes[node.__name__] = node


def registered() -> Mapping[str, type[Node]]:
    """All classes defined so far, by name."""
    return types.MappingProxyType(_classes)


# --- reading a class ---


def _source_digest(cls: type[Node]) -> str:
    module = sys.modules.get(cls.__module__)
    path = getattr(module, "__file__", None)
    try:
        source = Path(path).read_text("utf-8") if path else inspect.getsource(cls)
    except OSError as error:
        raise NodeDefinitionError(f"{cls.__name__}: its source cannot be read, so it must declare a version") from error
    return "source:" + hashlib.sha256(source.encode()).hexdigest()[:16]


def _signature(cls: type[Node]) -> tuple[dict[str, Port], dict[str, Port]]:
    try:
        hints = typing.get_type_hints(cls.run)
    except NameError as error:
        raise NodeDefinitionError(f"{cls.__name__}.run: {error}") from error
    file_argument = "file" if issubclass(cls, Source) else None
    ports = {}
    for name, parameter in list(inspect.signature(cls.run).parameters.items())[1:]:
        if name == file_argument:
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise NodeDefinitionError(f"{cls.__name__}.run: {name} must be an ordinary argument")
        ports[name] = _port(f"{cls.__name__}.run: port {name}", name, hints.get(name), parameter.default is None)
    returned = hints.get("return")
    what = f"{cls.__name__}.run: its return"
    if isinstance(returned, type) and issubclass(returned, tuple) and hasattr(returned, "_fields"):
        fields = typing.get_type_hints(returned)
        outputs = {n: _port(f"{what}, {returned.__name__}.{n}", n, fields.get(n), False) for n in returned._fields}
        if len({port.many for port in outputs.values()}) > 1:
            raise NodeDefinitionError(f"{what}: either all outputs are lists or none is")
    else:
        outputs = {"output": _port(what, "output", returned, False)}
    return ports, outputs


def _check_counted(cls: type[Node]) -> None:
    if not cls.counted:
        return
    fields = cls.model_fields
    if len(cls.counted) != 2 or any(name not in fields or fields[name].annotation is not int for name in cls.counted):
        raise NodeDefinitionError(f"{cls.__name__}: counted must name two int params, got {', '.join(cls.counted)}")
    if not all(port.many for port in cls.outputs.values()):
        raise NodeDefinitionError(f"{cls.__name__}: what is counted is a list, and its run gives none")


def _port(where: str, name: str, hint: Any, none_default: bool) -> Port:
    optional = False
    if get_origin(hint) in (types.UnionType, typing.Union):
        rest = [h for h in get_args(hint) if h is not type(None)]
        optional, hint = len(rest) == 1 and none_default, rest[0] if len(rest) == 1 else hint
    many = get_origin(hint) in (list, Sequence)
    kind = get_args(hint)[0] if many else hint
    if not (isinstance(kind, type) and issubclass(kind, Artifact)):
        shown = "nothing" if hint is None else getattr(hint, "__name__", str(hint))
        raise NodeDefinitionError(f"{where} must be typed with an artifact such as Image or list[Image], got {shown}")
    return Port(name, kind, many, optional)


