"""Go over a picture once more, for finer detail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from nodes.artifacts import Image, Latents
from nodes.base import Model
from nodes.diffusion import Asked, Diffusion, Made, Parts, by_size, load_parts
from nodes.errors import InputError
from nodes.pictures import like, resized
from nodes.resident import held


class Refine(Diffusion):
    """Go over a picture once more: the SDXL refiner (Podell et al. 2023), or any SDXL model, as image-to-image (SDEdit,
    Meng et al. 2022).

    From `image`: noise for `strength` (0..1) of the way is added and taken away again; the picture may have any size
    and keeps it, its alpha and its greyness. From `latents` of a `Generate` with `denoising_end`: the sampler goes on
    at `denoising_start`, with the same `num_inference_steps` (Balaji et al. 2022, "eDiff-I"). `aesthetic_score` and
    `negative_aesthetic_score` steer refiners that know them. The info holds the seed and the effective steps.

    Raises:
        InputError: not exactly one of `image` and `latents`, `denoising_start` without latents or the other way round,
            or latents of another model family.
        ModelError: the model is absent or is not SDXL.
    """

    version: ClassVar[str] = "2"
    model: Model = Model(role="refine")
    prompt: str = ""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.3
    denoising_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    @model_validator(mode="after")
    def _some_step_is_left(self) -> Self:
        if self.denoising_start is None:
            enough_steps(self.strength, self.num_inference_steps)
        return self

    def run(self, image: Image | None = None, latents: Latents | None = None) -> Image:
        return self.run_batch([image], [latents], [self.prompt])[0]

    def run_batch(self, image: list[Image | None], latents: list[Latents | None], prompt: list[str]) -> list[Image]:
        """One result for each picture or its latents, with its prompt."""
        pictures = [each for each in image if each is not None]
        spaces = [each for each in latents if each is not None]
        if len(pictures) + len(spaces) != len(prompt) or (pictures and spaces):
            raise InputError(f"Refine: wire either image or latents, not {'both' if pictures else 'neither'}")
        with held(self.model, load_parts) as parts:
            return self._images(parts, pictures, prompt) if pictures else self._latents(parts, spaces, prompt)

    def _images(self, parts: Parts, pictures: Sequence[Image], prompt: Sequence[str]) -> list[Image]:
        if self.denoising_start is not None:
            raise InputError("Refine: denoising_start goes on with latents; for an image give strength")
        from PIL import Image as pil

        sizes = [(max(64, round(p.width / 8) * 8), max(64, round(p.height / 8) * 8)) for p in pictures]
        asked = [
            Asked(words, self.seed, {"image": pil.fromarray(resized(picture.rgb, *size))})
            for words, picture, size in zip(prompt, pictures, sizes, strict=True)
        ]
        made = by_size(sizes, asked, lambda _, some: self._make(parts, some))
        return [
            Image(like(picture, resized(each.pixels, picture.width, picture.height)),
                  info={**each.info, "strength": self.strength})
            for picture, each in zip(pictures, made, strict=True)
        ]

    def _latents(self, parts: Parts, latents: Sequence[Latents], prompt: Sequence[str]) -> list[Image]:
        if self.denoising_start is None:
            raise InputError("Refine: latents need denoising_start, the denoising_end that they were made with")
        tensors = [_in_space_of(parts, each) for each in latents]
        asked = [Asked(words, self.seed, {"image": tensor}) for words, tensor in zip(prompt, tensors, strict=True)]
        made = by_size([each.shape for each in tensors], asked, lambda _, some: self._make(
            parts, some, denoising_start=self.denoising_start))
        return [Image(each.pixels, info={**each.info, "denoising_start": self.denoising_start}) for each in made]

    def _make(self, parts: Parts, asked: Sequence[Asked], **more: float | None) -> list[Made]:
        return parts.make(
            "StableDiffusionXLImg2ImgPipeline", self, asked, strength=self.strength, aesthetic_score=self.aesthetic_score,
            negative_aesthetic_score=self.negative_aesthetic_score, **more,
        )


def _in_space_of(parts: Parts, latents: Latents) -> Any:
    """The tensor (1, C, h, w) that the model goes on with.

    Raises:
        InputError: it is of another model's space.
    """
    channels = parts.components["vae"].config.latent_channels
    if latents.tensor.shape[0] != channels or abs(latents.scaling - parts.scaling) > 1e-3 * parts.scaling:
        raise InputError(
            f"Refine: the latents ({latents.tensor.shape[0]} channels, scaling {latents.scaling:.4g}) are not of "
            f"this model's space ({channels} channels, scaling {parts.scaling:.4g}); both models must share one VAE"
        )
    import torch

    return torch.from_numpy(latents.tensor.copy())[None].to(parts.components["unet"].dtype)


def enough_steps(strength: float, steps: int) -> None:
    """Raise ValueError where `strength` of `steps` is less than one step."""
    if int(steps * strength) < 1:
        least = next(n for n in range(1, 10**6) if int(n * strength) >= 1)
        raise ValueError(
            f"strength {strength:g} of {steps} steps leaves none; num_inference_steps must be at least {least}"
        )
