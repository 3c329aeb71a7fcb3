"""Trains the toybox segmenter: SamModel (Kirillov et al., 2023) at 128 px, prompted by boxes, points, or both."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from models.training import CANVAS, TOYBOX, Batch, Training, arguments, augment, load_bank, make_portable

BATCH = 6
PROMPTS = 3
PATCH = 8
COARSE = CANVAS // PATCH * 4  # the side of the masks that the decoder draws


def make_config() -> SamConfig:
    return SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=96,
            output_channels=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=CANVAS,
            patch_size=PATCH,
            window_size=8,
            global_attn_indexes=[1, 3],
            num_pos_feats=32,
            initializer_range=0.02,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=64, image_size=CANVAS, patch_size=PATCH, mask_input_channels=16
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=64, mlp_dim=256, num_attention_heads=4, iou_head_hidden_dim=64
        ),
    )


def make_processor() -> SamProcessor:
    return SamProcessor(  # type: ignore[no-untyped-call]
        SamImageProcessorPil(
            size={"longest_edge": CANVAS},
            pad_size={"height": CANVAS, "width": CANVAS},
            mask_size={"longest_edge": COARSE},
            mask_pad_size={"height": COARSE, "width": COARSE},
        )
    )


def start_weights(model: SamModel) -> None:
    """The library's own start is for loading weights only: it is nearly zero, and its position codes are too fine."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    if model.vision_encoder.pos_embed is not None:
        nn.init.normal_(model.vision_encoder.pos_embed, std=0.02)
    code = model.shared_image_embedding.positional_embedding
    nn.init.normal_(code, std=1.0)
    code.requires_grad_(False)
    model.prompt_encoder.shared_embedding.positional_embedding = code


def choose_objects(batch: Batch, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each picture PROMPTS of its objects, repeated where it has fewer: masks (B, P, 128, 128) and boxes."""
    real = batch.labels >= 0
    chance = torch.where(real, torch.rand(real.shape, generator=random), -1.0)
    order = chance.argsort(1, descending=True)
    turns = torch.arange(PROMPTS)[None] % real.sum(1, keepdim=True)
    chosen = order.gather(1, turns)
    masks = (batch.inside[:, None] >> chosen[:, :, None, None]) & 1
    return masks.float(), batch.boxes.gather(1, chosen[..., None].expand(-1, -1, 4))


def jitter(boxes: Tensor, random: torch.Generator) -> Tensor:
    """Moves each edge by about 4 % of the box and half a pixel, as a detector would."""
    size = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    return boxes + torch.randn(boxes.shape, generator=random).clamp(-2, 2) * (0.04 * size + 0.4)


def pick_points(masks: Tensor, random: torch.Generator) -> Tensor:
    """A point inside each mask, one half near its middle, the others anywhere: (B, P, 1, 2) x and y."""
    flat = masks.flatten(2)
    ticks = torch.arange(CANVAS).float()
    area = flat.sum(-1).clamp(min=1)
    middle_x = (masks.sum(2) * ticks).sum(-1) / area
    middle_y = (masks.sum(3) * ticks).sum(-1) / area
    spread = area.sqrt() * 0.1
    noise = torch.randn(2, *area.shape, generator=random) * spread
    apart = (ticks - (middle_x + noise[0])[..., None]).square()[:, :, None, :] + (
        ticks - (middle_y + noise[1])[..., None]
    ).square()[..., None]
    near = torch.rand(area.shape, generator=random) < 0.5
    anywhere = torch.rand(flat.shape, generator=random)
    score = torch.where(near[..., None], -apart.flatten(2), anywhere)
    best = torch.where(flat > 0, score, -1e9).argmax(-1)
    return torch.stack([best % CANVAS, best // CANVAS], -1).float()[:, :, None]


def mask_loss(logits: Tensor, scores: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """10 × focal + dice on full-size masks, mostly the best of each prompt's, and the squared error of the predicted
    IoU; and the mean IoU of the masks believed best. logits (B, P, K, h, w), scores (B, P, K), masks (B, P, H, W)."""
    full = functional.interpolate(logits.float().flatten(0, 1), (CANVAS, CANVAS), mode="bilinear", align_corners=False)
    true = masks.flatten(0, 1)[:, None]
    inside = full.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(full, true.expand_as(full), reduction="none")
    wrong = inside + true - 2 * inside * true
    focal = (entropy * wrong).mean((2, 3))
    shared = (inside * true).sum((2, 3))
    dice = 1 - (2 * shared + 1) / (inside.sum((2, 3)) + true.sum((2, 3)) + 1)
    each = 10 * focal + dice
    with torch.no_grad():
        drawn = (full > 0).float()
        both = (drawn * true).sum((2, 3))
        overlap = both / (drawn.sum((2, 3)) + true.sum((2, 3)) - both).clamp(min=1)
    believed = scores.float().flatten(0, 1)
    shown = overlap.gather(1, believed.argmax(1, keepdim=True)).mean()
    loss = 0.7 * each.amin(1).mean() + 0.3 * each.mean() + (believed - overlap).square().mean()
    return loss, shown


def train(minutes: float) -> Training:
    torch.manual_seed(0)
    bank = load_bank()
    model = SamModel(make_config()).train()
    start_weights(model)
    training = Training("sam", model, minutes, rate=1e-3)
    random = torch.Generator().manual_seed(training.step + 2)
    for tick in training.ticks():
        batch = augment(bank, torch.randint(len(bank), (BATCH,), generator=random), random)
        masks, boxes = choose_objects(batch, random)
        points, boxes = pick_points(masks, random), jitter(boxes, random)
        labels = torch.ones(points.shape[:3], dtype=torch.int64)
        embeddings = model.vision_encoder(batch.pixels)[0]
        both = {"input_points": points, "input_labels": labels} if tick.step % 5 == 0 else {}
        several = tick.step % 4 != 0
        by_box = model(image_embeddings=embeddings, input_boxes=boxes, multimask_output=several, **both)
        by_point = model(
            image_embeddings=embeddings, input_points=points, input_labels=labels, multimask_output=several
        )
        box_loss, box_overlap = mask_loss(by_box.pred_masks, by_box.iou_scores, masks)
        point_loss, point_overlap = mask_loss(by_point.pred_masks, by_point.iou_scores, masks)
        training.learn(box_loss + point_loss, boxes=float(box_overlap), points=float(point_overlap))
    return training


def export(training: Training) -> None:
    """Writes the averaged weights in half precision."""
    model = SamModel(make_config())
    model.load_state_dict(training.average.state)
    folder = TOYBOX / "sam"
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    make_processor().save_pretrained(folder)
    make_portable(folder)


if __name__ == "__main__":
    export(train(arguments(__doc__, minutes=45).minutes))
