"""How much a run computes: FLOPs of a batch by its real shapes, and what the GPU could do at most."""

from __future__ import annotations

from functools import partial

import torch

from t2i.batch import TrainingBatch
from t2i.encoders.text import TextStates
from t2i.hardware import known_peak_tflops
from t2i.training.backbone import Backbone
from t2i.training.conditions import Condition
from t2i.training.objectives.moving import MovingObjective
from t2i.training.objectives.other_forwards import sample_flops
from t2i.training.training_config import TrainingConfig


def batch_flops(
    backbone: Backbone,
    objective: MovingObjective,
    gamma: float,
    batch: TrainingBatch,
    condition: Condition,
) -> float:
    """FLOPs that training on a micro-batch executes, after routing or masking.

    The network's forward and backward pass and the objective's other forward passes (a teacher's).
    See `t2i.models.costs.macs.training_flops` for what is left out, above all the frozen text encoder.
    Bernoulli draws of tokens are counted by their mean, without what fills up the shorter rows.
    """
    height, width = batch.moments.shape[-2:]
    num_tokens = height * width // backbone.patch_size**2
    text_tokens = condition.mask.shape[1] if isinstance(condition, TextStates) else 0
    training_flops = partial(backbone.training_flops, num_tokens, text_tokens)
    flops = sample_flops(training_flops, gamma, objective.other_forwards(batch.step))
    return flops * len(batch.sample_ids)


def peak_tflops(config: TrainingConfig, device: torch.device) -> float | None:
    """The most that one process could do, TFLOP/s: of the config, or known by the GPU's name."""
    if config.peak_tflops is not None or device.type != "cuda" or config.precision != "bf16":
        return config.peak_tflops
    return known_peak_tflops(torch.cuda.get_device_name(device))
