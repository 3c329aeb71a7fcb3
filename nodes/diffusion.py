"""What Generate, Inpaint and Refine share: SDXL models in memory, schedulers by name, and one call of a pipeline.

SDXL: Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis".
"""

from __future__ import annotations

import inspect
import json
import logging
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nodes.base import Model, Node
from nodes.resident import Place, held
from nodes.running import progress

SchedulerName = Literal[
    "euler", "euler_a", "ddim", "ddpm", "heun", "dpm2", "dpm2_a", "dpm++_2m", "dpm++_2m_karras", "dpm++_2m_sde",
    "dpm++_2m_sde_karras", "unipc", "deis", "pndm", "lcm", "tcd",
]

_KARRAS = {"use_karras_sigmas": True}
_LATENT = {"clip_sample": False, "thresholding": False}
"""Clipping to -1..1 is for pixels, and on by default in these."""

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {**_LATENT, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", _LATENT),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": False, "clip_sample": False}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False, "algorithm_type": "dpmsolver++"}),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", {**_KARRAS, "algorithm_type": "dpmsolver++"}),
    "dpm++_2m_sde": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False, "algorithm_type": "sde-dpmsolver++"}),
    "dpm++_2m_sde_karras": ("DPMSolverMultistepScheduler", {**_KARRAS, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
    "tcd": ("TCDScheduler", {"clip_sample": False}),
}
"""The field's names, each with the diffusers class and what it sets beyond the model's own scheduler config."""


class Diffusion(Node):
    """The params that all diffusion nodes share."""

    model: Model
    negative_prompt: str = ""
    num_inference_steps: Annotated[int, Field(ge=1, le=500)] = 20
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 5.0
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    scheduler: SchedulerName | None = None

    def prepare(self) -> None:
        with held(self.model, load_parts):
            pass


@dataclass(frozen=True)
class Made:
    """What one call gave: `pixels` uint8 (H, W, 3), `latents` float32 (C, h, w) as they left the sampler, and the info
    of that making (effective steps, seed, scheduler class, …)."""

    pixels: NDArray[np.uint8]
    latents: NDArray[np.float32]
    info: dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Asked:
    """One picture to be made: what is its own in a batch. `given` are further arguments of the pipeline, such as `image`."""

    prompt: str
    seed: int
    given: Mapping[str, Any] = field(default_factory=dict)


class Parts:
    """The parts of an SDXL model, loaded once and put together anew for each call, so that no call sees another's
    state.

    Text-to-image, inpainting and image-to-image of the same folder share them.
    """

    def __init__(self, components: dict[str, Any], config: dict[str, Any], name: str, place: Place) -> None:
        self.components, self.config, self.name, self.place = components, config, name, place
        self.vae_scale = 2 ** (len(components["vae"].config.block_out_channels) - 1)
        self.scaling: float = components["vae"].config.scaling_factor
        self.size: int = components["unet"].config.sample_size * self.vae_scale
        """The side in pixels of the square pictures that the model was made for."""
        self._prompts: dict[tuple[object, ...], dict[str, Any]] = {}

    @property
    def modules(self) -> Sequence[Any]:
        """The torch modules."""
        return [part for name, part in self.components.items() if part is not None and name in _MODULES]

    def make(self, kind: str, node: Diffusion, asked: Sequence[Asked], **common: Any) -> list[Made]:
        """Run the diffusers pipeline class `kind` for some pictures of one size; each one's noise is that of a CPU
        generator of its own, on every device."""
        # diffusers' schedulers turn tensors into arrays in two ways that NumPy 2 deprecates.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        warnings.filterwarnings("ignore", "__array_wrap__ must accept context", DeprecationWarning)
        library: Any = import_module("diffusers")
        pipeline_class = getattr(library, kind)
        prompts = list(dict.fromkeys(each.prompt for each in asked))
        encoded: dict[str, dict[str, Any]] = {}

        def encode(some: Sequence[str]) -> list[dict[str, Any]]:
            pipeline = self._pipeline(library, pipeline_class, node.scheduler)
            with _tokenizing:
                return [self._encoded(pipeline, node, prompt) for prompt in some]

        for prompt in prompts:
            name = (kind, prompt, node.negative_prompt, node.guidance_scale > 1)
            if (known := self._prompts.get(name)) is None:
                # One prompt after another, so that the arithmetic is the same whatever goes together.
                [known] = self.place.spread([prompt], encode)
                if len(self._prompts) < PROMPTS:
                    self._prompts[name] = known
            encoded[prompt] = known
        return self.place.spread(asked, lambda some: self._made(library, pipeline_class, node, some, encoded, common))

    def _encoded(self, pipeline: Any, node: Diffusion, prompt: str) -> dict[str, Any]:
        """What the text encoders make of a prompt and of the negative one, as arguments of the pipeline."""
        import torch

        with torch.inference_mode():
            embeds = pipeline.encode_prompt(
                prompt=prompt, negative_prompt=node.negative_prompt or None,  # None, not "", asks for what the model learned
                do_classifier_free_guidance=node.guidance_scale > 1, device=self.place.device,
            )
        return dict(zip(_EMBEDS, embeds, strict=True))

    def _made(
        self, library: Any, pipeline_class: Any, node: Diffusion, asked: Sequence[Asked],
        encoded: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any],
    ) -> list[Made]:
        import torch

        pipeline = self._pipeline(library, pipeline_class, node.scheduler)
        last: dict[str, Any] = {}

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            last.update(tensors)
            progress(step + 1, pipe.num_timesteps)
            return {}

        given = {name: _together([each.given[name] for each in asked]) for name in asked[0].given}
        for name in _EMBEDS:
            embeds = [encoded[each.prompt][name] for each in asked]
            given[name] = None if embeds[0] is None else torch.cat(embeds)
        generators = [torch.Generator("cpu").manual_seed(each.seed) for each in asked]
        try:
            with torch.inference_mode():
                pictures = pipeline(
                    num_inference_steps=node.num_inference_steps, guidance_scale=node.guidance_scale,
                    generator=generators, output_type="np", callback_on_step_end=after_step,
                    callback_on_step_end_tensor_inputs=["latents"], **given, **common,
                ).images
        finally:  # a call that failed half-way leaves the VAE in the float32 that it decodes in
            if self.components["vae"].dtype != self.components["unet"].dtype:
                self.components["vae"].to(dtype=self.components["unet"].dtype)
        latents = last["latents"].float().cpu().numpy()
        return [
            Made(_pixels(picture), latents[i], self._info(pipeline, node, each, picture.shape))
            for i, (each, picture) in enumerate(zip(asked, pictures, strict=True))
        ]

    def _info(self, pipeline: Any, node: Diffusion, asked: Asked, shape: Sequence[int]) -> dict[str, Any]:
        """What makes the picture again."""
        order = getattr(pipeline.scheduler, "order", 1)
        info: dict[str, str | int | float | bool | None] = {
            "prompt": asked.prompt, "negative_prompt": node.negative_prompt, "seed": asked.seed,
            "num_inference_steps": -(-pipeline.num_timesteps // order), "guidance_scale": node.guidance_scale,
            "scheduler": type(pipeline.scheduler).__name__, "width": shape[1], "height": shape[0],
            "model": self.name,
        }
        if node.scheduler:
            info["scheduler_name"] = node.scheduler
        with _tokenizing:
            lost = self._unread(asked.prompt)
        if lost:
            info["note"] = f"the model reads only the beginning of the prompt; left out: {lost}"
        return info

    def _pipeline(self, library: Any, kind: Any, scheduler: str | None) -> Any:
        base = self.components["scheduler"]
        class_name, changes = SCHEDULERS[scheduler] if scheduler else (type(base).__name__, {})
        fresh = getattr(library, class_name).from_config(base.config, **changes)
        accepted = inspect.signature(kind.__init__).parameters
        given = {name: part for name, part in {**self.components, **self.config}.items() if name in accepted}
        pipeline = kind(**{**given, "scheduler": fresh, "add_watermarker": False})
        pipeline.set_progress_bar_config(disable=True)
        if self.place.model.offload == "model":
            pipeline.enable_model_cpu_offload()
        elif self.place.model.offload == "layer":
            pipeline.enable_sequential_cpu_offload()
        return pipeline

    def _unread(self, prompt: str) -> str:
        """What of a prompt lies beyond the length that the text encoders take."""
        tokenizer = self.components["tokenizer_2"]
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        return str(tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])).strip()


