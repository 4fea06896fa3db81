"""The frozen VAE: images to normalised moments, normalised latents to images.

Any `diffusers.AutoencoderKL` by path (nano: bundled; full scale: stabilityai/sd-vae-ft-ema).
"Normalised" means shifted and scaled by the checkpoint's own factors, so that nobody else needs
to know them: latents = (raw - shift_factor) * scaling_factor, of about unit variance.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from t2i.encoders.vae_config import VAEConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VAE:
    """An AutoencoderKL in inference mode; see `load_vae`."""

    def __init__(self, model: AutoencoderKL) -> None:
        self.model = model.eval().requires_grad_(False)
        self.num_channels: int = model.config.latent_channels
        self.downsample: int = 2 ** (len(model.config.block_out_channels) - 1)
        self.scaling_factor: float = model.config.scaling_factor
        self.shift_factor: float = model.config.shift_factor or 0.0

    @torch.inference_mode()
    def encode_moments(self, images: Tensor) -> Tensor:
        """Encode ``images`` (B, 3, H, W) in [-1, 1] to float32 (B, 2C, H/8, W/8).

        The first C channels are the posterior's mean, the others its standard deviation, both
        normalised: ``latents = mean + std * noise``.
        """
        posterior = self.model.encode(images.to(self.model.device, self.model.dtype)).latent_dist
        mean = (posterior.mean.float() - self.shift_factor) * self.scaling_factor
        std = posterior.std.float() * self.scaling_factor
        return torch.cat([mean, std], dim=1)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised ``latents`` (B, C, h, w) to float32 images (B, 3, 8h, 8w) in [-1, 1].

        What overflowed is NaN, infinite values too, which clamping would make black or white.
        """
        raw = latents.to(self.model.device).float() / self.scaling_factor + self.shift_factor
        images = self.model.decode(raw.to(self.model.dtype)).sample.float()
        return images.where(images.isfinite(), torch.nan).clamp(-1, 1)


def load_vae(config: VAEConfig, device: str | torch.device = "cpu") -> VAE:
    """Load the VAE that ``config.path`` names: a folder, or a hub name.

    Raises:
        FileNotFoundError: the folder is not there; names the setting.
    """
    from diffusers import AutoencoderKL

    if config.path.startswith((".", "/")) and not Path(config.path).is_dir():
        raise FileNotFoundError(f"t2i.encoders.vae.path: no folder {config.path}")
    model = AutoencoderKL.from_pretrained(config.path, torch_dtype=DTYPES[config.dtype])
    return VAE(model.to(device))
