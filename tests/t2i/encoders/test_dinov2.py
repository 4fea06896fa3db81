"""Proves that DINOv2 sees what it was made for and gives its class token, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from t2i.encoders.dinov2 import MEAN, STD, load_dinov2, random_dinov2
from t2i.encoders.pictures import Preparation, prepare_pictures

PICTURES = [
    np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8) for seed in range(3)
]


def test_pictures_are_prepared_as_the_reference_does() -> None:
    """Squeezed to 224 x 224, as evaluations have it, not cropped, as the hub's settings would."""
    processor = BitImageProcessorPil(
        size={"height": 224, "width": 224},
        do_center_crop=False,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    reference = processor(PICTURES[0], return_tensors="pt")["pixel_values"]
    ours = prepare_pictures(PICTURES[:1], Preparation(224, False, MEAN, STD))
    torch.testing.assert_close(ours, reference, atol=2e-6, rtol=0)


def test_the_class_token_after_the_last_norm() -> None:
    network = random_dinov2(0)
    images = prepare_pictures(PICTURES, Preparation(network.size, False, MEAN, STD))
    states = network.model(pixel_values=images).last_hidden_state
    found = network.embed_pictures(PICTURES)
    torch.testing.assert_close(found, states[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1:2], network.embed_pictures(PICTURES[1:2]), atol=1e-6, rtol=0)


def test_a_folder_loads_as_it_was_saved(tmp_path: Path) -> None:
    network = random_dinov2(0)
    network.model.save_pretrained(tmp_path)
    loaded = load_dinov2(str(tmp_path))
    loaded.size = network.size
    assert torch.equal(loaded.embed_pictures(PICTURES), network.embed_pictures(PICTURES))
    assert (len(loaded.weights_hash), loaded.is_published) == (64, False)
