"""Make pictures from words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from nodes.artifacts import Image, Latents
from nodes.base import Model
from nodes.batches import in_batches
from nodes.diffusion import Asked, Diffusion, Made, Parts, load_parts
from nodes.resident import held, shortage

Side = Annotated[int, Field(ge=64, le=8192, multiple_of=8)]


class Generated(NamedTuple):
    """The pictures, and each as it left the sampler, in the model's own space."""

    images: list[Image]
    latents: list[Latents]


class Generate(Diffusion):
    """Make pictures from a prompt: SDXL (Podell et al. 2023).

    `count` pictures, of seed `seed`, `seed + 1`, …, each the same as when it is made alone: to the last bit on a
    processor; on a GPU the arithmetic of a batch differs in its last bits.
    `width` and `height` are in pixels, multiples of 8, and by default the model's own. With `denoising_end` (0..1)
    the sampler stops at that part of the way: the latents still hold noise, for a `Refine` with the same
    `denoising_start`, and the pictures show that state. `guidance_scale` is that of classifier-free guidance (Ho and
    Salimans 2022); `scheduler` is by default the model's own. In a pipeline each picture is an element by itself: it is
    made, kept and tried again alone, and one more makes one more. Each picture's info holds what makes it again: prompt,
    seed, effective steps, scheduler, size.

    Raises:
        ModelError: the model is absent or is not SDXL.
    """

    version: ClassVar[str] = "3"
    counted: ClassVar[tuple[str, ...]] = ("count", "seed")
    model: Model = Model(role="generate")
    prompt: str
    width: Side | None = None
    height: Side | None = None
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    denoising_end: Annotated[float, Field(gt=0, lt=1)] | None = None

    def run(self) -> Generated:
        return self.run_batch([self.prompt], [self.seed])[0]

    def run_batch(self, prompt: list[str], seed: list[int]) -> list[Generated]:
        """The pictures of each prompt and its first seed."""
        asked = [Asked(words, first + i) for words, first in zip(prompt, seed, strict=True) for i in range(self.count)]
        with held(self.model, load_parts) as parts:
            make = partial(self._made, parts)
            # Of one picture each, whoever called has grouped them.
            made = make(asked) if self.count == 1 else in_batches(asked, make)
            pictures = [self._picture(parts, each) for each in made]
        return [
            Generated(*map(list, zip(*pictures[start : start + self.count], strict=True)))
            for start in range(0, len(pictures), self.count)
        ]

    def _made(self, parts: Parts, asked: Sequence[Asked]) -> list[Made]:
        with shortage(self.model):
            return parts.make(
                "StableDiffusionXLPipeline", self, asked, width=self.width or parts.size, height=self.height or parts.size,
                denoising_end=self.denoising_end,
            )

    def _picture(self, parts: Parts, made: Made) -> tuple[Image, Latents]:
        info = made.info if self.denoising_end is None else {**made.info, "denoising_end": self.denoising_end}
        return Image(made.pixels, info=info), Latents(made.latents, parts.scaling, info=info)
