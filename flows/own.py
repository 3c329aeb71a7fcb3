"""Node classes of the user's own: files that the caller names are imported, and remembered for whoever must do it again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from nodes.errors import PhotoloomError, UserError

files: dict[str, Path] = {}
"""The file of each module that was imported so."""


def import_nodes(file: Path) -> None:
    """Import a file with node classes, as the caller asked for.

    Raises:
        UserError: there is no such file, or it cannot be imported.
    """
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--nodes {file}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except PhotoloomError:
        raise
    except Exception as error:
        raise UserError(f"--nodes {file}: {type(error).__name__}: {error}") from error
    files[file.stem] = file.resolve()
