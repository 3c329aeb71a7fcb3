"""LoadText: UTF-8 and nothing else."""

from pathlib import Path

import pytest

from nodes import LoadText, Text
from nodes.errors import InputError


def read(file: Path) -> Text:
    return LoadText(path=str(file)).run(file)


def refused(file: Path) -> str:
    with pytest.raises(InputError) as error:
        read(file)
    return str(error.value)


@pytest.mark.parametrize(("data", "text"), [
    (b"a cat", "a cat"),
    (b"a cat\n", "a cat"),
    (b"\xef\xbb\xbfa cat\r\n", "a cat"),
    ("  ein Kätzchen,\nzwei \n\n".encode(), "  ein Kätzchen,\nzwei "),
    (b"", ""),
], ids=["plain", "line break", "byte order mark", "lines", "empty"])  # fmt: skip
def test_a_text_is_read_without_byte_order_mark_and_last_line_break(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read(tmp_path / "a.txt") == Text(text)


def test_what_is_no_text_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    assert refused(file) == f"{file}: no such file"
    file.write_bytes(b"caf\xe9")
    assert refused(file) == f"{file}: not UTF-8 text (unexpected end of data at byte 3)"
    file.write_bytes(b"x" * (2**20 + 1))
    assert refused(file) == f"{file}: expected a text of at most 1048576 bytes"
    assert refused(tmp_path) == f"{tmp_path}: Is a directory"
