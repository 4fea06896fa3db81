"""Train the nano VAE: a small `diffusers.AutoencoderKL` on rendered Shapes scenes.

    python -m launch.nano.vae --output t2i/assets/nano/vae

Seeded by (seed, step): the same command resumes from its last checkpoint and, when finished,
says so. At the end the scaling factor is set so that latents have unit variance, and the
reconstruction PSNR on held-out scenes is measured and written to ``metrics.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.console import command_parser, get_logger, progress, run_command

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from t2i.encoders.vae import VAE

LOG = get_logger("nano.vae")
IMAGE_SIZE = 128
LATENT_CHANNELS = 4
BLOCK_CHANNELS = (16, 32, 64, 64)
KL_WEIGHT = 1e-6
ABSOLUTE_WEIGHT = 0.1
# Crowded scenes teach colours and edges sooner; held-out scenes are ordinary ones.
MAX_TRAINING_OBJECTS = 9
WARMUP_STEPS = 100
CHECKPOINT_EVERY = 250
# Most steps see crops, which are quick; the last ones whole pictures, for the normalisations.
CROP_SIZE = 64
WHOLE_IMAGE_SHARE = 0.06
HELD_OUT_SEED = 1_000_000_000
NUM_SCALED = 512  # images that tell the scale of latents


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m launch.nano.vae", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained VAE")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps (default 4000)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (default 16)")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--held-out", type=int, default=256, help="scenes measured at the end (256)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if (args.output / "metrics.json").exists():
        LOG.info("%s is finished: %s", args.output, (args.output / "metrics.json").read_text())
        return 0
    model = train(args)
    finish(model, args)
    return 0


def train(args: argparse.Namespace) -> AutoencoderKL:
    """Minimise the reconstruction loss, from the newest checkpoint on."""
    import torch

    model = build_model(args.seed).to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
    checkpoint = args.output.with_name(args.output.name + ".training.pt")
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        LOG.info("resuming at step %d from %s", start, checkpoint)
    with progress("nano VAE", args.steps, "steps", start) as bar:
        for step in range(start, args.steps):
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * learning_rate_factor(step, args.steps)
            first = step * args.batch
            images = rendered_batch(args.seed, first, args.batch, MAX_TRAINING_OBJECTS)
            images = images.to(args.device)
            if step < (1 - WHOLE_IMAGE_SHARE) * args.steps:
                images = random_crops(images, args.seed, step)
            loss, squared_error = reconstruction_loss(model, images, args.seed, step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update(1, {"loss": loss.item(), "psnr": psnr(squared_error.item())})
            if (step + 1) % CHECKPOINT_EVERY == 0:
                save_checkpoint(checkpoint, model, optimizer, step + 1)
    return model


def finish(model: AutoencoderKL, args: argparse.Namespace) -> None:
    """Set the scaling factor, save in float16, measure what was saved on held-out scenes."""
    import torch

    from t2i.encoders.vae import load_vae
    from t2i.encoders.vae_config import VAEConfig

    with torch.no_grad():
        images = rendered_batch(args.seed, 0, NUM_SCALED).to(args.device)
        means = torch.cat([model.encode(chunk).latent_dist.mean for chunk in images.split(32)])
    model.register_to_config(
        scaling_factor=1 / means.std().item(), shift_factor=means.mean().item()
    )
    model.half().save_pretrained(args.output)
    held_out = rendered_batch(HELD_OUT_SEED, 0, args.held_out)
    metrics = {
        "psnr": reconstruction_psnr(load_vae(VAEConfig(path=str(args.output))), held_out),
        "num_images": args.held_out,
        "steps": args.steps,
        "seed": args.seed,
    }
    (args.output / "metrics.json").write_text(json.dumps(metrics) + "\n")
    args.output.with_name(args.output.name + ".training.pt").unlink(missing_ok=True)
    LOG.info("held-out PSNR %.2f dB, saved to %s", metrics["psnr"], args.output)


def build_model(seed: int) -> AutoencoderKL:
    """The nano architecture: 8x down, 4 channels, no attention, about 1M parameters."""
    import torch
    from diffusers import AutoencoderKL

    num_blocks = len(BLOCK_CHANNELS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=BLOCK_CHANNELS,
            down_block_types=("DownEncoderBlock2D",) * num_blocks,
            up_block_types=("UpDecoderBlock2D",) * num_blocks,
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            sample_size=IMAGE_SIZE,
            mid_block_add_attention=False,
        )


def rendered_batch(seed: int, first: int, num: int, max_objects: int = 3) -> torch.Tensor:
    """Scenes number ``first`` to ``first + num`` of a seed: (num, 3, 128, 128) in [-1, 1]."""
    import numpy as np
    import torch

    from t2i.shapes import random_scene, render

    images = []
    for index in range(first, first + num):
        rng = np.random.default_rng((seed, index))
        images.append(np.asarray(render(random_scene(rng, max_objects), rng, IMAGE_SIZE)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_crops(images: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """One crop of CROP_SIZE x CROP_SIZE pixels of each image, at a multiple of 8 pixels."""
    import torch

    from t2i import rng

    num_offsets = (IMAGE_SIZE - CROP_SIZE) // 8 + 1
    draws = rng.uniform(seed, "nano_vae_crop", step, torch.arange(len(images)), (2,))
    corners = (8 * (draws * num_offsets).floor().long()).tolist()
    crops = [
        image[:, top : top + CROP_SIZE, left : left + CROP_SIZE]
        for image, (top, left) in zip(images, corners, strict=True)
    ]
    return torch.stack(crops)


def reconstruction_loss(
    model: AutoencoderKL, images: torch.Tensor, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared plus weighted absolute error plus KL per pixel; and the mean squared error."""
    import torch

    from t2i import rng

    posterior = model.encode(images).latent_dist
    noise = rng.normal(
        seed, "nano_vae", step, torch.arange(len(images)), tuple(posterior.mean.shape[1:])
    )
    decoded = model.decode(posterior.mean + posterior.std * noise.to(images.device)).sample
    squared_error = (decoded - images).square().mean()
    kl = posterior.kl().mean() / (IMAGE_SIZE * IMAGE_SIZE)
    loss = squared_error + ABSOLUTE_WEIGHT * (decoded - images).abs().mean() + KL_WEIGHT * kl
    return loss, squared_error.detach()


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmup * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1] (peak to peak 2)."""
    return 10 * math.log10(4 / squared_error)


def reconstruction_psnr(vae: VAE, images: torch.Tensor) -> float:
    """Mean over images of the PSNR in dB after encoding to the mean and decoding."""
    values = []
    for chunk in images.split(32):
        moments = vae.encode_moments(chunk)
        decoded = vae.decode(moments[:, : vae.num_channels]).cpu()
        values += [psnr(error) for error in (decoded - chunk).square().mean((1, 2, 3)).tolist()]
    return sum(values) / len(values)


def save_checkpoint(
    path: Path, model: AutoencoderKL, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write whole or not at all."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, partial)
    partial.rename(path)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
