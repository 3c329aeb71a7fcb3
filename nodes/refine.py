"""Go over a picture once more, for finer detail."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from nodes.artifacts import Image, Latents
from nodes.base import Model
from nodes.diffusion import Diffusion, Made, Parts, like, load_parts, resized
from nodes.errors import InputError
from nodes.models import held


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

    version: ClassVar[str] = "1"
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
        if (image is None) == (latents is None):
            raise InputError(f"Refine: wire either image or latents, not {'both' if image else 'neither'}")
        with held(self.model, load_parts) as parts:
            if image is not None:
                return self._image(parts, image)
            assert latents is not None
            return self._latents(parts, latents)

    def _image(self, parts: Parts, image: Image) -> Image:
        if self.denoising_start is not None:
            raise InputError("Refine: denoising_start goes on with latents; for an image give strength")
        from PIL import Image as pil

        width, height = (max(64, round(side / 8) * 8) for side in (image.width, image.height))
        made = self._call(parts, pil.fromarray(resized(image.rgb, width, height)))
        rgb = resized(made.pixels, image.width, image.height)
        return Image(like(image, rgb), info={**made.info, "strength": self.strength})

    def _latents(self, parts: Parts, latents: Latents) -> Image:
        if self.denoising_start is None:
            raise InputError("Refine: latents need denoising_start, the denoising_end that they were made with")
        channels = parts.components["vae"].config.latent_channels
        if latents.tensor.shape[0] != channels or abs(latents.scaling - parts.scaling) > 1e-3 * parts.scaling:
            raise InputError(
                f"Refine: the latents ({latents.tensor.shape[0]} channels, scaling {latents.scaling:.4g}) are not of "
                f"this model's space ({channels} channels, scaling {parts.scaling:.4g}); both models must share one VAE"
            )
        import torch

        tensor = torch.from_numpy(latents.tensor.copy())[None].to(parts.components["unet"].dtype)
        made = self._call(parts, tensor, denoising_start=self.denoising_start)
        return Image(made.pixels, info={**made.info, "denoising_start": self.denoising_start})

    def _call(self, parts: Parts, picture: object, **arguments: float) -> Made:
        return parts.call(
            "StableDiffusionXLImg2ImgPipeline", self, self.prompt, self.seed, image=picture, strength=self.strength,
            aesthetic_score=self.aesthetic_score, negative_aesthetic_score=self.negative_aesthetic_score, **arguments,
        )


def enough_steps(strength: float, steps: int) -> None:
    """Raise ValueError where `strength` of `steps` is less than one step."""
    if int(steps * strength) < 1:
        least = next(n for n in range(1, 10**6) if int(n * strength) >= 1)
        raise ValueError(
            f"strength {strength:g} of {steps} steps leaves none; num_inference_steps must be at least {least}"
        )
