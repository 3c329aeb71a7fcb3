"""The values that travel between nodes: frozen, self-validating, each with its own safe encoding.

A value is stored as safetensors (https://huggingface.co/docs/safetensors): a header and raw arrays, never pickle. The
encoding is canonical, so that equal contents have equal bytes, and the SHA-256 of those bytes names the value everywhere.
What is true of one making of a value and not of its contents (seed, steps, notes) is its `info`, and stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from nodes.errors import ArtifactError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Info = Mapping[str, str | int | float | bool | None]
MAX_BYTES = 2**31
"""No single value may be larger than this, in memory or when read back."""


def _need(found: NDArray[Any], what: str, dtype: str, shape: tuple[int | str, ...]) -> None:
    """Raise ArtifactError unless `found` has the dtype and the shape, whose letters stand for any length."""
    fits = found.ndim == len(shape) and all(isinstance(w, str) or w == n for w, n in zip(shape, found.shape, strict=True))
    if found.dtype != np.dtype(dtype) or not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ArtifactError(f"{what}: expected {dtype} ({wanted}), got {found.dtype} {found.shape}")
    if found.nbytes > MAX_BYTES:
        raise ArtifactError(f"{what}: expected at most {MAX_BYTES} bytes, got {found.nbytes}")


def _frozen(array: Any, dtype: Any = None) -> NDArray[Any]:
    """A C-contiguous array that cannot be written to; of its own if the one given could be."""
    found = np.asarray(array, dtype=dtype)
    if found.flags.writeable or not found.flags.c_contiguous:
        found = np.array(found, order="C")
        found.setflags(write=False)
    return found


@dataclass(frozen=True, eq=False)
class Artifact:
    """The root of all values. Two are equal when their contents are; `info` does not count."""

    info: Info = field(default_factory=dict, kw_only=True, repr=False)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that make up the contents."""
        return {}

    def fields(self) -> dict[str, Any]:
        """The rest of the contents, as JSON."""
        return {}

    @classmethod
    def restore(cls, arrays: dict[str, NDArray[Any]], fields: dict[str, Any]) -> Self:
        """The value that `arrays` and `fields` were taken from."""
        values: dict[str, Any] = {**arrays, **fields}
        return cls(**values)

    def with_info(self, **info: str | int | float | bool | None) -> Self:
        """The same contents with more said about how they were made."""
        return replace(self, info={**self.info, **info})

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Artifact) and encode(self) == encode(other)

    def __hash__(self) -> int:
        return hash(encode(self))


