"""Photoloom on a folder beside the best script by hand, in one run: `python benchmarks/folder/run.py`.

Every figure is a whole process, from its start to its end. A round takes all contestants in turn, each ratio is formed within
its round, and the median over the rounds is printed. What is compared, and why: docs/performance.md.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from goals import figure
from pictures import write_scenes
from processes import REPLACE, Command, Ended, Environment, photoloom, script, server, timed

CHANGED = "a frog"
STEPS = 4
"""Steps of the pipeline."""
AGAIN = 5
"""How often in a round a command is run that takes a second or two: the median of them counts."""

Round = Mapping[str, Ended]


def python(code: str) -> Command:
    """A process of Python that does no more than this."""
    return [sys.executable, "-c", f"{code}; print(0)"]


def one_round(environment: Environment, folder: Path, work: Path, batch: int, window: int) -> dict[str, Ended]:
    """Each contestant once, over stores of the round's own."""

    def ours(store: str, photos: str = "*.png", *words: str) -> Command:
        given = ("--set", f"photos={folder}/photos/{photos}", "--store", work / store, "--out", work / "out", *words)
        return photoloom(REPLACE, *given, batch=batch, window=window)

    def plain(size: int, *words: object) -> Command:
        return script("plain_script.py", folder / "photos", work / "plain", "--batch", size, *words)

    single = {**environment, "OMP_NUM_THREADS": "1"}
    found = {}
    for name, times, command in (
        ("cold", 1, ours("store")),
        ("plain", 1, plain(batch)),
        ("plain, one at a time", 1, plain(1)),
        ("warm", AGAIN, ours("store")),
        ("warm, one picture", AGAIN, ours("store", "scene-00000.png")),
        ("prompt changed", 1, ours("store", "*.png", "--set", f"prompt={CHANGED}")),
        ("inpainting alone", 1, plain(batch, "--masks", folder / "masks", "--prompt", CHANGED)),
        ("import prefect", AGAIN, python("import prefect")),
    ):
        several = [timed(environment, command)[0] for _ in range(times)]
        found[name] = sorted(several, key=lambda each: each.seconds)[times // 2]
    [found["one process"]] = timed(single, ours("single"))
    found["two: first"], found["two: second"] = timed(single, ours("shared"), ours("shared"))
    return found


# --- figures ---


def ratio(above: str, below: str) -> Callable[[Round], float]:
    return lambda found: found[above].seconds / found[below].seconds


def two(found: Round) -> float:
    """Seconds until both of the two processes have ended."""
    return max(found["two: first"].seconds, found["two: second"].seconds)


def twice(found: Round) -> int:
    """Elements that two processes computed together beyond what one alone computes."""
    both = [found["two: first"].ran(), found["two: second"].ran()]
    return sum(sum(each.values()) for each in both) - sum(found["one process"].ran().values())


def prefect(found: Round) -> float:
    """Seconds that went to Prefect while one picture was found in the store; its import is in them."""
    where: Mapping[str, float] = found["warm, one picture"].told["where"]
    return sum(seconds for name, seconds in where.items() if name.startswith("Prefect"))


def figures(rounds: list[dict[str, Ended]], pictures: int) -> list[tuple[str, float, str, str]]:
    """What is measured, its median, its unit, and its goal, if it has one."""

    def median(of: Callable[[Round], float]) -> float:
        return statistics.median(of(found) for found in rounds)

    def lookup(found: Round) -> float:
        """Milliseconds that one more picture costs in a step when all is cached."""
        return 1000 * (found["warm"].seconds - found["warm, one picture"].seconds) / ((pictures - 1) * STEPS)

    def whole(found: Round) -> float:
        return 1000 * found["warm"].seconds / (pictures * STEPS)

    def alone(found: Round) -> float:
        return two(found) / found["one process"].seconds

    return [
        ("cold run ÷ script by hand", median(ratio("cold", "plain")), "", "≤ 1.05"),
        ("cold run ÷ one picture at a time", median(ratio("cold", "plain, one at a time")), "", "< 0.7"),
        ("warm run ÷ cold run", 100 * median(ratio("warm", "cold")), "%", "≤ 2"),
        ("warm run, one more picture in a step", median(lookup), "ms", "≤ 1"),
        ("warm run, whole command a picture and step", median(whole), "ms", ""),
        ("one picture, all cached: the command", median(lambda found: found["warm, one picture"].seconds), "s", "≤ 2"),
        ("Prefect in a short run", median(prefect), "s", "< 0.5"),
        ("prompt changed ÷ inpainting alone", median(ratio("prompt changed", "inpainting alone")), "", "≤ 1.05"),
        ("two processes ÷ one, each on one thread", median(alone), "", "≤ 0.6"),
        ("elements computed twice by two processes", max(twice(found) for found in rounds), "", "≤ 0"),
    ]


def print_figures(rounds: list[dict[str, Ended]], pictures: int) -> None:
    print(f"\n{'whole processes':<50}{'seconds':>10}{'CPU s':>10}{'peak MB':>10}")
    for name in rounds[0]:
        several = [found[name] for found in rounds]
        values = [(each.seconds, each.cpu, each.peak) for each in several]
        seconds, cpu, peak = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:<50}{seconds:>10.2f}{cpu:>10.2f}{peak:>10.0f}")
    print(f"\n{'':<50}{'measured':>10}    goal")
    for each in figures(rounds, pictures):
        print(figure(*each))


