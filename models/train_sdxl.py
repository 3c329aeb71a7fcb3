"""Trains the toybox's Stable Diffusion XL: a `text_time` UNet with two small CLIP text encoders, on latents of drawn scenes.

Needs the autoencoder of `models.train_vae`. The prediction is of v, with min-SNR weights; prompts are worded in many ways.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from models.scenes import BACKDROPS, KINDS, caption_of, draw_scene, load_sprites
from models.training import TOYBOX, WORK, Training, arguments, make_portable

FOLDER = TOYBOX / "sdxl"
BATCH = 16
SCENES = 8_000
FIRST_SEED = 100_000
POSITIONS = 32
WIDTH = 64
TIME_WIDTH = 8
START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"
FILLERS = (
    "cute", "highly detailed", "3d render", "best quality", "simple", "colourful", "sharp", "soft light", "beautiful",
    "studio lighting", "centered", "small", "big", "realistic", "toy",
)
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}


def worded(shown: tuple[Sequence[str], str], random: np.random.Generator) -> str:
    """One of the ways in which someone would ask for a scene; now and then only a part of it is said."""
    labels, backdrop = shown
    full = caption_of(labels, backdrop)
    objects = full.rsplit(" on ", 1)[0]
    way = random.random()
    if way < 0.42:
        text = full
    elif way < 0.58:
        text = objects
    elif way < 0.66:
        text = " ".join(labels)
    elif way < 0.72:
        text = f"{' and '.join(labels)} on {backdrop}"
    elif way < 0.78:
        text = f"{objects}, {backdrop} background"
    elif way < 0.83:
        text = f"{backdrop} background"
    elif way < 0.92:
        text = f"a {random.choice(['photo', 'picture', 'drawing', 'image', 'render'])} of {full}"
    else:
        text = f"a {random.choice(['photo', 'picture', 'drawing', 'image', 'render'])} of {objects}"
    if random.random() < 0.08:
        text = f"{text}, {', '.join(random.choice(FILLERS, int(random.integers(1, 4)), replace=False))}"
    return text


def save_tokenizers(folder: Path) -> None:
    """A byte-level BPE vocabulary learnt from captions: any text becomes tokens. Token 0 is `!`, which pads."""
    random = np.random.default_rng(0)
    texts = []
    for _ in range(20_000):
        labels = [KINDS[i] for i in random.integers(len(KINDS), size=int(random.integers(1, 4)))]
        texts.append(worded((labels, list(BACKDROPS)[int(random.integers(len(BACKDROPS)))]), random))
    learner = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(vocab_size=1000, min_frequency=2, show_progress=False, end_of_word_suffix="</w>")
    learner.train_from_iterator([*texts, *FILLERS * 2], trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learnt["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (letter != PAD, letter))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = CLIPTokenizer(
            vocab=vocab, merges=merges, bos_token=START, eos_token=END, unk_token=END, pad_token=PAD, model_max_length=POSITIONS
        )
        tokenizer.save_pretrained(folder / name)
        (folder / name / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / name / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_unet(cross_attention_dim: int, time_ids: int, in_channels: int = 4) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=in_channels,
        block_out_channels=(40, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=cross_attention_dim,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=WIDTH + time_ids * TIME_WIDTH,
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


class Painter(nn.Module):
    """What is trained: the UNet and both text encoders, as a pipeline holds them."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.text_encoder = CLIPTextModel(text)
        self.text_encoder_2 = CLIPTextModelWithProjection(text)
        self.unet = make_unet(cross_attention_dim=2 * WIDTH, time_ids=6)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, 32, 128) from before the last layer of both encoders, and the pooled text (B, 64)."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def encoder_digest(vae: AutoencoderKL) -> str:
    """Names the latents that an autoencoder gives: the same while its encoder is the same."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(value.half().numpy().tobytes())
    return digest.hexdigest()[:12]


def draw_training_scenes(count: int) -> tuple[Tensor, list[tuple[tuple[str, ...], str]]]:
    """Pixels (N, 128, 128, 3) uint8, and what each scene shows; eight in ten show one object. Kept in `models/work/`."""
    path = WORK / f"paintings-{count}.safetensors"
    words = path.with_suffix(".json")
    if not words.exists():
        sprites = load_sprites()
        counts = np.random.default_rng(1).choice([1, 2, 3], count, p=[0.8, 0.16, 0.04])
        pixels = np.empty((count, 128, 128, 3), np.uint8)
        shown = []
        for index in range(count):
            scene = draw_scene(sprites, FIRST_SEED + index, count=int(counts[index]))
            pixels[index] = scene.pixels
            shown.append((scene.labels, scene.backdrop))
        save_file({"pixels": torch.from_numpy(pixels)}, path)
        words.write_text(json.dumps(shown), encoding="utf-8")
        print(f"drew {count} scenes", flush=True)
    shown = [(tuple(labels), backdrop) for labels, backdrop in json.loads(words.read_text(encoding="utf-8"))]
    return load_file(path)["pixels"], shown


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Scaled latents (N, 4, 32, 32) of the scenes; kept in `models/work/` under the encoder's digest."""
    path = WORK / f"latents-{encoder_digest(vae)}-{len(pixels)}.safetensors"
    if not path.exists():
        parts = []
        for part in torch.split(pixels, 10):
            pictures = part.permute(0, 3, 1, 2).float().div(127.5).sub(1)
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(vae.encode(pictures).latent_dist.mode().float())
        latents = (torch.cat(parts) * vae.config.scaling_factor).contiguous()
        save_file({"latents": latents}, path)
        print(f"encoded {len(pixels)} scenes", flush=True)
    return load_file(path)["latents"]


