"""Peak memory against the number of pictures: `python benchmarks/folder/memory.py`.

Small pictures go through light nodes, each number as a whole process over a store of its own, first cold, then warm; all with
windows as they come, then with windows of 64. The peak is the kernel's (`ru_maxrss` of that process). Its growth from the last
number but one to the last is what should be small.
"""

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path

from goals import figure
from pictures import write_noise
from processes import HERE, Ended, Environment, photoloom, server, timed

GOAL = "< 10"
"""Per cent of growth, from 1,000 to 10,000 pictures."""


def measured(environment: Environment, count: int, window: str) -> list[Ended]:
    """A cold and a warm run over `count` pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_noise(folder / "photos", count)
        command = photoloom(
            HERE / "light.yaml", "--nodes", HERE / "light_nodes.py", "--set", f"photos={folder}/photos/*.png",
            "--store", folder / "store", "--out", folder / "out", batch="auto", window=window,
        )
        runs = [timed(environment, command)[0] for _ in ("cold", "warm")]
    assert runs[0].ran() == dict.fromkeys(runs[0].ran(), count)
    assert runs[1].ran() == dict.fromkeys(runs[1].ran(), 0)
    return runs


def print_table(window: str, found: dict[int, list[Ended]]) -> None:
    """The runs with windows of one size, and how much more memory the larger ones took."""
    print(f"windows: {window}\n{'pictures':>10}{'cold MB':>10}{'warm MB':>10}{'cold s':>10}{'warm s':>10}")
    for count, (cold, warm) in found.items():
        print(f"{count:>10,}{cold.peak:>10.0f}{warm.peak:>10.0f}{cold.seconds:>10.1f}{warm.seconds:>10.1f}")
    for before, after in pairwise(found):
        for name, first, last in zip(("cold", "warm"), found[before], found[after], strict=True):
            goal = GOAL if after == list(found)[-1] else ""
            print(figure(f"growth from {before:,} to {after:,}, {name}", 100 * (last.peak / first.peak - 1), "%", goal))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--windows", nargs="+", default=["auto", "64"])
    chosen = parser.parse_args()
    with server() as (environment, _):
        for window in chosen.windows:
            found = {count: measured(environment, count, window) for count in chosen.counts}
            print_table(window, found)


if __name__ == "__main__":
    main()
