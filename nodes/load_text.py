"""Read texts: captions, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from nodes.artifacts import Artifact, Text
from nodes.base import Source
from nodes.errors import InputError

MAX_BYTES = 2**20
"""No longer text is read: a prompt has a few hundred."""


class LoadText(Source):
    """Read a text in UTF-8, without a byte order mark and without the line breaks at its end.

    With `like` it reads, for each element of that step, the file that `path` names by its picture's `{folder}`,
    `{name}`, `{stem}` and by the element's `{id}`; else `path` is a file, a folder or a pattern, as for Load.

    Raises:
        InputError: the file is absent, not UTF-8, or has more than `MAX_BYTES` bytes.
    """

    version: ClassVar[str] = "1"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)

    def run(self, file: Path, like: Artifact | None = None) -> Text:
        try:
            with file.open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise InputError(f"{file}: expected a text of at most {MAX_BYTES} bytes")
            return Text(data.decode("utf-8-sig").rstrip("\r\n"))
        except FileNotFoundError:
            raise InputError(f"{file}: no such file") from None
        except OSError as error:
            raise InputError(f"{file}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