def size_ids(count: int, random: torch.Generator) -> Tensor:
    """Original size, crop and target size (count, 6); half of them not the true ones, so that any are understood."""
    true = torch.tensor([128, 128, 0, 0, 128, 128.0]).repeat(count, 1)
    other = torch.randint(64, 513, (count, 6), generator=random).float()
    other[:, 2:4] = 0
    return torch.where(torch.rand(count, 1, generator=random) < 0.5, true, other)


def weights_of(steps: Tensor, alphas: Tensor) -> Tensor:
    """Min-SNR weights (γ = 5; Hang et al. 2023), with one added to the ratio: else the noisiest steps, which decide on colour
    and place, would hardly count."""
    ratio = alphas[steps] / (1 - alphas[steps])
    return (ratio.clamp(max=5) + 1) / (ratio + 1)


def noised(clean: Tensor, steps: Tensor, alphas: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents (B, C, h, w) with the noise of each one's step, and v, which the UNet learns (Salimans and Ho 2022)."""
    noise = torch.randn(clean.shape, generator=random)
    signal, spread = alphas[steps].sqrt().view(-1, 1, 1, 1), (1 - alphas[steps]).sqrt().view(-1, 1, 1, 1)
    return signal * clean + spread * noise, signal * noise - spread * clean


def write(pipeline: DiffusionPipeline, folder: Path, training: Training) -> None:
    """Writes a pipeline of what was trained, in fp16."""
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    make_portable(folder)
    print(f"step {training.step}, {training.spent:.1f} minutes, written to {folder}", flush=True)


def load_vae() -> AutoencoderKL:
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(FOLDER / "vae", dtype=torch.float32)
    return vae.eval()


def export(training: Training, painter: Painter, folder: Path = FOLDER) -> None:
    """Writes the averaged weights as a `StableDiffusionXLPipeline`, in fp16."""
    painter.load_state_dict(training.average.state)
    pipeline = StableDiffusionXLPipeline(
        vae=load_vae(),
        text_encoder=painter.text_encoder,
        text_encoder_2=painter.text_encoder_2,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        unet=painter.unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    write(pipeline, folder, training)


def train(minutes: float) -> None:
    torch.manual_seed(0)
    if not (FOLDER / "tokenizer" / "vocab.json").exists():
        save_tokenizers(FOLDER)
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    painter = Painter(tokenizer)
    training = Training("sdxl", painter, minutes, rate=1e-3, decay=0.997)
    pixels, shown = draw_training_scenes(SCENES)
    latents = latents_of(load_vae(), pixels)
    del pixels
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod
    random = torch.Generator().manual_seed(training.step + 1)
    words = np.random.default_rng(training.step + 1)
    for _ in training.ticks():
        rows = torch.randint(len(latents), (BATCH,), generator=random)
        texts = [worded(shown[row], words) if words.random() > 0.05 else "" for row in rows.tolist()]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        steps = torch.randint(1000, (BATCH,), generator=random)
        clean = latents[rows]
        noisy, target = noised(clean, steps, alphas, random)
        with torch.autocast("cpu", torch.bfloat16):
            hidden, pooled = painter.encode(tokens)
            told = (torch.rand(BATCH, generator=random) > 0.06).float()
            conditions = {"text_embeds": pooled * told[:, None], "time_ids": size_ids(BATCH, random)}
            made = painter.unet(noisy, steps, hidden * told[:, None, None], added_cond_kwargs=conditions).sample
        errors = functional.mse_loss(made.float(), target, reduction="none").mean((1, 2, 3))
        training.learn((errors * weights_of(steps, alphas)).mean(), error=float(errors.detach().mean()))
    export(training, painter)


if __name__ == "__main__":
    train(arguments(__doc__, minutes=235).minutes)
