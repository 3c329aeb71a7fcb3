"""What the options of a model bring on this machine: `python benchmarks/folder/options.py`.

One process for each option, in turn, several rounds; a few pictures are inpainted by the toybox model, or by `--model`. An
option becomes a default when it is quicker here and on a GPU and changes nothing that can be seen.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

OPTIONS: dict[str, dict[str, object]] = {
    "as it comes": {},
    "bfloat16": {"dtype": "bfloat16"},
    "channels-last": {"channels_last": True},
    "plain attention": {"attention": "eager"},
    "fused attention": {"attention": "sdpa"},
    "VAE in tiles": {"vae_tiling": True},
    "torch.compile": {"compile": True},
}


def measure(name: str, model: str, photos: Path, steps: int) -> None:
    """Print the seconds a picture takes after the first batch, and where the pictures are kept."""
    import numpy as np

    from nodes import Image, Inpaint, Load, Masks, Model
    from nodes.models import SETS

    source = model or SETS["toybox"]["inpaint"]
    node = Inpaint(model=Model(role="inpaint", source=source, **OPTIONS[name]), prompt="a rocket", seed=7,
                   num_inference_steps=steps)
    pictures: list[Image] = [Load(path="").run(file) for file in sorted(photos.glob("*.png"))]
    masks = []
    for picture in pictures:
        layer = np.zeros((1, picture.height, picture.width), np.uint8)
        layer[:, picture.height // 4 : picture.height * 3 // 4, picture.width // 4 : picture.width * 3 // 4] = 255
        masks.append(Masks(layer, ("",), np.ones(1, np.float32)))
    prompts = ["a rocket"] * len(pictures)
    node.run_batch(pictures, masks, prompts)
    started = time.perf_counter()
    made = node.run_batch(pictures, masks, prompts)
    seconds = (time.perf_counter() - started) / len(pictures)
    with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as kept:
        np.save(kept, np.stack([each.pixels for each in made]))
    print(json.dumps({"seconds": seconds, "kept": kept.name}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="", help="a folder with an SDXL model; the toybox's by default")
    parser.add_argument("--one", nargs=2, metavar=("OPTION", "PHOTOS"), help="measure one option in this process")
    chosen = parser.parse_args()
    if chosen.one:
        measure(chosen.one[0], chosen.model, Path(chosen.one[1]), chosen.steps)
        return
    import numpy as np
    from pictures import write_scenes

    seconds: dict[str, list[float]] = {name: [] for name in OPTIONS}
    pixels = {}
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), chosen.pictures)
        for _ in range(chosen.rounds):
            for name in OPTIONS:
                words = ("--one", name, folder, "--steps", str(chosen.steps), "--model", chosen.model)
                command = [sys.executable, __file__, *words]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                if ran.returncode:
                    print(f"{name}: {ran.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                found = json.loads(ran.stdout.splitlines()[-1])
                seconds[name].append(found["seconds"])
                pixels[name] = np.load(found["kept"]).astype(int)
                Path(found["kept"]).unlink()
    plain = statistics.median(seconds["as it comes"])
    print(f"inpainting {chosen.pictures} pictures of 128², {chosen.steps} steps, median of {chosen.rounds} rounds")
    print(f"{'':<20}{'s a picture':>12}{'÷ as it comes':>15}{'largest change':>16}{'changed values':>16}")
    for name, several in seconds.items():
        if several:
            taken, change = statistics.median(several), np.abs(pixels[name] - pixels["as it comes"])
            print(f"{name:<20}{taken:>12.3f}{taken / plain:>15.2f}{change.max():>16}{100 * (change > 0).mean():>15.2f}%")


if __name__ == "__main__":
    main()
