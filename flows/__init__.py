"""How a graph of nodes runs: YAML → spec → graph → plan → execution → report. Never imports torch itself."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.pipeline import Pipeline

# Prefect reads these when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

__all__ = ["Pipeline"]


def __getattr__(name: str) -> object:
    """The pipeline when it is asked for: not every command needs one."""
    if name != "Pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flows.pipeline import Pipeline

    return Pipeline
