"""YAML read strictly: plain values, each with the position of its key. Knows no pipelines.

YAML 1.2's core schema is used for plain values (`no` is a string, `1e3` a number); tags, anchors, merge keys and duplicate
keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from yaml.composer import ComposerError

from nodes.errors import PipelineError, Problem

Path_ = tuple[str | int, ...]
Value = Any
"""A plain YAML value: None, bool, int, float, str, or a list or dict of these."""

MAX_DEPTH, MAX_DIGITS = 100, 100
_QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_COLLECTIONS = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_BASES = {"0o": 8, "0x": 16}
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
PLAIN: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
"""The kinds of YAML 1.2's core schema that a plain value may be, by its first character."""

for _kind_, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    for _character in _first:
        PLAIN.setdefault(_character, []).append((_kind_, re.compile(f"^(?:{_pattern})$")))


class Reader:
    """Turns YAML's events into plain values, noting the position of each key and value and every fault."""

    def __init__(self, file: str, events: Iterator[Any]) -> None:
        self.file, self.events = file, events
        self.positions: dict[Path_, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self.faulty: set[Path_] = set()
        """Where a value could not be read, so that nothing more need be said of it."""

    def document(self) -> Value:
        """The value of the only document, None where there is none."""
        next(self.events)
        if isinstance(first := next(self.events), yaml.StreamEndEvent):
            return None
        value = self.value(next(self.events), ())
        next(self.events)
        if not isinstance(another := next(self.events), yaml.StreamEndEvent):
            raise ComposerError(
                "expected a single document in the stream", first.start_mark, "but found another document", another.start_mark
            )
        return value

    def fault(self, event: Any, path: Path_, message: str) -> None:
        mark = event.start_mark
        self.faulty.add(path)
        self.problems.append(Problem(message, self.file, mark.line + 1, mark.column + 1))

    def value(self, event: Any, path: Path_) -> Value:
        mark = event.start_mark
        self.positions.setdefault(path, (mark.line + 1, mark.column + 1))
        if event.anchor is not None:
            message = "anchors and aliases are not allowed; use a param: ${name}"
            raise PipelineError([Problem(message, self.file, mark.line + 1, mark.column + 1)])
        self._check_depth(len(path))
        if event.tag not in (None, "!"):
            core = event.tag.removeprefix("tag:yaml.org,2002:")
            tag = event.tag if core == event.tag else f"!!{core}"
            self.fault(event, path, f"the tag {tag} is not allowed; only plain values are")
            self._skip(event)
            return None
        kind = type(event)
        if kind is yaml.ScalarEvent:
            return self._scalar(event, path)
        return self._mapping(path) if kind is yaml.MappingStartEvent else self._sequence(path)

    def _scalar(self, event: Any, path: Path_) -> Value:
        text = event.value
        match _kind(event):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                if len(text) <= MAX_DIGITS:
                    return int(text, _BASES.get(text[:2], 10))
                self.fault(event, path, f"expected a number of at most {MAX_DIGITS} digits, got {len(text)}")
            case "float":
                return float(re.sub(r"\.(?=[a-zA-Z])", "", text))  # Python has no point before inf and nan
            case _:
                return text
        return None

    def _sequence(self, path: Path_) -> list[Value]:
        found: list[Value] = []
        while type(event := next(self.events)) is not yaml.SequenceEndEvent:
            found.append(self.value(event, (*path, len(found))))
        return found

    def _mapping(self, path: Path_) -> dict[str, Value]:
        found: dict[str, Value] = {}
        while type(event := next(self.events)) is not yaml.MappingEndEvent:
            key = event.value if type(event) is yaml.ScalarEvent else None
            if message := self._key_fault(event, path, key, found):
                self.fault(event, path, message)
                self._skip(event)
                self._skip(next(self.events))
                continue
            assert key is not None
            inner = (*path, key)
            self.positions[inner] = (event.start_mark.line + 1, event.start_mark.column + 1)
            found[key] = self.value(next(self.events), inner)
        return found

    def _key_fault(self, event: Any, path: Path_, key: str | None, found: Mapping[str, Value]) -> str:
        """What is wrong with a key, or nothing."""
        if event.anchor is not None:
            self.value(event, path)
        if key is None or event.tag not in (None, "!") or _kind(event) != "str":
            return f"a key must be a string; quote it: \"{key}\"" if key else "a key must be a string"
        if key == "<<":
            return "merge keys (<<) are not allowed; write the values out"
        if key in found:
            return f'the key "{key}" stands here twice; first on line {self.positions[(*path, key)][0]}'
        return ""

    def _skip(self, event: Any) -> None:
        """Pass over the rest of a value."""
        depth = int(type(event) in _COLLECTIONS)
        while depth:
            event = next(self.events)
            depth += int(type(event) in _COLLECTIONS) - int(isinstance(event, yaml.CollectionEndEvent))
            self._check_depth(depth)

    def _check_depth(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise PipelineError([Problem("not YAML: nested too deeply", self.file, 1, 1)])


def _kind(event: Any) -> str:
    """The kind of a scalar without a tag: `str` unless it is plain and reads as something else."""
    plain = PLAIN.get(event.value[:1], ()) if event.implicit[0] else ()
    return next((kind for kind, pattern in plain if pattern.match(event.value)), "str")


def tree_of(text: str, file: str) -> tuple[Value, Reader]:
    """The value that a text holds, and its reader, which has the positions and the problems.

    Raises:
        PipelineError: anchors and aliases, or too deep a nesting.
        yaml.YAMLError: the text is not YAML, in the words of Python's own parser; libyaml, where it is there, is quicker.
    """
    try:
        reader = Reader(file, yaml.parse(text, Loader=_QUICK))
        return reader.document(), reader
    except (yaml.YAMLError, UnicodeError):
        reader = Reader(file, yaml.parse(text, Loader=yaml.SafeLoader))
        return reader.document(), reader
