"""Trains the toybox's image autoencoder (`AutoencoderKL`: 4 latent channels, four times smaller) on crops of scenes."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from models.scenes import HELD_OUT, draw_scene, load_sprites
from models.training import TOYBOX, Bank, Training, arguments, load_bank, make_portable

CROP = 64
BATCH = 8
FOLDER = TOYBOX / "sdxl" / "vae"


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
        scaling_factor=1.0,
    )


def crops(bank: Bank, count: int, random: torch.Generator) -> Tensor:
    """Random windows, two of three around an object; (count, 3, 64, 64), values −1 to 1."""
    rows = torch.randint(len(bank), (count,), generator=random)
    draw = torch.rand(count, 6, generator=random)
    found = []
    for row, chance in zip(rows.tolist(), draw.tolist(), strict=True):
        height, width = bank.sizes[row].tolist()
        if chance[0] < 0.67:
            box = bank.boxes[row, int(chance[1] * int((bank.labels[row] >= 0).sum()))].tolist()
            x = box[0] + chance[2] * (box[2] - box[0]) - CROP / 2
            y = box[1] + chance[3] * (box[3] - box[1]) - CROP / 2
        else:
            x, y = chance[2] * (width - CROP), chance[3] * (height - CROP)
        left, top = int(min(max(x, 0), width - CROP)), int(min(max(y, 0), height - CROP))
        crop = bank.pixels[row, top : top + CROP, left : left + CROP]
        if chance[4] < 0.5:
            crop = crop.flip(1)
        found.append(crop)
    return torch.stack(found).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures.diff(dim=2), pictures.diff(dim=3)


def reconstruction_loss(made: Tensor, true: Tensor) -> Tensor:
    """L1 + 2 × MSE + 0.5 × L1 of the gradients: colours first, and edges that stay sharp."""
    loss = functional.l1_loss(made, true) + 2 * functional.mse_loss(made, true)
    for ours, theirs in zip(edges(made), edges(true), strict=True):
        loss = loss + 0.5 * functional.l1_loss(ours, theirs)
    return loss


def held_out_pictures(count: int) -> Tensor:
    """Whole held-out scenes, (count, 3, 128, 128), values −1 to 1."""
    sprites = load_sprites()
    scenes = [draw_scene(sprites, HELD_OUT + index).pixels for index in range(count)]
    return torch.stack([torch.from_numpy(pixels) for pixels in scenes]).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(pictures, 16)])


@torch.no_grad()
def quality(vae: AutoencoderKL, pictures: Tensor, latents: Tensor) -> float:
    """Mean PSNR in dB of the pictures decoded from their latents."""
    made = torch.cat([vae.decode(part).sample for part in torch.split(latents, 16)]).clamp(-1, 1)
    return float((-10 * ((made - pictures) / 2).square().mean((1, 2, 3)).log10()).mean())


@torch.no_grad()
def even_out(vae: AutoencoderKL, latents: Tensor) -> None:
    """Gives each latent channel mean 0 and standard deviation 1, inside the weights, so that decoding stays the same."""
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    bias_of_spread = -2 * spread.log()
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= spread.view(1, -1, 1, 1)
    into.bias[:4] -= mean
    into.bias[:4] /= spread
    into.weight[:4] /= spread.view(-1, 1, 1, 1)
    into.bias[4:] += bias_of_spread


def export(training: Training, vae: AutoencoderKL, folder: Path = FOLDER) -> None:
    """Writes the averaged weights as fp16, with the scale that gives latents a standard deviation of 1."""
    vae.load_state_dict(training.average.state)
    vae.eval()
    pictures = held_out_pictures(96)
    even_out(vae, encode(vae, pictures))
    latents = encode(vae, pictures)
    spread = float(latents.std())
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    print(f"held-out PSNR {quality(vae, pictures, latents):.2f} dB, latent std {spread:.3f}, to {folder}", flush=True)
    vae.half().save_pretrained(folder)
    make_portable(folder)


def train(minutes: float) -> None:
    """Trains encoder and decoder. The latents change, and with them everything that was trained on them."""
    torch.manual_seed(0)
    vae = make_vae()
    training = Training("vae", vae, minutes, rate=1.5e-3, decay=0.998)
    bank = load_bank()
    random = torch.Generator().manual_seed(training.step + 1)
    for _ in training.ticks():
        pictures = crops(bank, BATCH, random)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pictures).latent_dist
            made = vae.decode(latents.sample()).sample.float()
        error = functional.mse_loss(made.detach(), pictures) / 4
        divergence = latents.kl().mean()
        training.learn(reconstruction_loss(made, pictures) + 1e-5 * divergence, psnr=float(-10 * error.log10()))
    export(training, vae)


def train_decoder(minutes: float) -> None:
    """Goes on with the exported decoder alone: sharper pictures from the same latents, so that the UNets stay as they are."""
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(FOLDER, dtype=torch.float32)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    training = Training("vae-decoder", vae, minutes, rate=8e-4, decay=0.998)
    bank = load_bank()
    random = torch.Generator().manual_seed(training.step + 2)
    for _ in training.ticks():
        pictures = crops(bank, BATCH, random)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.mode().float()
            latents += 0.05 * torch.randn(latents.shape, generator=random)
            made = vae.decode(latents).sample.float()
        error = functional.mse_loss(made.detach(), pictures) / 4
        training.learn(reconstruction_loss(made, pictures), psnr=float(-10 * error.log10()))
    vae.load_state_dict(training.average.state)
    pictures = held_out_pictures(96)
    print(f"held-out PSNR {quality(vae, pictures, encode(vae, pictures)):.2f} dB", flush=True)
    for folder in (FOLDER, TOYBOX / "sdxl-inpaint" / "vae", TOYBOX / "sdxl-refiner" / "vae"):
        if folder.exists():
            vae.half().save_pretrained(folder)
            make_portable(folder)
            print(f"written to {folder}", flush=True)


if __name__ == "__main__":
    chosen = arguments(__doc__, minutes=15, decoder="train the exported decoder alone; the latents stay the same")
    (train_decoder if chosen.decoder else train)(chosen.minutes)
