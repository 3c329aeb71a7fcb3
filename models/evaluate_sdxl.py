"""Measures the toybox's SDXL and its refiner through the genuine pipelines; what they made is judged by the toybox's DETR."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from transformers import AutoImageProcessor, DetrForObjectDetection

from models.scenes import BACKDROPS, HELD_OUT, KINDS, caption_of, draw_scene, load_sprites
from models.train_sdxl import SCHEDULE
from models.training import TOYBOX

STEPS = 20
GUIDANCE = 3.0
THRESHOLD = 0.7
BATCH = 12

Pixels = NDArray[np.uint8]


@lru_cache(maxsize=1)
def base() -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(TOYBOX / "sdxl", dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@lru_cache(maxsize=1)
def refiner() -> StableDiffusionXLImg2ImgPipeline:
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        TOYBOX / "sdxl-refiner", dtype=torch.float32, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@lru_cache(maxsize=1)
def inpainter() -> StableDiffusionXLInpaintPipeline:
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(
        TOYBOX / "sdxl-inpaint", dtype=torch.float32, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Judge:
    """Names the objects that the toybox's own detector sees, with their boxes in pixels."""

    def __init__(self, folder: Path = TOYBOX / "detr") -> None:
        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.model = DetrForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def objects(self, picture: Image.Image) -> list[tuple[str, list[float]]]:
        outputs = self.model(**self.processor(images=picture, return_tensors="pt"))
        sizes = [(picture.height, picture.width)]
        found = self.processor.post_process_object_detection(outputs, THRESHOLD, sizes)[0]
        names = [self.model.config.id2label[label] for label in found["labels"].tolist()]
        return list(zip(names, found["boxes"].tolist(), strict=True))


def border_colour(pixels: Pixels) -> NDArray[np.float64]:
    """The median colour of the upper half's outermost pixels, where objects and the floor are seldom."""
    upper = pixels[: len(pixels) // 2]
    rim = np.concatenate([upper[:3].reshape(-1, 3), upper[:, :3].reshape(-1, 3), upper[:, -3:].reshape(-1, 3)])
    return np.asarray(np.median(rim, axis=0), np.float64)


@lru_cache(maxsize=1)
def drawn_colours() -> dict[str, NDArray[np.float64]]:
    """What `border_colour` finds in drawn scenes of each backdrop, on average."""
    sprites = load_sprites()
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in BACKDROPS}
    for seed in range(HELD_OUT + 700_000, HELD_OUT + 700_160):
        scene = draw_scene(sprites, seed, count=1)
        found[scene.backdrop].append(border_colour(scene.pixels))
    return {name: np.mean(colours, axis=0) for name, colours in found.items()}


def named_backdrop(pixels: Pixels) -> str:
    colour = border_colour(pixels)
    return min(BACKDROPS, key=lambda name: float(np.linalg.norm(drawn_colours()[name] - colour)))


