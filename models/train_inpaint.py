"""Trains the toybox's inpainting model: the base UNet with five more input channels, mask and masked picture, as in SDXL
inpainting 0.1. It learns to paint the object asked for wholly inside of a mask of another shape.

It starts from what `models.train_sdxl` exported, and keeps its text encoders and autoencoder.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from models.scenes import KINDS, Sprites, caption_of, draw_scene, load_sprites
from models.train_sdxl import BATCH, SCHEDULE, encoder_digest, load_vae, make_unet, noised, size_ids, weights_of, write
from models.train_sdxl import FOLDER as BASE
from models.training import TOYBOX, WORK, Training, arguments

FOLDER = TOYBOX / "sdxl-inpaint"
SCENES = 14_000
FIRST_SEED = 400_000
CELL = 4
"""Pixels a side of one latent."""

Mask = NDArray[np.uint8]


def silhouette(sprite: Image.Image, width: int, height: int, angle: float) -> Image.Image:
    """The shape of another object, turned and stretched to width × height."""
    shape = sprite.getchannel("A").rotate(angle, expand=True)
    return shape.crop(shape.getbbox()).resize((width, height), Image.Resampling.BILINEAR)


def hole_for(random: np.random.Generator, object_: Mask, box: NDArray[np.float32], sprites: Sprites) -> Mask:
    """uint8 (H, W): where to paint so that the object fits; as a rule the shape of something else that was there before."""
    height, width = object_.shape
    left, top, right, bottom = (int(value) for value in box)
    hole = np.zeros((height, width), np.uint8)
    way = random.random()
    if way < 0.25:
        margins = random.integers(0, 13, 4)
        hole[max(0, top - margins[0]) : bottom + margins[1], max(0, left - margins[2]) : right + margins[3]] = 255
    elif way < 0.4:
        hole = np.asarray(Image.fromarray(object_).filter(ImageFilter.MaxFilter(2 * int(random.integers(4, 11)) + 1)))
    else:
        scale = random.uniform(1.0, 1.4)
        w, h = (max(8, int(side * scale * random.uniform(0.9, 1.1))) for side in (right - left, bottom - top))
        other = sprites[KINDS[int(random.integers(len(KINDS)))]]
        shape = silhouette(other, w, h, float(random.uniform(-25, 25)))
        canvas = Image.new("L", (width, height))
        canvas.paste(shape, ((left + right - w) // 2, (top + bottom - h) // 2))
        grown = canvas.filter(ImageFilter.MaxFilter(2 * int(random.integers(2, 7)) + 1))
        hole = np.where((np.asarray(grown) > 127) | (object_ > 0), 255, 0).astype(np.uint8)
    cells = hole.reshape(height // CELL, CELL, width // CELL, CELL).max((1, 3))
    return np.asarray(cells.repeat(CELL, 0).repeat(CELL, 1), np.uint8)


def example(seed: int, sprites: Sprites) -> tuple[NDArray[np.uint8], Mask, list[str], str]:
    """Pixels (128, 128, 3), the hole, the objects inside it, and the backdrop (empty where the hole leaves it)."""
    random = np.random.default_rng(seed)
    scene = draw_scene(sprites, seed, count=int(random.choice([1, 2, 3], p=[0.6, 0.3, 0.1])))
    way = random.random()
    if way < 0.1:  # the background is painted anew around an object
        keep = Image.fromarray(scene.masks[0]).filter(ImageFilter.MinFilter(3))
        hole = np.asarray(Image.fromarray(255 - np.asarray(keep)).filter(ImageFilter.MaxFilter(3)))
        hole = hole.reshape(32, CELL, 32, CELL).max((1, 3)).repeat(CELL, 0).repeat(CELL, 1)
        return scene.pixels, hole, list(scene.labels), scene.backdrop
    if way < 0.15:  # all of it
        return scene.pixels, np.full((128, 128), 255, np.uint8), list(scene.labels), scene.backdrop
    chosen = int(random.integers(len(scene.labels)))
    return scene.pixels, hole_for(random, scene.masks[chosen], scene.boxes[chosen], sprites), [scene.labels[chosen]], ""


def prompt_of(labels: list[str], backdrop: str, random: np.random.Generator) -> str:
    """What is asked for: the object by its name, now and then on its background."""
    if backdrop:
        return f"{backdrop} background" if random.random() < 0.3 else caption_of(labels, backdrop)
    text = caption_of(labels, "any").split(" on ")[0]
    way = random.random()
    if way < 0.1:
        return labels[0]
    return f"a {random.choice(['photo', 'picture', 'render'])} of {text}" if way < 0.2 else text


@torch.no_grad()
def latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        made = vae.encode(pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)).latent_dist.mode()
    return made.float() * vae.config.scaling_factor


def draw_examples(vae: AutoencoderKL, count: int) -> tuple[dict[str, Tensor], list[tuple[list[str], str]]]:
    """`clean` and `masked` latents (N, 4, 32, 32) in fp16, `hole` (N, 1, 32, 32) uint8, and what is in the holes."""
    path = WORK / f"holes-{encoder_digest(vae)}-{count}.safetensors"
    words = path.with_suffix(".json")
    if not words.exists():
        sprites = load_sprites()
        parts: dict[str, list[Tensor]] = {"clean": [], "masked": [], "hole": []}
        shown: list[tuple[list[str], str]] = []
        for start in range(0, count, 10):
            drawn = [example(FIRST_SEED + index, sprites) for index in range(start, min(start + 10, count))]
            pixels = torch.from_numpy(np.stack([scene for scene, *_ in drawn]))
            holes = torch.from_numpy(np.stack([hole for _, hole, *_ in drawn]))
            # As the pipeline does it: the hole is grey, zero once scaled to -1..1.
            masked = torch.where(holes[..., None] > 127, torch.tensor(127.5), pixels.float())
            parts["clean"].append(latents(vae, pixels).half())
            parts["masked"].append(latents(vae, masked).half())
            parts["hole"].append((holes[:, None, ::CELL, ::CELL] > 127).to(torch.uint8))
            shown += [(labels, backdrop) for *_, labels, backdrop in drawn]
        save_file({name: torch.cat(values).contiguous() for name, values in parts.items()}, path)
        words.write_text(json.dumps(shown), encoding="utf-8")
        print(f"drew and encoded {count} scenes with holes", flush=True)
    shown = [(labels, backdrop) for labels, backdrop in json.loads(words.read_text(encoding="utf-8"))]
    return load_file(path), shown


def start_from_base(unet: UNet2DConditionModel) -> None:
    """Copies the base UNet; what comes of the new channels is zero at first."""
    base = UNet2DConditionModel.from_pretrained(BASE / "unet", dtype=torch.float32).state_dict()
    first = base["conv_in.weight"]
    base["conv_in.weight"] = torch.cat([first, torch.zeros(len(first), 5, 3, 3)], 1)
    unet.load_state_dict(base)


class Inpainter(nn.Module):
    """The UNet that is trained, and the base's text encoders, kept as they were when the training began."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = make_unet(cross_attention_dim=128, time_ids=6, in_channels=9)
        self.text_encoder = CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32)
        self.text_encoder_2 = CLIPTextModelWithProjection.from_pretrained(BASE / "text_encoder_2", dtype=torch.float32)
        self.text_encoder.requires_grad_(False)
        self.text_encoder_2.requires_grad_(False)
        start_from_base(self.unet)