def by_size(
    sizes: Sequence[Any], asked: Sequence[Asked], work: Callable[[Any, Sequence[Asked]], list[Made]]
) -> list[Made]:
    """`work(size, some)` on those pictures together that have one size, results in order."""
    found: dict[int, Made] = {}
    for size in dict.fromkeys(sizes):
        group = [i for i, each in enumerate(sizes) if each == size]
        found.update(zip(group, work(size, [asked[i] for i in group]), strict=True))
    return [found[i] for i in range(len(asked))]


_MODULES = ("unet", "vae", "text_encoder", "text_encoder_2")
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What `encode_prompt` gives, in its order, and what the pipelines take it as."""

PROMPTS = 64
"""So many prompts stay encoded, the first ones."""

_tokenizing = threading.Lock()
"""Fast tokenizers keep a state, and serve one thread at a time."""


def _together(values: list[Any]) -> Any:
    """The pictures of a batch as the pipelines take them: Pillow images as a list, tensors (1, …) as one."""
    if not hasattr(values[0], "ndim"):
        return values
    import torch

    return torch.cat(values)


def _pixels(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round(np.nan_to_num(picture).clip(0, 1) * 255).astype(np.uint8)


_PROCESSORS = {"eager": "AttnProcessor", "sdpa": "AttnProcessor2_0"}
"""What diffusers calls the two ways to attend."""

_CHATTER = (
    "diffusers.pipelines.stable_diffusion_xl",  # a prompt that is too long: the result's info says so
    "transformers.tokenization_utils_base",  # the same
    "transformers.utils.import_utils",  # torchvision is absent: SDXL does not need it
)
"""Loggers that warn of what is known here."""


def load_parts(place: Place) -> Parts:
    """The parts of the SDXL model in a folder of diffusers' layout.

    Raises:
        ValueError: the folder holds no SDXL model.
    """
    index = place.folder / "model_index.json"
    kind = json.loads(index.read_text("utf-8")).get("_class_name", "") if index.is_file() else ""
    if not kind.startswith("StableDiffusionXL"):
        raise ValueError(f"expected an SDXL model (a StableDiffusionXL… in model_index.json), got {kind or 'none'}")
    library: Any = import_module("diffusers")
    for package in (library, import_module("transformers")):
        package.utils.logging.disable_progress_bar()
    for chatter in _CHATTER:
        logging.getLogger(chatter).setLevel(logging.ERROR)
    pipeline = library.DiffusionPipeline.from_pretrained(
        place.folder, dtype=place.dtype, variant=_variant(place.folder), use_safetensors=True, local_files_only=True,
        add_watermarker=False,
    )
    if place.model.offload == "none":
        pipeline.to(place.device)
    if place.model.attention != "auto":
        processors = import_module("diffusers.models.attention_processor")
        pipeline.unet.set_attn_processor(getattr(processors, _PROCESSORS[place.model.attention])())
    if place.model.vae_tiling:
        pipeline.vae.enable_tiling()
    # The pipelines cast the VAE to float32 and back, and it warns of that each time.
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
    flags = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
    config = {name: pipeline.config[name] for name in flags if name in pipeline.config}
    return Parts(dict(pipeline.components), config, _name(place.folder), place)


def _variant(folder: Path) -> str | None:
    """`fp16` where the folder holds the weights in that form alone."""
    weights = [path.name for path in (folder / "unet").glob("*.safetensors")]
    return "fp16" if weights and all(".fp16." in name for name in weights) else None


def _name(folder: Path) -> str:
    """What people call the model: the hub's id for a snapshot of it, else the folder's name."""
    repo = folder.parent.parent.name
    return repo.removeprefix("models--").replace("--", "/") if folder.parent.name == "snapshots" else folder.name
