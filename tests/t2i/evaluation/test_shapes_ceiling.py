"""Proves the ceiling of the Shapes scores: true pictures score one, and the VAE is part of it."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from t2i.encoders.vae import VAE
from t2i.evaluation.shapes_ceiling import reconstructed, rendered
from t2i.evaluation.shapes_eval import SCORES, score_images
from t2i.sampling.prompts import builtin_prompts

PROMPTS = builtin_prompts(30)


def test_true_pictures_score_one() -> None:
    scores = score_images(PROMPTS, rendered(PROMPTS, size=128))
    assert [getattr(scores, name).value for name in SCORES] == [1] * len(SCORES)


def test_pictures_are_seeded() -> None:
    def pixels(seed: int) -> list[bytes]:
        return [image.tobytes() for image in rendered(PROMPTS[:3], size=128, seed=seed)]

    assert pixels(0) == pixels(0)
    assert set(pixels(0)).isdisjoint(pixels(1))


def test_the_vae_is_part_of_its_ceiling() -> None:
    class Black:
        """Stands for a VAE that has learned nothing."""

        num_channels = 4

        def encode_moments(self, images: Tensor) -> Tensor:
            assert images.shape == (1, 3, 128, 128)
            assert -1 <= images.min() < images.max() <= 1
            return torch.zeros(1, 8, 16, 16)

        def decode(self, latents: Tensor) -> Tensor:
            assert latents.shape == (1, 4, 16, 16)
            return -torch.ones(1, 3, 128, 128)

    lost = reconstructed(rendered(PROMPTS, size=128), cast(VAE, Black()))
    assert score_images(PROMPTS, lost).color.value == 0


def test_prompts_that_tell_less_than_a_scene_are_refused() -> None:
    with pytest.raises(ValueError, match="does not tell a whole scene"):
        list(rendered(["a red circle on a white background."], size=128))