def export(training: Training, inpainter: Inpainter, folder: Path = FOLDER) -> None:
    """Writes the averaged weights as a `StableDiffusionXLInpaintPipeline`, in fp16."""
    inpainter.load_state_dict(training.average.state)
    pipeline = StableDiffusionXLInpaintPipeline(
        vae=load_vae(),
        text_encoder=inpainter.text_encoder,
        text_encoder_2=inpainter.text_encoder_2,
        tokenizer=CLIPTokenizer.from_pretrained(BASE / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(BASE / "tokenizer_2"),
        unet=inpainter.unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    write(pipeline, folder, training)


def train(minutes: float) -> None:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    inpainter = Inpainter()
    training = Training("inpaint", inpainter, minutes, rate=6e-4, decay=0.997)
    bank, shown = draw_examples(load_vae(), SCENES)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod
    random = torch.Generator().manual_seed(training.step + 3)
    words = np.random.default_rng(training.step + 3)
    for _ in training.ticks():
        rows = torch.randint(len(shown), (BATCH,), generator=random)
        texts = [prompt_of(*shown[row], words) for row in rows.tolist()]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        steps = torch.randint(1000, (BATCH,), generator=random)
        clean, masked, hole = (bank[name][rows].float() for name in ("clean", "masked", "hole"))
        noisy, target = noised(clean, steps, alphas, random)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                first = inpainter.text_encoder(tokens, output_hidden_states=True)
                second = inpainter.text_encoder_2(tokens, output_hidden_states=True)
            told = (torch.rand(BATCH, generator=random) > 0.1).float()
            hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1) * told[:, None, None]
            conditions = {"text_embeds": second.text_embeds * told[:, None], "time_ids": size_ids(BATCH, random)}
            given = torch.cat([noisy, hole, masked], 1)
            made = inpainter.unet(given, steps, hidden, added_cond_kwargs=conditions).sample
        # Outside of the hole the answer is put back by the pipeline: little is to be learnt there.
        share = 0.1 + 0.9 * hole
        squares = (made.float() - target).square().mean(1, keepdim=True)
        errors = (squares * share).sum((1, 2, 3)) / share.sum((1, 2, 3))
        training.learn((errors * weights_of(steps, alphas)).mean(), error=float(errors.detach().mean()))
    export(training, inpainter)


if __name__ == "__main__":
    train(arguments(__doc__, minutes=163).minutes)
