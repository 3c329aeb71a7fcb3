"""What Detect, Segment and Embed share: loading a transformers vision model, and bringing pictures before it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nodes.artifacts import Image
from nodes.resident import Place

T = TypeVar("T")

MIN_SIDE, MAX_SHAPE = 8, 32
"""Processors take a side of 1 or 3 pixels for the channels, and scale a very narrow picture to nothing."""


@dataclass(frozen=True)
class Vision:
    """A loaded vision model with its processor, and where it is."""

    model: Any
    processor: Any
    place: Place

    def inputs(self, picture: Image) -> dict[str, Any]:
        """What the model is to see, as arguments of its call, on the CPU in float32: `pixel_values` (1, 3, h, w), and
        `pixel_mask` (1, h, w), 0 where the processor padded the picture, if the model takes it."""
        made = self.processor(images=[seen(picture)], return_tensors="pt")
        taken = inspect.signature(self.model.forward).parameters
        return {name: made[name] for name in ("pixel_values", "pixel_mask") if name in made and name in taken}

    @property
    def modules(self) -> Sequence[Any]:
        """The torch modules."""
        return (self.model,)

    def batched(self, pictures: Sequence[Image], work: Callable[[Any, Sequence[Image]], Sequence[T]]) -> list[T]:
        """`work(inputs, pictures)` on those pictures together that the processor brings to one size, results in order."""
        return self.place.spread(pictures, lambda share: self._batched(share, work))

    def _batched(self, pictures: Sequence[Image], work: Callable[[Any, Sequence[Image]], Sequence[T]]) -> list[T]:
        import torch

        prepared = [self.inputs(picture) for picture in pictures]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, each in enumerate(prepared):
            groups.setdefault(tuple(each["pixel_values"].shape), []).append(index)
        found: dict[int, T] = {}
        for group in groups.values():
            together = {name: torch.cat([prepared[index][name] for index in group]) for name in prepared[group[0]]}
            together = {name: tensor.to(self.place.device) for name, tensor in together.items()}
            together["pixel_values"] = together["pixel_values"].to(self.place.dtype)
            with torch.inference_mode():
                found.update(zip(group, work(together, [pictures[index] for index in group]), strict=True))
        return [found[index] for index in range(len(pictures))]


def seen(picture: Image) -> NDArray[np.uint8]:
    """uint8 (H, W, 3): a picture that is very small or narrow is widened to the right and below by its own edge."""
    height, width = picture.height, picture.width
    least = max(MIN_SIDE, max(height, width) // MAX_SHAPE)
    more = ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0))
    return np.pad(picture.rgb, more, mode="edge") if any(after for _, after in more) else picture.rgb


def load_vision(place: Place, model_class: str, kinds: Sequence[str] = ()) -> Vision:
    """The model in a folder, of one of the `kinds` (transformers' `model_type`) if any are given, and its processor on
    Pillow, which gives the same pixels on every machine.

    Raises:
        ValueError: the folder's model is of another kind.
    """
    library: Any = import_module("transformers")
    library.utils.logging.disable_progress_bar()
    kind = library.AutoConfig.from_pretrained(place.folder, local_files_only=True).model_type
    if kinds and kind not in kinds:
        raise ValueError(f'expected a model of type "{kinds[0]}", got "{kind}"')
    processor = library.AutoImageProcessor.from_pretrained(place.folder, backend="pil", local_files_only=True)
    attention = place.model.attention
    model = getattr(library, model_class).from_pretrained(
        place.folder, dtype=place.dtype, use_safetensors=True, local_files_only=True,
        **({} if attention == "auto" else {"attn_implementation": attention}),
    )
    return Vision(model.to(place.device).eval(), processor, place)
