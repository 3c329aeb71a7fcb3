"""Trains the toybox detector: DetrForObjectDetection (Carion et al., 2020), under a million parameters, one CPU thread.

Plain DETR training needs days. Here every encoder token also learns to name the object at its place, and each picture
is matched by three groups of queries (Group DETR, Chen et al., 2022), of which only the first is kept.
"""

import math

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessorPil, ResNetConfig
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

from models.scenes import KINDS
from models.training import CANVAS, TOYBOX, Batch, Training, arguments, augment, load_bank, make_portable

QUERIES = 12
GROUPS = 3
BATCH = 16
FIRST_LESSON = 0.14  # the share of the time in which only encoder tokens learn


def make_config() -> DetrConfig:
    backbone = ResNetConfig(  # type: ignore[call-arg]
        embedding_size=16, hidden_sizes=[24, 48, 96], depths=[1, 1, 2], layer_type="basic", out_features=["stage3"]
    )
    return DetrConfig(
        use_timm_backbone=False,  # type: ignore[call-arg]
        backbone_config=backbone,
        num_queries=QUERIES,
        d_model=96,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        eos_coefficient=0.4,  # a higher price for a second box on the same object than DETR's 0.1
        auxiliary_loss=False,  # True would move a layer norm between the decoder's layers: another network
        id2label=dict(enumerate(KINDS)),
        label2id={kind: index for index, kind in enumerate(KINDS)},
    )


def sine_codes(points: Tensor, width: int) -> Tensor:
    """DETR's own position code for points (N, 2), x and y in 0…1: (N, width)."""
    half = width // 2
    index = torch.arange(half)
    wavelength = 10_000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    codes = []
    for place in (points[:, 1], points[:, 0]):
        angle = place[:, None] * 2 * math.pi / wavelength
        codes.append(torch.where(index % 2 == 0, angle.sin(), angle.cos()))
    return torch.cat(codes, 1)


def spread_points(generator: torch.Generator) -> Tensor:
    """Twelve points on a jittered 4 × 3 grid."""
    across, down = torch.meshgrid(torch.arange(4), torch.arange(3), indexing="xy")
    grid = torch.stack([(across.flatten() + 0.5) / 4, (down.flatten() + 0.5) / 3], 1)
    return (grid + (torch.rand(QUERIES, 2, generator=generator) - 0.5) * 0.16).clamp(0.02, 0.98)


class Trainable(nn.Module):
    """The detector with ordinary batch norm, all queries of all groups, and every layer's answers."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.detector = DetrForObjectDetection(config)
        self.detector.model.unfreeze_backbone()
        thaw_batch_norm(self.detector)
        start_weights(self.detector)
        generator = torch.Generator().manual_seed(5)
        codes = [sine_codes(spread_points(generator), config.d_model) for _ in range(GROUPS)]
        self.detector.model.query_position_embeddings.weight.data.copy_(codes[0])
        self.other_queries = nn.Parameter(torch.stack(codes[1:]))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layer_outputs: list[Tensor] = []
        for layer in self.detector.model.decoder.layers:
            layer.register_forward_hook(self.keep_output)

    def keep_output(self, module: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self.layer_outputs.append(output if isinstance(output, Tensor) else output[0])

    def forward(self, pixels: Tensor, valid: Tensor, with_queries: bool) -> tuple[Tensor, list[Tensor]]:
        """Encoder tokens (B, T, D) and, per decoder layer, query states (groups × B, Q, D)."""
        model = self.detector.model
        features, mask = model.backbone(pixels, valid)[-1]
        tokens = model.input_projection(features).flatten(2).transpose(1, 2)
        places = model.position_embedding(shape=features.shape, device=pixels.device, dtype=pixels.dtype, mask=mask)
        places, mask = places.flatten(2).transpose(1, 2), mask.flatten(1)
        memory = model.encoder(inputs_embeds=tokens, attention_mask=mask, spatial_position_embeddings=places)[0]
        if not with_queries:
            return memory, []
        first = model.query_position_embeddings.weight[None]
        queries = torch.cat([first, self.other_queries]).repeat_interleave(len(pixels), 0)
        self.layer_outputs.clear()
        model.decoder(
            inputs_embeds=torch.zeros_like(queries),
            spatial_position_embeddings=places.repeat(GROUPS, 1, 1),
            object_queries_position_embeddings=queries,
            encoder_hidden_states=memory.repeat(GROUPS, 1, 1),
            encoder_attention_mask=mask.repeat(GROUPS, 1),
        )
        return memory, [model.decoder.layernorm(output) for output in self.layer_outputs]

    def answers(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and boxes (centre, width, height in 0…1) through the detector's own heads."""
        boxes = self.detector.bbox_predictor(states).float().sigmoid()
        return self.detector.class_labels_classifier(states).float(), boxes


def thaw_batch_norm(module: nn.Module) -> None:
    """Transformers freezes batch norm, here with statistics of nothing: learn them, under the same names."""
    for name, child in module.named_children():
        if isinstance(child, DetrFrozenBatchNorm2d):
            setattr(module, name, nn.BatchNorm2d(len(child.weight), momentum=0.03))
        else:
            thaw_batch_norm(child)


