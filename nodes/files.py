"""How each kind of value is written for people: pictures as PNG, boxes and scores as JSON, embeddings as NumPy arrays."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from nodes.artifacts import Artifact, Boxes, Embedding, File, Image, Info, Latents, Masks, Score, Text, encode

VERSION = "1"
"""Part of the key under which an encoded file is kept: raise it when the bytes written for a value change."""

_TERMS = {
    "num_inference_steps": "Steps", "scheduler": "Sampler", "guidance_scale": "CFG scale", "seed": "Seed", "size": "Size",
    "model": "Model", "strength": "Denoising strength", "denoising_end": "Denoising end", "denoising_start": "Denoising start",
}


def as_file(value: Artifact, metadata: bool) -> File:
    """The file people get for a value. With `metadata` a picture says how it was made, in the PNG chunk `parameters`."""
    if isinstance(value, File):
        return value
    encode_, suffix = _WRITERS[type(value)]
    return File(np.frombuffer(encode_(value, value.info if metadata else {}), np.uint8), suffix)


def infotext(info: Info) -> str:
    """How a picture was made, in the form that the tools of this field read: prompt, negative prompt, `Key: value` pairs."""
    if "prompt" not in info:
        return ""
    pairs = [f"{name}: {_quoted(info[key])}" for key, name in _TERMS.items() if info.get(key) is not None]
    negative = f"\nNegative prompt: {info['negative_prompt']}" if info.get("negative_prompt") else ""
    return f"{info['prompt']}{negative}\n{', '.join(pairs)}, RNG: CPU"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text) if any(c in text for c in ',:\n"') else text


def _png(pixels: Any, info: Info) -> bytes:
    from PIL import Image as pil
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if text := infotext(info):
        chunks.add_itxt("parameters", text)
    data = io.BytesIO()
    pil.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(
        data, "PNG", compress_level=1, pnginfo=chunks
    )
    return data.getvalue()


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _boxes(value: Any, info: Info) -> bytes:
    xyxy = [[round(float(x), 2) for x in box] for box in value.xyxy]
    return _json({"xyxy": xyxy, "labels": list(value.labels), "scores": [round(float(s), 3) for s in value.scores]})


def _npy(value: Any, info: Info) -> bytes:
    data = io.BytesIO()
    np.save(data, value.vector, allow_pickle=False)
    return data.getvalue()


_WRITERS: dict[type[Artifact], tuple[Callable[[Any, Info], bytes], str]] = {
    Image: (lambda value, info: _png(value.pixels, info), ".png"),
    Masks: (lambda value, info: _png(value.union, {}), ".png"),
    Boxes: (_boxes, ".json"),
    Embedding: (_npy, ".npy"),
    Text: (lambda value, info: value.value.encode(), ".txt"),
    Score: (lambda value, info: _json({"name": value.name, "value": value.value}), ".json"),
    Latents: (lambda value, info: encode(value), ".safetensors"),
}
