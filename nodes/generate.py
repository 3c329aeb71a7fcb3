"""Make pictures from words."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from nodes.artifacts import Image, Latents
from nodes.base import Model
from nodes.diffusion import Diffusion, load_parts
from nodes.models import held

Side = Annotated[int, Field(ge=64, le=8192, multiple_of=8)]


class Generated(NamedTuple):
    """The pictures, and each as it left the sampler, in the model's own space."""

    images: list[Image]
    latents: list[Latents]


class Generate(Diffusion):
    """Make pictures from a prompt: SDXL (Podell et al. 2023).

    `count` pictures, of seed `seed`, `seed + 1`, …, each made alone: in a batch the last bits of the arithmetic
    differ (measured on a CPU: one colour value in 16,000, by 1), and a picture must be the same however it is made.
    `width` and `height` are in pixels, multiples of 8, and by default the model's own. With `denoising_end` (0..1)
    the sampler stops at that part of the way: the latents still hold noise, for a `Refine` with the same
    `denoising_start`, and the pictures show that state. `guidance_scale` is that of classifier-free guidance (Ho and
    Salimans 2022); `scheduler` is by default the model's own. Each picture's info holds what makes it again: prompt,
    seed, effective steps, scheduler, size.

    Raises:
        ModelError: the model is absent or is not SDXL.
    """

    version: ClassVar[str] = "1"
    model: Model = Model(role="generate")
    prompt: str
    width: Side | None = None
    height: Side | None = None
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    denoising_end: Annotated[float, Field(gt=0, lt=1)] | None = None

    def run(self) -> Generated:
        images, latents = [], []
        with held(self.model, load_parts) as parts:
            for seed in range(self.seed, self.seed + self.count):
                made = parts.call(
                    "StableDiffusionXLPipeline", self, self.prompt, seed,
                    width=self.width or parts.size, height=self.height or parts.size, denoising_end=self.denoising_end,
                )
                info = made.info if self.denoising_end is None else {**made.info, "denoising_end": self.denoising_end}
                images.append(Image(made.pixels, info=info))
                latents.append(Latents(made.latents, parts.scaling, info=info))
        return Generated(images, latents)
