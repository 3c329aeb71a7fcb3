"""Inpainting at SDXL's size on a GPU, beside the script by hand and the UNet alone: `python benchmarks/folder/gpu.py`.

The model has SDXL's shape (inpainting, 9 channels) and random weights: how long it takes does not depend on what it learned.
Pictures per minute are those of a longer run beyond a shorter one, so that starting and loading do not count. Without a GPU it
says so and ends; `--tiny` then tries the same with the toybox's shape.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from goals import figure
from pictures import write_noise
from PIL import Image
from processes import HERE, ROOT, Command, Environment, photoloom, script, server, timed

DTYPE = {"cuda": "bfloat16", "cpu": "float32"}
"""In which all three work; the script by hand chooses the same."""
TOYBOX = ROOT / "models" / "toybox" / "sdxl-inpaint"
CROSS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
UNET: dict[str, Any] = {
    "sample_size": 128, "in_channels": 9, "out_channels": 4, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
    "down_block_types": CROSS, "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048, "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 1024,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "scaling_factor": 0.13025,
    "force_upcast": False,
}
FIRST: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768,
}
SECOND: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}
WORDS: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 718, "bos_token_id": 717}
"""The toybox's words fit into SDXL's vocabulary."""


def write_model(folder: Path, device: str, tiny: bool) -> None:
    """A model folder in diffusers' layout: random weights in bfloat16 on a GPU, in float32 on a processor."""
    import diffusers
    import torch
    import transformers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def config(kind: Any, part: str, full: dict[str, Any]) -> Any:
        return kind.load_config(TOYBOX / part) if tiny else full

    def words(part: str, full: dict[str, Any]) -> CLIPTextConfig:
        return CLIPTextConfig.from_pretrained(TOYBOX / part) if tiny else CLIPTextConfig(**full, **WORDS)

    for package in (diffusers, transformers):
        package.utils.logging.disable_progress_bar()
        package.utils.logging.set_verbosity_error()
    longest = {} if tiny else {"model_max_length": WORDS["max_position_embeddings"]}
    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "unet": diffusers.UNet2DConditionModel.from_config(config(diffusers.UNet2DConditionModel, "unet", UNET)),
            "vae": diffusers.AutoencoderKL.from_config(config(diffusers.AutoencoderKL, "vae", VAE)),
            "text_encoder": CLIPTextModel(words("text_encoder", FIRST)),
            "text_encoder_2": CLIPTextModelWithProjection(words("text_encoder_2", SECOND)),
        }
    diffusers.StableDiffusionXLInpaintPipeline(
        **{name: part.to(getattr(torch, DTYPE[device])) for name, part in parts.items()},
        scheduler=diffusers.EulerDiscreteScheduler.from_pretrained(TOYBOX / "scheduler"),
        **{name: CLIPTokenizer.from_pretrained(TOYBOX / name, **longest) for name in ("tokenizer", "tokenizer_2")},
        add_watermarker=False,
    ).save_pretrained(folder)


def write_masks(folder: Path, names: list[str], side: int) -> None:
    """What the node Middle gives, as files."""
    layer = np.zeros((side, side), np.uint8)
    layer[side // 4 : side * 3 // 4, side // 4 : side * 3 // 4] = 255
    folder.mkdir()
    for name in names:
        Image.fromarray(layer).save(folder / name)


def unet_alone(folder: Path, device: str, batch: int, steps: int) -> float:
    """Pictures per minute if only the UNet's calls for `steps` steps with guidance took time."""
    import diffusers
    import torch

    dtype = getattr(torch, DTYPE[device])
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype).to(device).eval()
    size, rows = unet.config.sample_size, 2 * batch
    given = torch.zeros(rows, unet.config.in_channels, size, size, dtype=dtype, device=device)
    text = torch.zeros(rows, json.loads((folder / "text_encoder" / "config.json").read_text())["max_position_embeddings"],
                       unet.config.cross_attention_dim, dtype=dtype, device=device)
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    added = {
        "text_embeds": torch.zeros(rows, pooled, dtype=dtype, device=device),
        "time_ids": torch.zeros(rows, 6, dtype=dtype, device=device),
    }

    def seconds() -> float:
        started = time.perf_counter()
        for step in range(steps):
            unet(given, step, encoder_hidden_states=text, added_cond_kwargs=added)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        seconds()
        return 60 * batch / seconds()


