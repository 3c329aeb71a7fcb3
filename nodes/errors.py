"""Every error Photoloom raises on purpose, and the words they share.

    PhotoloomError
    ├── UserError              what the caller can put right: shown as one message, never as a traceback
    │   ├── PipelineError      one or more problems of a pipeline, all reported at once
    │   │   └── NoFiles            its folder holds none of the files that it names: there is nothing to do
    │   ├── NodeDefinitionError    a node class that is not well-formed
    │   ├── ArtifactError      a value that is not what its type promises
    │   ├── InputError         a file or value a node cannot work on
    │   ├── ModelError         a model that is absent, or is not of the kind a node needs
    │   ├── OutOfMemory        memory is too short for what a node was to do at once
    │   ├── StoreError         a store that cannot be used
    │   │   └── Unreachable        one that did not answer, which may pass
    │   ├── ServerError        the Prefect server does not answer
    │   └── WorkerError        the workers are not there, or cannot do what is asked
    └── Damaged                a stored value does not match its digest: a miss, never a result
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

MOST_NAMES = 20
"""Names that one message lists."""


class PhotoloomError(Exception):
    """The root of all errors raised on purpose."""


class UserError(PhotoloomError):
    """Something the caller can put right."""


class NodeDefinitionError(UserError):
    """A node class whose ports, outputs or params are not well-formed."""


class ArtifactError(UserError):
    """A value that is not what its artifact type promises."""


class InputError(UserError):
    """A file or a value that a node cannot work on."""


class ModelError(UserError):
    """A model that is absent, cannot be read, or is not of the kind that a node needs."""


class OutOfMemory(UserError):
    """Memory is too short for what a node was to do at once: fewer items at a time may do."""


class StoreError(UserError):
    """A store that cannot be used."""


class Unreachable(StoreError):
    """A store that did not answer in time; the next time it may."""


class ServerError(UserError):
    """The Prefect server could not be started or does not answer."""


class WorkerError(UserError):
    """The workers or their scheduler are not there, or cannot work for this run."""


class Damaged(PhotoloomError):
    """A stored value that is missing or does not match its digest."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a pipeline, and where: line and column count from 1, 0 when there is no file."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}" if self.line else self.message


class PipelineError(UserError):
    """All problems found in one pipeline, in the order of their lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.file, p.line, p.column)))
        super().__init__("\n".join(map(str, self.problems)))


class NoFiles(PipelineError):
    """A folder that is there holds none of the files that a source names."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` for the known name closest to `name`, else the list of those known."""
    names = sorted(set(known))
    lowered = {n.lower(): n for n in names}
    if close := get_close_matches(name.lower(), lowered, n=1, cutoff=0.6):
        return f'; did you mean "{lowered[close[0]]}"?'
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return f"; known: {', '.join(names[:MOST_NAMES])}{more}" if names else "; there is none"
