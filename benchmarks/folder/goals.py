"""Figures beside their goals, as all benchmarks print them."""

from operator import ge, le, lt

SIGNS = {"≤": le, "<": lt, "≥": ge}


def figure(name: str, value: float, unit: str = "", goal: str = "") -> str:
    """A line: what was measured and, where there is a goal such as "≤ 1.05", whether it was met."""
    verdict = ""
    if goal:
        sign, bound = goal.split()
        verdict = f"{goal:<8}{'met' if SIGNS[sign](value, float(bound)) else 'missed'}"
    return f"{name:<50}{value:>10.3g} {unit:<3}{verdict}".rstrip()