def print_where(title: str, several: list[dict[str, float]], whole: float) -> None:
    """Medians of seconds by name, each as a share of a whole process, and what is left over by those that are not beside."""
    print(f"\n{title:<50}{'seconds':>10}{'share':>10}")
    medians = {name: statistics.median(each.get(name, 0.0) for each in several) for name in several[0]}
    rest = whole - sum(seconds for name, seconds in medians.items() if not name.endswith("(beside)"))
    for name, seconds in {**medians, "the rest of the process": rest}.items():
        print(f"{name:<50}{seconds:>10.2f}{100 * seconds / whole:>9.1f}%")


def print_breakdown(rounds: list[dict[str, Ended]]) -> None:
    for name in ("cold", "prompt changed", "warm", "warm, one picture"):
        several = [found[name] for found in rounds]
        whole = statistics.median(each.seconds for each in several)
        steps = [{step: found["seconds"] for step, found in each.told["steps"].items()} for each in several]
        print_where(f"Photoloom, {name}: steps", steps, whole)
        if "where" in several[0].told:
            print_where(f"Photoloom, {name}: where the time went", [each.told["where"] for each in several], whole)
    for name in ("plain", "plain, one at a time", "inpainting alone"):
        several = [found[name] for found in rounds]
        phases = [{phase: s for phase, s in each.told.items() if phase != "total"} for each in several]
        print_where(f"script by hand: {name}", phases, statistics.median(each.seconds for each in several))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the models, for all contestants")
    chosen = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as temporary, server() as (environment, start):
        folder = Path(temporary)
        environment = {**environment, "OMP_NUM_THREADS": str(chosen.threads)}
        write_scenes(folder / "photos", chosen.pictures)
        # Untimed: it makes the masks for inpainting alone, and brings what all import from the disk into memory.
        timed(environment, script(
            "plain_script.py", folder / "photos", folder / "plain", "--batch", chosen.batch, "--keep-masks", folder / "masks"
        ))
        for number in range(chosen.rounds):
            work = folder / f"round-{number}"
            rounds.append(one_round(environment, folder, work, chosen.batch, chosen.window))
            print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
    print(
        f"{chosen.pictures} pictures of 128 × 128, batch {chosen.batch}, window {chosen.window}, {chosen.threads} threads, "
        f"median of {chosen.rounds} rounds\nstart of a Prefect server, once: {start:.1f} s"
    )
    print_figures(rounds, chosen.pictures)
    print_breakdown(rounds)


if __name__ == "__main__":
    main()
