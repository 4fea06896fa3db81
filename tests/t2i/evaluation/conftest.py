"""Sets of pictures for the metrics, and a call of the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.evaluation.context import Context
from t2i.sampling.image_folder import ImageFolder, plan_images

PROMPTS = (
    "The image shows one object on a plain white background. At the left there is a small red circle.",
    "The image shows one object on a plain black background. At the top there is a large blue square.",
)


@pytest.fixture
def context() -> Context:
    """Batches of 4, nothing remembered."""
    return Context(torch.device("cpu"), 4, 2, "refuse", None)


@pytest.fixture(scope="session")
def write_set() -> Callable[..., Path]:
    """(folder, seed, num=6, side=32, prompts=PROMPTS, per_prompt=3) -> the folder, a finished set."""

    def write(
        folder: Path,
        seed: int,
        side: int = 32,
        prompts: Sequence[str] = PROMPTS,
        per_prompt: int = 3,
    ) -> Path:
        jobs = plan_images(prompts, per_prompt, 0, {})
        numbers = np.random.default_rng(seed)
        for job in jobs:
            pixels = numbers.integers(0, 256, (side, side, 3), dtype=np.uint8)
            ImageFolder(folder).write(job, Image.fromarray(pixels))
        ImageFolder(folder).finish(jobs)
        return folder

    return write