@dataclass(frozen=True, eq=False)
class Image(Artifact):
    """A picture: `pixels` uint8 (H, W, C) with C of 1 (grey), 3 (RGB) or 4 (RGBA), sRGB, upright."""

    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", _frozen(self.pixels))
        _need(self.pixels, "Image.pixels", "uint8", ("H", "W", "C"))
        height, width, channels = self.pixels.shape
        if channels not in (1, 3, 4) or not height or not width:
            raise ArtifactError(f"Image.pixels: expected (H, W, 1, 3 or 4) with H, W ≥ 1, got {self.pixels.shape}")

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return int(self.pixels.shape[0])

    @property
    def pil(self) -> PilImage:
        """The same picture as a Pillow image of mode L, RGB or RGBA."""
        from PIL import Image as pil

        return pil.fromarray(self.pixels[..., 0] if self.pixels.shape[2] == 1 else self.pixels)

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3): grey repeated, alpha dropped; what the models look at."""
        if self.pixels.shape[2] == 1:
            return np.repeat(self.pixels, 3, axis=2)
        return self.pixels[..., :3]

    @classmethod
    def from_pil(cls, picture: PilImage, **info: str | int | float | bool | None) -> Image:
        """From a Pillow image of any mode; transparency is kept, everything else becomes grey or RGB."""
        if picture.mode not in ("L", "RGB", "RGBA"):
            has_alpha = "A" in picture.mode or "transparency" in picture.info
            picture = picture.convert("RGBA" if has_alpha else "L" if picture.mode in ("1", "I;16", "I", "F") else "RGB")
        pixels = np.asarray(picture)
        return cls(pixels[..., None] if pixels.ndim == 2 else pixels, info=info)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"pixels": self.pixels}


def _row_fields(what: str, rows: int, labels: tuple[str, ...], scores: NDArray[np.float32]) -> None:
    if len(labels) != rows or not all(isinstance(label, str) for label in labels):
        raise ArtifactError(f"{what}.labels: expected {rows} strings, got {len(labels)}")
    if len(scores) != rows:
        raise ArtifactError(f"{what}.scores: expected float32 ({rows},), got {scores.dtype} {scores.shape}")


@dataclass(frozen=True, eq=False)
class Boxes(Artifact):
    """N boxes, best first: `xyxy` float32 (N, 4) pixels, `labels` N strings, `scores` float32 (N,). N may be 0.

    Coordinates are rounded to 1/100 pixel and scores to 1/1000: finer digits differ between machines and mean nothing.
    """

    xyxy: NDArray[np.float32]
    labels: tuple[str, ...]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        xyxy, scores = np.asarray(self.xyxy, np.float32), np.asarray(self.scores, np.float32)
        if xyxy.size == 0:
            xyxy = xyxy.reshape(0, 4)
        _need(xyxy, "Boxes.xyxy", "float32", ("N", 4))
        _need(scores, "Boxes.scores", "float32", ("N",))
        object.__setattr__(self, "xyxy", _frozen(np.round(xyxy, 2) + np.float32(0)))
        object.__setattr__(self, "scores", _frozen(np.round(scores, 3) + np.float32(0)))
        object.__setattr__(self, "labels", tuple(self.labels))
        _row_fields("Boxes", len(xyxy), self.labels, self.scores)
        if not np.isfinite(xyxy).all() or (xyxy[:, 2:] < xyxy[:, :2]).any():
            raise ArtifactError(f"Boxes.xyxy: expected finite x1 ≤ x2 and y1 ≤ y2, got {xyxy.tolist()}")

    def __len__(self) -> int:
        return len(self.labels)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"xyxy": self.xyxy, "scores": self.scores}

    def fields(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}


@dataclass(frozen=True, eq=False)
class Masks(Artifact):
    """N masks of one picture: `layers` uint8 (N, H, W), 255 inside and 0 outside, `labels` N strings, `scores` float32 (N,)."""

    layers: NDArray[np.uint8]
    labels: tuple[str, ...]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _frozen(self.layers))
        object.__setattr__(self, "labels", tuple(self.labels))
        _need(self.layers, "Masks.layers", "uint8", ("N", "H", "W"))
        scores = np.asarray(self.scores, np.float32)
        _need(scores, "Masks.scores", "float32", ("N",))
        object.__setattr__(self, "scores", _frozen(np.round(scores, 3) + np.float32(0)))
        _row_fields("Masks", len(self.layers), self.labels, self.scores)
        if ((self.layers != 0) & (self.layers != 255)).any():
            raise ArtifactError("Masks.layers: expected only 0 and 255, got values between")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def union(self) -> NDArray[np.uint8]:
        """uint8 (H, W): 255 where any of the masks is; all 0 when there is none."""
        if not len(self):
            return np.zeros(self.layers.shape[1:], np.uint8)
        return np.asarray(self.layers.max(axis=0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"bits": np.packbits(self.layers.reshape(-1) > 0), "scores": self.scores}

    def fields(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "shape": list(self.layers.shape)}

    @classmethod
    def restore(cls, arrays: dict[str, NDArray[Any]], fields: dict[str, Any]) -> Self:
        shape = tuple(fields["shape"])
        bits = np.unpackbits(arrays["bits"], count=int(np.prod(shape))) * np.uint8(255)
        return cls(bits.reshape(shape), fields["labels"], arrays["scores"])


@dataclass(frozen=True, eq=False)
class Embedding(Artifact):
    """What a picture looks like to a model: `vector` float32 (D,), `patches` float32 (h, w, D) or none.

    Rounded to 1/1000: the last bits of a batched kernel mean nothing.
    """

    vector: NDArray[np.float32]
    patches: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        vector = np.asarray(self.vector, np.float32)
        _need(vector, "Embedding.vector", "float32", ("D",))
        object.__setattr__(self, "vector", _frozen(np.round(vector, 3) + np.float32(0)))
        if self.patches is not None:
            patches = np.asarray(self.patches, np.float32)
            _need(patches, "Embedding.patches", "float32", ("h", "w", vector.shape[0]))
            object.__setattr__(self, "patches", _frozen(np.round(patches, 3) + np.float32(0)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"vector": self.vector} | ({} if self.patches is None else {"patches": self.patches})


@dataclass(frozen=True, eq=False)
class Text(Artifact):
    """A piece of text: a caption, a prompt."""

    value: str

    def __post_init__(self) -> None:
        if not isinstance(self.value, str):
            raise ArtifactError(f"Text.value: expected str, got {type(self.value).__name__}")

    def fields(self) -> dict[str, Any]:
        return {"value": self.value}


@dataclass(frozen=True, eq=False)
class Score(Artifact):
    """A number with the name of what it measures, rounded to 1/1000."""

    value: float
    name: str = ""

    def __post_init__(self) -> None:
        if not np.isfinite(self.value):
            raise ArtifactError(f"Score.value: expected a finite number, got {self.value}")
        object.__setattr__(self, "value", round(float(self.value), 3) + 0.0)

    def fields(self) -> dict[str, Any]:
        return {"value": self.value, "name": self.name}


@dataclass(frozen=True, eq=False)
class Latents(Artifact):
    """A picture, finished or part-way, in a diffusion model's own space: `tensor` float32 (C, h, w) as the sampler holds it,
    `scaling` the VAE's scaling factor, by which it was multiplied."""

    tensor: NDArray[np.float32]
    scaling: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensor", _frozen(self.tensor))
        _need(self.tensor, "Latents.tensor", "float32", ("C", "h", "w"))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"tensor": self.tensor}

    def fields(self) -> dict[str, Any]:
        return {"scaling": self.scaling}


