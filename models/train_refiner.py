"""Trains the toybox's refiner: the base UNet's weights, fine-tuned on low noise alone, in the layout of SDXL's refiner.

As in the real one there is only the second text encoder, and an aesthetic score stands in place of the target size.
It starts from what `models.train_sdxl` exported.
"""


import numpy as np
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from models.train_sdxl import (
    FOLDER as BASE,
)
from models.train_sdxl import (
    SCENES,
    SCHEDULE,
    TIME_WIDTH,
    WIDTH,
    draw_training_scenes,
    latents_of,
    load_vae,
    make_unet,
    noised,
    worded,
    write,
)
from models.training import TOYBOX, Training, arguments

FOLDER = TOYBOX / "sdxl-refiner"
BATCH = 16
HIGHEST_STEP = 400
"""Of 1,000: the refiner never sees more noise than this."""
GOOD, POOR = 6.0, 2.5
"""Aesthetic scores, as the pipeline gives them with the prompt and with the negative prompt."""


def start_from_base(unet: UNet2DConditionModel) -> None:
    """Copies the base UNet; what looked at the first text encoder or the target size is left out."""
    base = UNet2DConditionModel.from_pretrained(BASE / "unet", dtype=torch.float32).state_dict()
    state = unet.state_dict()
    shared = WIDTH + 4 * TIME_WIDTH
    for name, value in base.items():
        if value.shape == state[name].shape:
            state[name] = value
        elif name == "add_embedding.linear_1.weight":
            state[name] = torch.cat([value[:, :shared], torch.zeros(len(value), TIME_WIDTH)], 1)
        else:
            state[name] = value[:, WIDTH:]
    sizes = base["add_embedding.linear_1.weight"][:, shared:].unflatten(1, (2, TIME_WIDTH)).sum(1)
    state["add_embedding.linear_1.bias"] += time_code(128.0) @ sizes.T
    unet.load_state_dict(state)


def time_code(size: float) -> Tensor:
    """The code that the UNet makes of a number such as 128 pixels; (8,)."""
    angles = size * torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(TIME_WIDTH // 2) / (TIME_WIDTH // 2))
    return torch.cat([angles.cos(), angles.sin()])


class Refiner(nn.Module):
    """The UNet that is trained, and the base's second text encoder, kept as it was when the training began."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = make_unet(cross_attention_dim=WIDTH, time_ids=5)
        self.text_encoder_2 = CLIPTextModelWithProjection.from_pretrained(BASE / "text_encoder_2", dtype=torch.float32)
        self.text_encoder_2.requires_grad_(False)
        start_from_base(self.unet)


def export(training: Training, refiner: Refiner) -> None:
    """Writes the averaged weights as a `StableDiffusionXLImg2ImgPipeline`, in fp16."""
    refiner.load_state_dict(training.average.state)
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=load_vae(),
        text_encoder=None,
        text_encoder_2=refiner.text_encoder_2,
        tokenizer=None,
        tokenizer_2=CLIPTokenizer.from_pretrained(BASE / "tokenizer_2"),
        unet=refiner.unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    write(pipeline, FOLDER, training)


def train(minutes: float) -> None:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer_2")
    refiner = Refiner()
    training = Training("refiner", refiner, minutes, rate=2e-4, decay=0.997)
    pixels, shown = draw_training_scenes(SCENES)
    latents = latents_of(load_vae(), pixels)
    del pixels
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod
    random = torch.Generator().manual_seed(training.step + 2)
    words = np.random.default_rng(training.step + 2)
    for _ in training.ticks():
        rows = torch.randint(len(latents), (BATCH,), generator=random)
        told = torch.rand(BATCH, generator=random) > 0.1
        texts = [
            worded(shown[row], words) if said else "" for row, said in zip(rows.tolist(), told.tolist(), strict=True)
        ]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        steps = torch.randint(HIGHEST_STEP, (BATCH,), generator=random)
        clean = latents[rows]
        noisy, target = noised(clean, steps, alphas, random)
        ids = torch.tensor([128, 128, 0, 0, GOOD]).repeat(BATCH, 1)
        ids[:, 4] = torch.where(told, GOOD, POOR)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                text = refiner.text_encoder_2(tokens, output_hidden_states=True)
            conditions = {"text_embeds": text.text_embeds, "time_ids": ids}
            made = refiner.unet(noisy, steps, text.hidden_states[-2], added_cond_kwargs=conditions).sample
        training.learn(functional.mse_loss(made.float(), target))
    export(training, refiner)


if __name__ == "__main__":
    train(arguments(__doc__, minutes=10).minutes)
