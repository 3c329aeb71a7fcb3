"""The engine's overhead beside its peers', in one run: `python benchmarks/overhead/run.py`.

Each peer runs the chain of `chain.py` cold, then warm in a fresh process over the same store. Every round takes all of them in
turn, and the median over the rounds is printed, as milliseconds a node and as a ratio to the peer that was quickest warm.
Peers live in a virtual environment of their own, which is made on the first run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / "benchmarks" / ".peers"
OURS = "photoloom"


def python_of_peers() -> str:
    """A Python that has the peers; they are installed where they are missing."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        venv.create(PEERS, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"], check=True)
    return str(python)


def timed(python: str, script: str, count: int, folder: Path, *words: str) -> dict[str, float]:
    """One process: what it reports, and the whole of its time as `process`."""
    started = time.perf_counter()
    ran = subprocess.run(
        [python, HERE / script, str(count), str(folder), *words], capture_output=True, text=True, check=False, cwd=HERE,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    if ran.returncode:
        raise SystemExit(f"{script} failed:\n{ran.stderr[-2000:]}")
    found: dict[str, float] = json.loads(ran.stdout.strip().splitlines()[-1])
    return {**found, "process": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    subprocess.run([sys.executable, "-m", "flows", "server", "start"], check=True, cwd=ROOT)
    peers = python_of_peers()
    contenders = {
        "plain Python (keeps nothing)": (peers, "peer_plain.py"),
        "Haystack (keeps nothing)": (peers, "peer_haystack.py"),
        "joblib.Memory": (peers, "peer_joblib.py"),
        "Hamilton with cache": (peers, "peer_hamilton.py"),
        "redun": (peers, "peer_redun.py"),
        "Prefect tasks, persisted": (sys.executable, "peer_prefect.py"),
        OURS: (sys.executable, "photoloom_chain.py", "--engine"),
        f"{OURS}, whole run in Prefect": (sys.executable, "photoloom_chain.py"),
    }
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{os.environ.get('PHOTOLOOM_SERVER_PORT', '4200')}/api"
    figures: dict[tuple[str, str], list[dict[str, float]]] = {}
    for round_ in range(chosen.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, (python, script, *words) in contenders.items():
                for state in ("cold", "warm"):
                    kept = Path(folder) / script / "".join(words)
                    figures.setdefault((name, state), []).append(timed(python, script, chosen.nodes, kept, *words))
        print(f"round {round_ + 1} of {chosen.rounds}", file=sys.stderr)
    assert len({found["sum"] for several in figures.values() for found in several if "sum" in found}) == 1

    def median(name: str, state: str, key: str = "seconds") -> float:
        return statistics.median(found[key] for found in figures[name, state])

    best = min(median(name, "warm") for name in ("joblib.Memory", "Hamilton with cache", "redun"))
    print(f"chain of {chosen.nodes} nodes, 512² image, median of {chosen.rounds} rounds")
    print(f"{'':<32}{'cold ms/node':>14}{'warm ms/node':>14}{'warm ÷ best peer':>18}{'process s (warm)':>18}")
    for name in contenders:
        cold, warm = (1000 * median(name, state) / chosen.nodes for state in ("cold", "warm"))
        ratio, process = median(name, "warm") / best, median(name, "warm", "process")
        print(f"{name:<32}{cold:>14.2f}{warm:>14.2f}{ratio:>18.2f}{process:>18.2f}")
    flow = median(f"{OURS}, whole run in Prefect", "warm") - median(OURS, "warm")
    print(f"process start and imports: {median(OURS, 'warm', 'process') - median(OURS, 'warm'):.2f} s")
    print(f"flow overhead (Prefect's client, flow run, {chosen.nodes + 1} task runs, report): {flow:.2f} s, "
          f"{1000 * flow / (chosen.nodes + 1):.1f} ms a task run")


if __name__ == "__main__":
    main()