@dataclass(frozen=True, eq=False)
class File(Artifact):
    """An encoded file to be written as it is: `data` its bytes, `suffix` such as `.jpg`."""

    data: NDArray[np.uint8]
    suffix: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _frozen(self.data))
        _need(self.data, "File.data", "uint8", ("N",))
        if not (self.suffix.startswith(".") and self.suffix[1:].isalnum()):
            raise ArtifactError(f'File.suffix: expected a dot and letters, got "{self.suffix}"')

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"data": self.data}

    def fields(self) -> dict[str, Any]:
        return {"suffix": self.suffix}


TYPES: dict[str, type[Artifact]] = {t.__name__: t for t in (Image, Boxes, Masks, Embedding, Text, Score, Latents, File)}


_DTYPES = {"uint8": "U8", "float32": "F32"}


def encoded_parts(value: Artifact) -> list[bytes | memoryview]:
    """The canonical bytes of a value's contents, in parts that share its memory: a header and each array.

    Together they are a safetensors file, byte for byte what that library writes; it would copy large arrays twice.
    """
    # One metadata entry only: the library does not keep several in a fixed order.
    head = json.dumps([type(value).__name__, value.fields()], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    header: dict[str, Any] = {"__metadata__": {"photoloom": head}}
    arrays = sorted(value.arrays().items(), key=lambda item: (-item[1].itemsize, item[0]))
    end, parts = 0, []
    for name, array in arrays:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
        parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def encode(value: Artifact) -> bytes:
    """The canonical bytes of a value's contents, a safetensors file."""
    return b"".join(encoded_parts(value))


def decode(data: bytes) -> Artifact:
    """The value whose canonical bytes these are.

    Raises:
        ArtifactError: these are not the bytes of any known type.
    """
    from safetensors.numpy import load

    try:
        size = int.from_bytes(data[:8], "little")
        name, fields = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["photoloom"])
        return TYPES[name].restore(load(data), fields)
    except Exception as error:  # safetensors' own errors share no narrower root with json's and numpy's
        raise ArtifactError(f"not a stored value: {error}") from error
