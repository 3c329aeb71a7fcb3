"""Repaint a part of a picture, and nothing else of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from nodes.artifacts import Image, Masks
from nodes.base import Model
from nodes.diffusion import Asked, Diffusion, Parts, by_size, load_parts
from nodes.errors import InputError
from nodes.pictures import like, resized
from nodes.refine import enough_steps
from nodes.resident import held

Mask = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""


class Inpaint(Diffusion):
    """Repaint what a mask covers: SDXL inpainting (Podell et al. 2023; blended latents: Avrahami et al. 2023), with a
    model made for it (9 input channels) or a plain one (4).

    The mask is the union of its layers; `invert` repaints everything else (the background). It is widened by
    `mask_expand` pixels (narrowed when negative; by default 4, or 0 with `invert`, where more would eat the object and
    less leave a rim of the old background), which are repainted fully, and beyond them the new picture fades into the
    old one over `mask_blur` pixels. **All other pixels are exactly those of the input**, as are its alpha channel and
    its greyness.

    Only the surroundings go through the model, at its own resolution, so a picture of any size and shape works: the
    mask and `padding` pixels around it, made square as far as the picture allows and no smaller than half the model's
    side; a picture that is no larger than the model's side goes as a whole. `strength` (0..1) is the part of the way
    that noise is added for: 1 paints anew, less keeps something of what was there.

    Without a mask, or with an empty one, the picture passes unchanged and its info says so.

    Raises:
        InputError: the mask is of another size than the picture.
        ModelError: the model is absent or is not SDXL.
    """

    version: ClassVar[str] = "2"
    model: Model = Model(role="inpaint")
    prompt: str
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0
    mask_blur: Annotated[int, Field(ge=0, le=1024)] = 4
    mask_expand: Annotated[int, Field(ge=-1024, le=1024)] | None = None
    padding: Annotated[int, Field(ge=0, le=8192)] = 32
    invert: bool = False

    @model_validator(mode="after")
    def _some_step_is_left(self) -> Self:
        enough_steps(self.strength, self.num_inference_steps)
        return self

    def run(self, image: Image, mask: Masks | None = None) -> Image:
        return self.run_batch([image], [mask], [self.prompt])[0]

    def run_batch(self, image: list[Image], mask: list[Masks | None], prompt: list[str]) -> list[Image]:
        """One result for each picture with its mask and prompt."""
        made = [picture.with_info(note="no mask: passed unchanged") for picture in image]
        weights = [self._weight(picture, masks) for picture, masks in zip(image, mask, strict=True)]
        covered = [i for i, weight in enumerate(weights) if weight is not None]
        if not covered:
            return made
        with held(self.model, load_parts) as parts:
            cuts = [_cut(parts, image[i], weights[i], self.padding) for i in covered]
            asked = [
                Asked(prompt[i], self.seed, {"image": cut.part, "mask_image": cut.region})
                for i, cut in zip(covered, cuts, strict=True)
            ]
            painted = by_size([cut.part.size for cut in cuts], asked, lambda size, some: parts.make(
                "StableDiffusionXLInpaintPipeline", self, some, width=size[0], height=size[1], strength=self.strength))
        for i, cut, each in zip(covered, cuts, painted, strict=True):
            made[i] = Image(_pasted(image[i], cut, each.pixels), info={**each.info, "strength": self.strength})
        return made

    def _weight(self, image: Image, mask: Masks | None) -> Mask | None:
        """uint8 (H, W): how much of each pixel is repainted, from 0 not at all to 255 fully; None where nothing is."""
        if mask is None:
            return None
        if mask.layers.shape[1:] != image.pixels.shape[:2]:
            height, width = mask.layers.shape[1:]
            raise InputError(
                f"Inpaint: the mask is {width}×{height} pixels and the picture {image.width}×{image.height}"
            )
        union = mask.union
        if not union.any():
            return None
        expand = (0 if self.invert else 4) if self.mask_expand is None else self.mask_expand
        full = widened(255 - union if self.invert else union, expand)
        return faded(full, self.mask_blur) if full.any() else None


@dataclass(frozen=True)
class _Cut:
    """What of a picture goes through the model: its place, that part at the model's size, and the region to repaint
    there; and the weight of the whole picture."""

    box: Box
    part: Any
    region: Any
    weight: Mask


def _cut(parts: Parts, image: Image, weight: Any, padding: int) -> _Cut:
    from PIL import Image as pil

    left, top, right, bottom = box = surroundings(weight, padding, parts.size)
    width, height = model_size(right - left, bottom - top, parts.size)
    part = pil.fromarray(resized(image.rgb[top:bottom, left:right], width, height))
    inside = pil.fromarray(weight[top:bottom, left:right]).resize((width, height), pil.Resampling.BILINEAR)
    region = pil.fromarray(whole_cells(np.asarray(inside) >= 128, parts.vae_scale))
    return _Cut(box, part, region, weight)


def _pasted(image: Image, cut: _Cut, painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with what was painted in its place, by the weight of each pixel."""
    left, top, right, bottom = cut.box
    new = image.rgb.copy()
    new[top:bottom, left:right] = resized(painted, right - left, bottom - top)
    share = cut.weight[..., None].astype(np.float32) / 255
    blended = np.round(image.pixels * (1 - share) + like(image, new) * share).astype(np.uint8)
    return np.where(cut.weight[..., None] == 0, image.pixels, blended)