def start_weights(detector: DetrForObjectDetection) -> None:
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def corners(boxes: Tensor) -> Tensor:
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def overlap_loss(found: Tensor, true: Tensor) -> Tensor:
    """1 − generalized IoU of paired corner boxes (N, 4)."""
    low, high = torch.maximum(found[:, :2], true[:, :2]), torch.minimum(found[:, 2:], true[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    union = (found[:, 2:] - found[:, :2]).prod(1) + (true[:, 2:] - true[:, :2]).prod(1) - shared
    around = (torch.maximum(found[:, 2:], true[:, 2:]) - torch.minimum(found[:, :2], true[:, :2])).prod(1)
    return 1 - shared / union.clamp(min=1e-6) + (around - union) / around.clamp(min=1e-6)


def relative_boxes(batch: Batch) -> Tensor:
    """Truth in DETR's form: centre, width and height as shares of the picture, without its padding."""
    scale = batch.sizes.flip(1).repeat(1, 2)[:, None, :]
    boxes = batch.boxes / scale
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def token_loss(model: Trainable, memory: Tensor, batch: Batch, truth: Tensor) -> Tensor:
    """Every encoder token names the object whose box it lies in (the nearest centre first) and draws its box."""
    logits, boxes = model.answers(memory)
    side = math.isqrt(memory.shape[1])
    ticks = (torch.arange(side) + 0.5) * (CANVAS / side)
    points = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).view(1, -1, 1, 2)
    low, high = batch.boxes[:, None, :, :2], batch.boxes[:, None, :, 2:]
    within = ((points > low) & (points < high)).all(-1) & (batch.labels >= 0)[:, None]
    distance = ((points - (low + high) / 2) / (high - low).clamp(min=1)).square().sum(-1)
    nearest = torch.where(within, distance, 1e9).argmin(-1)
    covered = within.any(-1)
    labels = torch.where(covered, batch.labels.gather(1, nearest), len(KINDS))
    weights = torch.ones(len(KINDS) + 1)
    weights[-1] = 0.25
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels, weights)
    true = truth.gather(1, nearest[..., None].expand(-1, -1, 4))[covered]
    found = boxes[covered]
    return loss + 5 * (found - true).abs().sum(1).mean() + 2 * overlap_loss(corners(found), corners(true)).mean()


def query_loss(model: Trainable, states: list[Tensor], batch: Batch, truth: Tensor) -> Tensor:
    """DETR's set loss for every decoder layer and every group."""
    real = batch.labels >= 0
    targets = [
        {"class_labels": labels[kept], "boxes": boxes[kept]}
        for labels, boxes, kept in zip(batch.labels, truth, real, strict=True)
    ] * GROUPS
    total = torch.zeros(())
    for layer in states:
        logits, boxes = model.answers(layer)
        config = model.detector.config
        total = total + model.detector.loss_function(logits, targets, logits.device, boxes, config)[0]
    return total / len(states)


def train(minutes: float) -> Training:
    torch.manual_seed(0)
    bank = load_bank()
    model = Trainable(make_config()).train()
    training = Training("detr", model, minutes, rate=1e-3)
    random = torch.Generator().manual_seed(training.step + 1)
    easy, crowded = torch.nonzero(bank.counts <= 2).flatten(), torch.nonzero(bank.counts >= 3).flatten()
    for tick in training.ticks():
        with_queries = tick.progress > FIRST_LESSON
        if tick.progress < 0.3:
            rows = easy[torch.randint(len(easy), (BATCH,), generator=random)]
        else:
            rows = torch.randint(len(bank), (BATCH,), generator=random)
            rows[: BATCH // 4] = crowded[torch.randint(len(crowded), (BATCH // 4,), generator=random)]
        batch = augment(bank, rows, random)
        truth = relative_boxes(batch)
        memory, states = model(batch.pixels, batch.valid, with_queries)
        dense = token_loss(model, memory, batch, truth)
        matched = query_loss(model, states, batch, truth) if with_queries else torch.zeros(())
        training.learn(dense + matched, tokens=float(dense.detach()), queries=float(matched.detach()))
    return training


def export(training: Training) -> None:
    """Writes the averaged weights with frozen batch norm and the first group of queries, in half precision."""
    detector = DetrForObjectDetection(make_config())
    prefix = "detector."
    state = {name.removeprefix(prefix): value for name, value in training.average.state.items() if prefix in name}
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    detector.load_state_dict(state)
    folder = TOYBOX / "detr"
    detector.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    processor = DetrImageProcessorPil(
        size={"shortest_edge": CANVAS, "longest_edge": CANVAS},
        pad_size={"height": CANVAS, "width": CANVAS},  # as in training, where the canvas is always square
    )
    processor.save_pretrained(folder)
    make_portable(folder)


if __name__ == "__main__":
    export(train(arguments(__doc__, minutes=75).minutes))
