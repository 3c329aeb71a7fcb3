"""Peak memory against the number of pictures: `python benchmarks/folder/memory.py`.

Small pictures go through light nodes, each number as a whole process over a store of its own, first cold, then warm. The peak
is the kernel's (`ru_maxrss` of that process). Its growth from the last number but one to the last is what should be small.
"""

import argparse
import tempfile
from pathlib import Path

from pictures import write_noise
from processes import HERE, Ended, Environment, photoloom, server, timed

GOAL = 10
"""Per cent of growth, from 1,000 to 10,000 pictures."""


def measured(environment: Environment, count: int, batch: int, window: int) -> list[Ended]:
    """A cold and a warm run over `count` pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_noise(folder / "photos", count)
        command = photoloom(
            HERE / "light.yaml", "--nodes", HERE / "light_nodes.py", "--set", f"photos={folder}/photos/*.png",
            "--store", folder / "store", "--out", folder / "out", batch=batch, window=window,
        )
        runs = [timed(environment, command)[0] for _ in ("cold", "warm")]
    assert runs[0].ran() == dict.fromkeys(runs[0].ran(), count)
    assert runs[1].ran() == dict.fromkeys(runs[1].ran(), 0)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=64)
    chosen = parser.parse_args()
    with server() as (environment, _):
        found = {count: measured(environment, count, chosen.batch, chosen.window) for count in chosen.counts}
    print(f"{'pictures':>10}{'cold MB':>10}{'warm MB':>10}{'cold s':>10}{'warm s':>10}")
    for count, (cold, warm) in found.items():
        print(f"{count:>10,}{cold.peak:>10.0f}{warm.peak:>10.0f}{cold.seconds:>10.1f}{warm.seconds:>10.1f}")
    for before, after in zip(chosen.counts, chosen.counts[1:], strict=False):
        growth = [100 * (last.peak / first.peak - 1) for first, last in zip(found[before], found[after], strict=True)]
        print(f"growth from {before:,} to {after:,}: cold {growth[0]:.1f} %, warm {growth[1]:.1f} %")
    print(f"goal for the last: < {GOAL} %")


if __name__ == "__main__":
    main()
