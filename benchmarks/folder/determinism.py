"""Whether results are the same bytes however they are made: `python benchmarks/folder/determinism.py`.

Every model runs over a few scenes, each time over a store of its own, at several batch sizes and windows, in one process and in
two at once, on one worker and on two, on one thread and on two. The SHA-256 of each file written, and of each value that the
store's manifests name, is compared with those of the first run. Where pictures differ, the table says by how much, and the
script ends with 1.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from goals import figure
from pictures import write_scenes
from PIL import Image
from processes import HERE, ROOT, Environment, photoloom, server, timed, workers

sys.path.insert(0, str(ROOT))

from flows.store import Store


@dataclass(frozen=True)
class Way:
    """One way to make the same results: on so many workers (0: in the run's own process), on so many threads each, in so
    many processes at once, in windows and batches of these sizes."""

    workers: int
    threads: int
    processes: int
    window: int
    batch: int


@dataclass(frozen=True)
class Found:
    """What a run left: by name the digest of each file (of each process), by key those of each result's values, and the
    pictures' files."""

    files: Mapping[str, str]
    results: Mapping[str, tuple[str, ...]]
    pictures: Mapping[str, Path]


def files_of(out: Path) -> Iterator[tuple[str, Path]]:
    """The files of a run's outputs by their names below the run's folder, without the report."""
    [run] = out.glob("*/*")
    yield from ((str(path.relative_to(run)), path) for path in sorted(run.glob("*/**/*")) if path.is_file())


def results_of(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    store = Store(folder)
    for path in sorted((folder / "manifests").glob("*/*.json")):
        key = path.parent.name + path.stem
        manifest = store.look_up(key)
        assert manifest
        yield key, tuple(ref.digest for ref in manifest.refs())


def run(environment: Environment, photos: Path, work: Path, way: Way, steps: int) -> Found:
    outs = [work / f"out-{number}" for number in range(way.processes)]
    timed(environment, *(
        photoloom(
            HERE / "every_model.yaml", "--set", f"photos={photos}/*.png", "--set", f"steps={steps}", "--no-metadata",
            "--store", work / "store", "--out", out, "--on", "worker" if way.workers else "here",
            batch=way.batch, window=way.window,
        )
        for out in outs
    ))
    files = [dict(files_of(out)) for out in outs]
    digests = [{name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in each.items()} for each in files]
    # What two processes do not agree on agrees with no other run either.
    together = {name: " or ".join(sorted({each.get(name, "none") for each in digests})) for name in digests[0]}
    return Found(together, dict(results_of(work / "store")), files[0])


def differing(first: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """The names under which the two have something else, or one of them nothing."""
    return [name for name in {**first, **other} if first.get(name) != other.get(name)]


def distance(first: Found, other: Found, names: list[str]) -> str:
    """The largest difference between values of pictures, and how many of a million values differ."""
    both = [name for name in names if name.endswith(".png") and name in first.pictures and name in other.pictures]
    pairs = [(first.pictures[name], other.pictures[name]) for name in both]
    if not pairs:
        return ""
    gaps = np.concatenate([np.abs(pixels(a) - pixels(b)).ravel() for a, b in pairs])
    return f"pictures by at most {gaps.max()}, in {1e6 * (gaps > 0).mean():.0f} of 1,000,000 values"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="diffusion steps")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="at once; on workers always one")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="0: in the run's own process")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args()
    differ = 0
    first: Found | None = None
    columns = ("workers", "threads", "processes", "window", "batch", "files", "differ", "results", "differ")
    print("".join(f"{name:>10}" for name in columns))
    with tempfile.TemporaryDirectory() as temporary, server() as (environment, _):
        folder = Path(temporary)
        write_scenes(folder / "photos", chosen.pictures)
        for count, threads in product(chosen.workers, chosen.threads):
            single = {**environment, "OMP_NUM_THREADS": str(threads)}
            with workers(single, count):
                for processes, window, batch in product([1] if count else chosen.processes, chosen.windows, chosen.batches):
                    way = Way(count, threads, processes, window, batch)
                    found = run(single, folder / "photos", folder / "-".join(map(str, astuple(way))), way, chosen.steps)
                    first = first or found
                    files, results = differing(first.files, found.files), differing(first.results, found.results)
                    differ += len(files) + len(results)
                    counts = (*astuple(way), len(found.files), len(files), len(found.results), len(results))
                    told = "".join(f"{number:>10}" for number in counts)
                    print(f"{told}  {distance(first, found, files)}".rstrip(), flush=True)
    print(figure("files and results that differ from the first run's", differ, "", "≤ 0"))
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