@contextmanager
def busy() -> Iterator[list[int]]:
    """Fills a list with the GPU's busy share in per cent, two a second, as long as the block lasts."""
    shares: list[int] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield shares
    finally:
        watching.terminate()
        shares += [int(line) for line in watching.communicate()[0].split()]


@dataclass(frozen=True)
class Rate:
    """Pictures per minute of a long run beyond a short one, the long run's seconds, and the per cent of the time from its first
    work on the GPU to its last in which the GPU was busy."""

    pictures: float
    seconds: float
    busy: float | None

    def __str__(self) -> str:
        return f"{self.pictures:>12.1f}{self.seconds:>12.1f}" + ("" if self.busy is None else f"{self.busy:>12.0f} %")


def rate(environment: Environment, short: Command, long: Command, more: int, device: str) -> Rate:
    """What the two runs give, of which the long one has `more` pictures more."""
    share = None
    [first] = timed(environment, short)
    if device == "cpu":
        [last] = timed(environment, long)
    else:
        with busy() as shares:
            [last] = timed(environment, long)
        working = [index for index, each in enumerate(shares) if each > 50]
        once = shares[working[0] : working[-1] + 1] if working else [0]
        share = sum(once) / len(once)
    return Rate(60 * more / (last.seconds - first.seconds), last.seconds, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="the toybox's shape, for a trial without a GPU")
    chosen = parser.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not chosen.tiny:
        print("no GPU here: nothing measured")
        return
    with tempfile.TemporaryDirectory() as temporary, server() as (environment, _):
        folder = Path(temporary)
        side = 128 if chosen.tiny else 1024
        write_model(folder / "model", device, chosen.tiny)
        counts = {"short": chosen.batch, "long": chosen.batch + chosen.pictures}
        ours, plain = {}, {}
        for name, count in counts.items():
            write_noise(folder / name, count, side)
            write_masks(folder / f"{name}-masks", [path.name for path in (folder / name).iterdir()], side)
            ours[name] = photoloom(
                HERE / "gpu.yaml", "--nodes", HERE / "light_nodes.py", "--set", f"photos={folder / name}/*.png",
                "--set", f"model={folder}/model", "--set", f"dtype={DTYPE[device]}", "--set", f"steps={chosen.steps}",
                "--store", folder / f"{name}-store", "--out", folder / "out", "--allow", folder, batch=chosen.batch,
            )
            plain[name] = script(
                "plain_script.py", folder / name, folder / "plain", "--batch", chosen.batch, "--steps", chosen.steps,
                "--masks", folder / f"{name}-masks", "--inpaint", folder / "model",
            )
        print(f"{chosen.pictures} pictures of {side} × {side}, batch {chosen.batch}, {chosen.steps} steps, on {device}")
        print(f"{'':<20}{'pictures/min':>12}{'whole s':>12}{'GPU busy':>14}")
        mine, theirs = (rate(environment, each["short"], each["long"], chosen.pictures, device) for each in (ours, plain))
        bound = unet_alone(folder / "model", device, chosen.batch, chosen.steps)
        print(f"{'Photoloom':<20}{mine}\n{'script by hand':<20}{theirs}\n{'the UNet alone':<20}{bound:>12.1f}\n")
    print(figure("seconds a picture: Photoloom ÷ script by hand", theirs.pictures / mine.pictures, "", "≤ 1.05"))
    print(figure("seconds a picture: Photoloom ÷ the UNet alone", bound / mine.pictures))
    if mine.busy is not None:
        print(figure("GPU busy while Photoloom's model works", mine.busy, "%", "≥ 95"))


if __name__ == "__main__":
    main()
