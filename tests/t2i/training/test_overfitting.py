"""Proves that training and sampling are inverse to each other: a run on four images learns their velocity
field far below what a model without the image, the caption or the time could reach, and sampling
draws each image back from noise by its caption."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i.batch import TrainingBatch
from t2i.encoders.text import TextStates
from t2i.guidance.methods import make_guidance
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.sampling.sampler import ConditionText, sample_latents
from t2i.training.backbone import text_backbone
from t2i.training.trainer import train

MAKE_RUN = runpy.run_path(str(Path(__file__).with_name("tiny_run.py")))["make_run"]
NUM_IMAGES, BATCH = 4, 16
LATENT_SHAPE = (4, 8, 8)
NAMES = ("circle", "square", "star", "moon")
# A small TR-DiT-nano.
CONFIG = TRDiTConfig(
    num_layers=3,
    width=64,
    num_heads=4,
    text_width=NUM_IMAGES,
    num_refiner_layers=1,
    adaln_rank=16,
    routes=((1, 1),),
)


def images() -> Tensor:
    """(4, C, H, W) of mean 0 and variance 1."""
    return torch.randn(NUM_IMAGES, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))


def encode(captions: Sequence[str]) -> TextStates:
    """Two tokens, both of which say which image it is."""
    rows = torch.tensor([NAMES.index(caption) for caption in captions])
    states = torch.eye(NUM_IMAGES)[rows].unsqueeze(1).expand(-1, 2, -1)
    return TextStates(states, torch.ones(len(captions), 2, dtype=torch.bool))


def make_batch(step: int) -> TrainingBatch:
    """Each image four times."""
    ids = step * BATCH + torch.arange(BATCH)
    rows = ids % NUM_IMAGES
    means = images()[rows]
    moments = torch.cat([means, torch.zeros_like(means)], dim=1).half()
    captions = tuple(NAMES[row] for row in rows)
    return TrainingBatch(moments, captions, captions, ids, step)


def batches(step: int) -> Iterator[TrainingBatch]:
    while True:
        yield make_batch(step)
        step += 1


def draw(model: TRDiT, seeds: Sequence[int]) -> Tensor:
    """One image for each caption, unguided."""
    texts = {"text": ConditionText(encode(NAMES), torch.arange(NUM_IMAGES))}
    return sample_latents({"main": model}, texts, make_guidance("none"), seeds, LATENT_SHAPE, 20)


@pytest.mark.slow
def test_four_images_are_learned_and_drawn_back(tmp_path: Path, process_group: None) -> None:
    """A model that did not see x_t would stay above 1, the variance of the noise; one that did not
    know which image is meant could not draw it. Seen: 2.0 -> 0.3, distances to the own image
    of 0.1 to 0.3, to the others of 1.6 to 2.2.
    """
    torch.manual_seed(0)
    model = TRDiT(CONFIG)
    settings = {"global_batch": BATCH, "validate_every": 1_000, "learning_rate": 5e-3}
    run = MAKE_RUN(tmp_path, 300, 0, 2, "fp32", size=BATCH, **settings)
    backbone = text_backbone(model, encode, run.device)
    assert train(replace(run, backbone=backbone, batches=batches, validation=[make_batch(9999)]))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 1.9 < lines[0]["loss"] < 2.1, "the variances of image and noise"
    assert lines[-1]["validation_loss"] < 0.25 * lines[0]["loss"]
    drawn = draw(model, [5, 6, 7, 8])
    distances = (drawn.unsqueeze(1) - images().unsqueeze(0)).square().flatten(2).mean(dim=2)
    is_own = torch.eye(NUM_IMAGES, dtype=torch.bool)
    assert distances[is_own].max() < 0.7, distances
    assert distances[~is_own].min() > 1.3, distances
