"""Whether results are the same bytes however they are made: `python benchmarks/folder/determinism.py`.

Every model runs over a few scenes, each time over a store of its own, at several batch sizes and windows, in one process and in
two at once, on one thread and on two. The SHA-256 of each file written, and of each value that the store's manifests name, is
compared with those of the first run. Where pictures differ, the table says by how much.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from pictures import write_scenes
from PIL import Image
from processes import HERE, ROOT, Environment, photoloom, server, timed

sys.path.insert(0, str(ROOT))

from flows.store import Store


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


def run(environment: Environment, photos: Path, work: Path, batch: int, window: int, processes: int, steps: int) -> Found:
    outs = [work / f"out-{number}" for number in range(processes)]
    timed(environment, *(
        photoloom(
            HERE / "every_model.yaml", "--set", f"photos={photos}/*.png", "--set", f"steps={steps}", "--no-metadata",
            "--store", work / "store", "--out", out, batch=batch, window=window,
        )
        for out in outs
    ))
    files = [dict(files_of(out)) for out in outs]
    digests = [{name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in each.items()} for each in files]
    # What two processes do not agree on agrees with no other run either.
    together = {name: " or ".join(sorted({each.get(name, "none") for each in digests})) for name in digests[0]}
    return Found(together, dict(results_of(work / "store")), files[0])


def differing(first: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """The first one's names under which the other has something else, or nothing."""
    return [name for name in first if first[name] != other.get(name)]


def distance(first: Found, other: Found, names: list[str]) -> str:
    """The largest difference between values of pictures, and how many of a million values differ."""
    pairs = [(first.pictures[name], other.pictures[name]) for name in names if name.endswith(".png") and name in other.pictures]
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
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args()
    first: Found | None = None
    print(f"{'threads':>8}{'processes':>11}{'window':>8}{'batch':>7}{'files':>7}{'differ':>8}{'results':>9}{'differ':>8}")
    with tempfile.TemporaryDirectory() as temporary, server() as (environment, _):
        folder = Path(temporary)
        write_scenes(folder / "photos", chosen.pictures)
        cases = product(chosen.threads, chosen.processes, chosen.windows, chosen.batches)
        for threads, processes, window, batch in cases:
            work = folder / f"{threads}-{processes}-{window}-{batch}"
            single = {**environment, "OMP_NUM_THREADS": str(threads)}
            found = run(single, folder / "photos", work, batch, window, processes, chosen.steps)
            first = first or found
            files, results = differing(first.files, found.files), differing(first.results, found.results)
            print(
                f"{threads:>8}{processes:>11}{window:>8}{batch:>7}{len(found.files):>7}{len(files):>8}"
                f"{len(found.results):>9}{len(results):>8}  {distance(first, found, files)}".rstrip(), flush=True,
            )


if __name__ == "__main__":
    main()
