"""How a graph of nodes runs: YAML → spec → graph → plan → execution → report. Never imports torch itself."""

import os

# Prefect reads these when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

from flows.pipeline import Pipeline

__all__ = ["Pipeline"]