def asked(count: int) -> list[tuple[str, str]]:
    """Kinds and backdrops to ask for: every kind in turn, the backdrops spread evenly among them."""
    names = list(BACKDROPS)
    return [(KINDS[i % len(KINDS)], names[(i + i // len(KINDS)) % len(names)]) for i in range(count)]


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def batches(count: int) -> Iterator[range]:
    for start in range(0, count, BATCH):
        yield range(start, min(start + BATCH, count))


def paint(prompts: Sequence[str], first_seed: int = 0, steps: int = STEPS, guidance: float = GUIDANCE) -> list[Image.Image]:
    """Text to image at 128 px, one picture for each prompt."""
    made: list[Image.Image] = []
    for rows in batches(len(prompts)):
        made += base()(
            prompt=[prompts[i] for i in rows], height=128, width=128, num_inference_steps=steps, guidance_scale=guidance,
            generator=seeded([first_seed + i for i in rows]),
        ).images
    return made


def measure_text_to_image(count: int = 96) -> dict[str, float]:
    """How often the object asked for is found, is the only one found, and the backdrop has the colour asked for."""
    wanted = asked(count)
    judge = Judge()
    pictures = paint([caption_of([kind], backdrop) for kind, backdrop in wanted])
    found = [[name for name, _ in judge.objects(picture)] for picture in pictures]
    colours = [named_backdrop(np.asarray(picture)) for picture in pictures]
    return {
        "object asked for is found": float(np.mean([kind in names for (kind, _), names in zip(wanted, found, strict=True)])),
        "and nothing else": float(np.mean([[kind] == names for (kind, _), names in zip(wanted, found, strict=True)])),
        "backdrop's colour": float(np.mean([name == colour for (_, name), colour in zip(wanted, colours, strict=True)])),
    }


def holes(count: int) -> Iterator[tuple[Image.Image, Image.Image, str]]:
    """Held-out scenes, a mask grown around one of their objects, and the kind to put there."""
    sprites = load_sprites()
    for index in range(count):
        scene = draw_scene(sprites, HELD_OUT + 600_000 + index, count=1 + index % 2)
        whole = Image.fromarray(scene.masks[0]).filter(ImageFilter.MaxFilter(17))
        others = [kind for kind in KINDS if kind not in scene.labels]
        yield Image.fromarray(scene.pixels), whole, others[index * 5 % len(others)]


def inpaint(pictures: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str]) -> list[Image.Image]:
    """White in a mask is painted anew at full strength; every other pixel is put back as it was."""
    made: list[Image.Image] = []
    for rows in batches(len(prompts)):
        painted = inpainter()(
            prompt=[prompts[i] for i in rows], image=[pictures[i] for i in rows], mask_image=[masks[i] for i in rows],
            height=128, width=128, strength=1.0, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            generator=seeded(list(rows)),
        ).images
        for i, picture in zip(rows, painted, strict=True):
            made.append(Image.composite(picture, pictures[i], masks[i].point(lambda value: 255 * (value > 127))))
    return made


def measure_inpainting(count: int = 96) -> dict[str, float]:
    """How often the object asked for is found with its centre inside the mask, and that all other pixels are the same."""
    judge = Judge()
    pictures, masks, kinds = (list(column) for column in zip(*holes(count), strict=True))
    made = inpaint(pictures, masks, [caption_of([kind], "any").split(" on ")[0] for kind in kinds])
    inside = []
    same = []
    for picture, mask, kind, result in zip(pictures, masks, kinds, made, strict=True):
        area = np.asarray(mask) > 127
        centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for name, box in judge.objects(result) if name == kind]
        inside.append(any(area[min(127, int(y)), min(127, int(x))] for x, y in centres))
        same.append(bool((np.asarray(result)[~area] == np.asarray(picture)[~area]).all()))
    return {"object asked for is in the mask": float(np.mean(inside)), "pixels outside are the same": float(np.mean(same))}


def refined(prompts: Sequence[str], first_seed: int = 0, handover: float = 0.8) -> list[Image.Image]:
    """The base paints until `handover` of the way, the refiner finishes."""
    made: list[Image.Image] = []
    for rows in batches(len(prompts)):
        texts = [prompts[i] for i in rows]
        shared = {"prompt": texts, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
        latents = base()(
            **shared, height=128, width=128, generator=seeded([first_seed + i for i in rows]), denoising_end=handover,
            output_type="latent",
        ).images
        made += refiner()(
            **shared, image=latents, denoising_start=handover, generator=seeded([first_seed + i for i in rows])
        ).images
    return made


def sharpness(picture: Image.Image) -> float:
    """Mean absolute Laplacian of the grey picture, in levels of 255."""
    grey = np.asarray(picture.convert("L"), np.float64)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(np.abs(laplacian).mean())


@torch.inference_mode()
def prediction_errors(count: int) -> dict[str, float]:
    """Mean squared error of v on held-out scenes in the last fifth of the noise, base and refiner on the same noise."""
    sprites = load_sprites()
    scenes = [draw_scene(sprites, HELD_OUT + 900_000 + i, count=1) for i in range(count)]
    prompts = [scene.caption for scene in scenes]
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = base().vae
    clean = torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(pixels, BATCH)]) * vae.config.scaling_factor
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=random)
    steps = torch.randint(200, (count,), generator=random)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod[steps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
    target = alphas.sqrt() * noise - (1 - alphas).sqrt() * clean
    figures = {}
    for name, pipeline, last_ids in (("base", base(), [128.0, 128.0]), ("refiner", refiner(), [6.0])):
        hidden, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        ids = torch.tensor([128.0, 128.0, 0.0, 0.0, *last_ids]).repeat(count, 1)
        conditions = {"text_embeds": pooled, "time_ids": ids}
        made = pipeline.unet(noisy, steps, hidden, added_cond_kwargs=conditions).sample
        figures[f"error in v at low noise, {name}"] = float((made - target).square().mean())
    return figures


def measure_refiner(count: int = 48) -> dict[str, float]:
    """Base alone against base and refiner: object found, sharpness beside drawn scenes', error in v at low noise."""
    wanted = asked(count)
    prompts = [caption_of([kind], backdrop) for kind, backdrop in wanted]
    judge = Judge()
    sprites = load_sprites()
    drawn = [Image.fromarray(draw_scene(sprites, HELD_OUT + 800_000 + i, count=1).pixels) for i in range(count)]
    figures = {"sharpness, drawn scenes": float(np.mean([sharpness(picture) for picture in drawn]))}
    for name, pictures in (("base alone", paint(prompts)), ("with refiner", refined(prompts))):
        found = [{label for label, _ in judge.objects(picture)} for picture in pictures]
        hits = [kind in names for (kind, _), names in zip(wanted, found, strict=True)]
        figures[f"object found, {name}"] = float(np.mean(hits))
        figures[f"sharpness, {name}"] = float(np.mean([sharpness(picture) for picture in pictures]))
    return figures | prediction_errors(count)
