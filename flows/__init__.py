"""How a graph of nodes runs: YAML → spec → graph → plan → execution → report. Never imports torch itself."""

from flows.pipeline import Pipeline

__all__ = ["Pipeline"]
