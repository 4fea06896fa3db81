"""How well the detector does on pictures that are right: the ceiling of the Shapes scores.

A detailed prompt tells a scene up to small shifts, so its true picture can be drawn. What a sampler
could reach at best is the score of that picture after the VAE, which all samples go through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from t2i.encoders.vae import VAE, load_vae
from t2i.encoders.vae_config import VAEConfig
from t2i.shapes import parse_scene, render


def rendered(prompts: Sequence[str], size: int, seed: int = 0) -> Iterator[Image.Image]:
    """The true picture of each prompt, ``size`` x ``size`` pixels; picture i by (seed, i).

    Raises:
        ValueError: a prompt tells less than a scene.
    """
    for number, prompt in enumerate(prompts):
        yield render(parse_scene(prompt), np.random.default_rng([seed, number]), size)


def reconstructed(images: Iterable[Image.Image], vae: VAE) -> Iterator[Image.Image]:
    """Each picture encoded to the posterior's mean and decoded again."""
    for image in images:
        pixels_HW3 = torch.from_numpy(np.array(image.convert("RGB"))).float() / 127.5 - 1
        moments_B2Chw = vae.encode_moments(pixels_HW3.permute(2, 0, 1)[None])
        decoded_3HW = vae.decode(moments_B2Chw[:, : vae.num_channels])[0]
        pixels = ((decoded_3HW.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8)
        yield Image.fromarray(pixels.cpu().numpy())


def true_pictures(
    prompts: Sequence[str], size: int, vae: str, device: torch.device
) -> dict[str, list[Image.Image]]:
    """The true picture of each prompt, as drawn and after a VAE, by what they are.

    Raises:
        ValueError: a prompt tells less than a scene.
    """
    truth = list(rendered(prompts, size))
    decoded = list(reconstructed(truth, load_vae(VAEConfig(path=vae), device)))
    return {"rendered": truth, "rendered, through the VAE": decoded}
