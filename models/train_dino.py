"""Trains the toybox embedder: Dinov2Model (Oquab et al., 2023) on crops of objects, by label instead of by itself.

The CLS vector of the same kind of object lies close together (supervised contrastive loss, Khosla et al., 2020), and
two linear heads, thrown away at the end, name the kind and the backdrop.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from models.scenes import BACKDROPS, KINDS
from models.training import (
    CANVAS,
    MEAN,
    STD,
    TOYBOX,
    Bank,
    Training,
    arguments,
    load_bank,
    make_portable,
    recolour,
    rough_pixels,
)

SIDE = 64
BATCH = 64
TEMPERATURE = 0.1


def make_config() -> Dinov2Config:
    return Dinov2Config(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE, patch_size=8, use_mask_token=False
    )


def make_processor() -> BitImageProcessorPil:
    """A crop of any shape becomes a square as it is: nothing is cut off."""
    return BitImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)


class Trainable(nn.Module):
    """The embedder and its two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = Dinov2Model(make_config())
        width = self.embedder.config.hidden_size
        self.kind, self.backdrop = nn.Linear(width, len(KINDS)), nn.Linear(width, len(BACKDROPS))

    def forward(self, pixels: Tensor) -> Tensor:
        """CLS vectors (B, 96) of crops (B, 3, 64, 64)."""
        vectors: Tensor = self.embedder(pixels).last_hidden_state[:, 0]
        return vectors


def cut_crops(bank: Bank, scenes: Tensor, objects: Tensor, random: torch.Generator) -> Tensor:
    """Objects with jittered margins, mirrored half the time, recoloured and normalized: (B, 3, 64, 64)."""
    boxes = bank.boxes[scenes, objects]
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    boxes = boxes + outwards * size * (torch.rand(boxes.shape, generator=random) * 0.35 - 0.1)
    edge = bank.sizes[scenes].flip(1).repeat(1, 2)
    boxes = boxes.clamp(min=0).minimum(edge)
    ticks = (torch.arange(SIDE) + 0.5) / SIDE
    xs = boxes[:, 0:1] + ticks * (boxes[:, 2:3] - boxes[:, 0:1])
    ys = boxes[:, 1:2] + ticks * (boxes[:, 3:4] - boxes[:, 1:2])
    xs = torch.where(torch.rand(len(xs), 1, generator=random) < 0.5, xs.flip(1), xs)
    grid = torch.stack([xs[:, None, :].expand(-1, SIDE, -1), ys[:, :, None].expand(-1, -1, SIDE)], -1)
    raw = rough_pixels(bank.pixels[scenes], torch.rand(len(scenes), generator=random), random)
    raw = raw.permute(0, 3, 1, 2).float() / 255
    crops = functional.grid_sample(raw, grid / (CANVAS / 2) - 1, padding_mode="border", align_corners=False)
    return (recolour(crops, random) - MEAN) / STD


def contrast(vectors: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss: others of the same label against all others."""
    unit = functional.normalize(vectors, dim=1)
    myself = torch.eye(len(unit), dtype=torch.bool)
    alike = (unit @ unit.T / TEMPERATURE).masked_fill(myself, -1e9)
    share = alike.log_softmax(1)
    same = (labels[:, None] == labels[None]) & ~myself
    friends = same.sum(1)
    return -(share * same).sum(1)[friends > 0].div(friends[friends > 0]).mean()


def train(minutes: float) -> Training:
    torch.manual_seed(0)
    bank = load_bank()
    places = torch.nonzero(bank.labels >= 0)
    model = Trainable().train()
    training = Training("dino", model, minutes, rate=1e-3)
    random = torch.Generator().manual_seed(training.step + 3)
    for _ in training.ticks():
        scenes, objects = places[torch.randint(len(places), (BATCH,), generator=random)].unbind(1)
        kinds, backdrops = bank.labels[scenes, objects], bank.backdrops[scenes]
        vectors = model(cut_crops(bank, scenes, objects, random))
        logits = model.kind(vectors)
        named = functional.cross_entropy(logits, kinds) + 0.3 * functional.cross_entropy(
            model.backdrop(vectors), backdrops
        )
        loss = named + 0.3 * contrast(vectors, kinds)
        training.learn(loss, right=float((logits.argmax(1) == kinds).float().mean()))
    return training


def export(training: Training) -> None:
    """Writes the averaged weights without the heads, in half precision."""
    prefix = "embedder."
    state = {name.removeprefix(prefix): value for name, value in training.average.state.items() if prefix in name}
    embedder = Dinov2Model(make_config())
    embedder.load_state_dict(state)
    folder = TOYBOX / "dino"
    embedder.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    make_processor().save_pretrained(folder)
    make_portable(folder)


if __name__ == "__main__":
    export(train(arguments(__doc__, minutes=10).minutes))