def widened(mask: Mask, by: int) -> Mask:
    """The mask grown by `by` pixels in all directions (a square's shape), or shrunk where `by` is negative.

    Beyond the picture's edge the mask is thought to go on as it is at the edge.
    """
    if by < 0:
        return 255 - widened(255 - mask, -by)
    grown = mask
    for axis in (0, 1):
        reach = min(by, mask.shape[axis] - 1)
        done = 0
        while done < reach:  # each round doubles the reach
            step = min(max(done, 1), reach - done)
            ahead, behind = np.zeros_like(grown), np.zeros_like(grown)
            if axis == 0:
                ahead[step:], behind[:-step] = grown[:-step], grown[step:]
            else:
                ahead[:, step:], behind[:, :-step] = grown[:, :-step], grown[:, step:]
            grown = np.maximum(grown, np.maximum(ahead, behind))
            done += step
    return grown


def faded(mask: Mask, over: int) -> Mask:
    """The mask with an edge that falls from 255 to 0 over `over` pixels, all of it outside of the mask."""
    from PIL import Image as pil
    from PIL import ImageFilter

    if not over:
        return mask
    half = (over + 1) // 2
    soft: Mask = np.asarray(pil.fromarray(widened(mask, half)).filter(ImageFilter.BoxBlur(over / 2)))
    return np.maximum(soft, mask)


def surroundings(weight: Mask, padding: int, side: int) -> Box:
    """The part of the picture that the model is to see."""
    height, width = weight.shape
    if max(width, height) <= side:
        return 0, 0, width, height
    ys, xs = np.nonzero(weight.any(axis=1))[0], np.nonzero(weight.any(axis=0))[0]
    wanted = max(int(xs[-1] - xs[0]), int(ys[-1] - ys[0])) + 1 + 2 * padding
    wanted = max(wanted, side // 2)
    left, right = _span(int(xs[0]), int(xs[-1]) + 1, wanted, width)
    top, bottom = _span(int(ys[0]), int(ys[-1]) + 1, wanted, height)
    return left, top, right, bottom


def _span(low: int, high: int, wanted: int, length: int) -> tuple[int, int]:
    """`wanted` pixels about the middle of low..high, moved inside 0..length, or all of it."""
    wanted = min(wanted, length)
    start = min(max((low + high - wanted) // 2, 0), length - wanted)
    return start, start + wanted


def model_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Multiples of 8 in about the shape of width×height (at most 4 to 1) and with about `side`² pixels."""
    shape = min(max(width / height, 0.25), 4.0)
    return max(8, round(side * math.sqrt(shape) / 8) * 8), max(8, round(side / math.sqrt(shape) / 8) * 8)


def whole_cells(inside: NDArray[np.bool_], cell: int) -> Mask:
    """uint8 (H, W): 255 in each square of `cell` pixels, one latent, that is touched; the pipeline looks at one of its
    pixels only."""
    height, width = inside.shape
    cells = inside.reshape(height // cell, cell, width // cell, cell).any(axis=(1, 3))
    grown: NDArray[np.bool_] = cells.repeat(cell, axis=0).repeat(cell, axis=1)
    return grown.astype(np.uint8) * np.uint8(255)
