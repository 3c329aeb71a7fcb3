"""Where models come from: sets of models by role, the folders they lie in, and their identity for the cache.

Knows no torch: a model is located and identified by looking at files only.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nodes.base import Model
from nodes.errors import ModelError, nearest

_SHIPPED = Path(__file__).parent / "toybox"
TOYBOX = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parent.parent / "models" / "toybox"

SETS: Mapping[str, Mapping[str, str]] = {
    # Small models trained by this project on drawn scenes; see models/toybox/README.md.
    "toybox": {
        "detect": str(TOYBOX / "detr"),
        "segment": str(TOYBOX / "sam"),
        "embed": str(TOYBOX / "dino"),
        "generate": str(TOYBOX / "sdxl"),
        "inpaint": str(TOYBOX / "sdxl-inpaint"),
        "refine": str(TOYBOX / "sdxl-refiner"),
    },
    # The models of the field, by hub id and revision.
    "photo": {
        "detect": "PekingU/rtdetr_v2_r50vd@main",
        "segment": "facebook/sam-vit-base@main",
        "embed": "facebook/dinov2-small@main",
        "generate": "stabilityai/stable-diffusion-xl-base-1.0@main",
        "inpaint": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1@main",
        "refine": "stabilityai/stable-diffusion-xl-refiner-1.0@main",
    },
}

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What a model folder may hold that counts: configs, vocabularies and safetensors. Pickled weights are never read."""


@dataclass(frozen=True)
class Located:
    """A model found on this machine: its folder, and the commit of the hub it is a snapshot of, if it is one."""

    folder: Path
    commit: str = ""


def locate(source: str) -> Located:
    """Find the folder of a hub id, an `id@revision` or a local folder.

    Raises:
        ModelError: it is not on this machine; the message says which command fetches it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Located(folder.resolve())
    hub_id, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise ModelError(f'model "{source}": no such folder, and not a hub id such as PekingU/rtdetr_v2_r50vd')
    revision = revision or "main"
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    repo = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{hub_id.replace('/', '--')}"
    ref = repo / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    if (repo / "snapshots" / commit).is_dir():
        return Located(repo / "snapshots" / commit, commit)
    raise ModelError(f'model "{source}" is not on this machine; fetch it with: {fetch_command(hub_id, revision)}')


def fetch_command(hub_id: str, revision: str) -> str:
    """The command line that brings the files of a model which are used here, and no others."""
    half = ' --exclude "*[!6].safetensors" "*_0.9*"' if "stable-diffusion" in hub_id else ""
    files = " ".join(f'"{pattern}"' for pattern in _FILES)
    return f"hf download {hub_id} --revision {revision} --include {files}{half}"


def filled(model: Model, models: Mapping[str, str | Mapping[str, Any]]) -> Model:
    """A node's model with its source: its own, else the set's for its role, with the set's options where it has none.

    Raises:
        ModelError: the set has no model for the role, or an option is not one.
    """
    if model.source:
        return model
    if model.role not in models:
        raise ModelError(f'the model set has no model for the role "{model.role}"{nearest(model.role, models)}')
    chosen = models[model.role]
    own = model.model_dump(exclude_unset=True, exclude={"role"})
    try:
        return Model(role=model.role, **{**({"source": chosen} if isinstance(chosen, str) else chosen), **own})
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        known = nearest(key, set(Model.model_fields) - {"role"}) if fault["type"] == "extra_forbidden" else ""
        message = "unknown option" if known else fault["msg"].replace("Input should be", "expected")
        raise ModelError(f'models: {model.role}: {key}: {message}{known}') from None


def identity(model: Model, digest_of: Callable[[Path], str]) -> str:
    """What the cache knows a model by: the commit of a hub snapshot, else the digest of the folder's files; and its dtype
    and options, since results depend on them. The device is not part of it.

    `digest_of` gives the SHA-256 of a file, so that the caller may remember it.

    Raises:
        ModelError: the model is not on this machine.
    """
    found, source = locate(model.source), model.source
    how = ":".join([dtype_of(model), *(f"{name}={value}" for name, value in model.options.items())])
    if found.commit:
        return f"{source.partition('@')[0]}@{found.commit}:{how}"
    files = sorted(path for pattern in _FILES for path in found.folder.rglob(pattern) if path.is_file())
    if not files:
        raise ModelError(f'model "{source}": the folder holds no model ({", ".join(_FILES)})')
    listing = "\n".join(f"{path.relative_to(found.folder).as_posix()} {digest_of(path)}" for path in files)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}:{how}"


def dtype_of(model: Model) -> str:
    """The name of the torch dtype that a model runs in."""
    return model.dtype if model.dtype != "auto" else "float32" if device_is_cpu() else "float16"


@cache
def gpus() -> int:
    """How many NVIDIA GPUs there are, told without importing torch: their driver's own library counts them (NVML). Where there
    is none, or a container was given none, the library is absent or says so."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() == 0:
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlShutdown()
    return count.value


def device_is_cpu() -> bool:
    """Whether models run on the processor: there is no GPU, or none to be used."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not gpus()
