"""Proves that FLOPs follow the batch's real shapes, the routing, and what an objective asks beside."""

from __future__ import annotations

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i.batch import TrainingBatch
from t2i.encoders.text import TextStates
from t2i.models.costs.macs import training_flops
from t2i.training.backbone import Backbone
from t2i.training.monitoring.throughput import batch_flops, peak_tflops
from t2i.training.objectives.moving import make_objective
from t2i.training.objectives.other_forwards import other_forwards, sample_flops, share_of_steps
from t2i.training.training_config import TrainingConfig

CPU = torch.device("cpu")
TINY = runpy.run_path(str(Path(__file__).parents[1] / "tiny_run.py"))
GUIDED = {"name": "model_guidance", "scale": 1.5, "from_step": 3}


def flops_of(
    backbone: Backbone, batch: TrainingBatch, objective: dict[str, Any], gamma: float = 0.5
) -> float:
    config = TrainingConfig.model_validate({"objective": objective, "gamma": gamma})
    moving = make_objective(config, backbone, CPU, {})
    condition = backbone.conditioner.given(batch)
    moving.begin_step(batch.step, lambda: backbone.model.named_parameters())
    return batch_flops(backbone, moving, gamma, batch, condition)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_flow_matching_is_one_pass_of_the_tokens_that_are_there(gamma: float) -> None:
    backbone, batch = TINY["make_backbone"]("tr_dit"), TINY["micro_batch"](0, 0, 4)
    flops = flops_of(backbone, batch, {"name": "flow_matching"}, gamma)
    text = backbone.conditioner.given(batch)
    assert isinstance(text, TextStates)
    assert flops == 4 * training_flops(TINY["TR_DIT"], 16, text.mask.shape[1], gamma)
    wide = replace(batch, moments=torch.cat([batch.moments, batch.moments], dim=3))
    assert flops_of(backbone, wide, {"name": "flow_matching"}, gamma) == 4 * training_flops(
        TINY["TR_DIT"], 32, text.mask.shape[1], gamma
    )


def test_a_teacher_counts_from_the_step_on_in_which_it_is_asked() -> None:
    backbone = TINY["make_backbone"]("sit")
    trained = training_flops(TINY["SIT"], 16, 0, 0.5)
    dense_forward = training_flops(TINY["SIT"], 16, 0, 0.0) / 3
    early, late = (flops_of(backbone, TINY["micro_batch"](n, 0, 2), GUIDED) for n in (2, 3))
    assert early == 2 * trained
    assert late == pytest.approx(2 * (trained + 2 * dense_forward))
    with_references = {**GUIDED, "num_references": 3}
    assert flops_of(backbone, TINY["micro_batch"](3, 0, 2), with_references) == pytest.approx(
        2 * (trained + 4 * dense_forward)
    )


def test_measuring_lambda_is_one_more_forward_pass() -> None:
    backbone = TINY["make_backbone"]("mask_dit")
    objective = {"name": "masked", "weight": {"every": 2}}
    trained = training_flops(TINY["MASK_DIT"], 16, 0, 0.5)
    measured, other = (flops_of(backbone, TINY["micro_batch"](n, 0, 2), objective) for n in (2, 3))
    assert other == 2 * trained
    assert measured == pytest.approx(2 * trained * 4 / 3)


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("sit", {"name": "flow_matching"}),
        ("sit", GUIDED),
        ("sit", {**GUIDED, "num_references": 2, "teacher_skips_tokens": True}),
        ("sit", {"name": "model_guidance", "scale": 1.0}),
        ("mask_dit", {"name": "masked", "weight": {"every": 4}}),
        ("mask_dit", {"name": "masked", "weight": 0.5}),
    ],
)
def test_the_mean_of_a_run_is_that_of_its_steps(kind: str, objective: dict[str, Any]) -> None:
    backbone, steps = TINY["make_backbone"](kind), 10
    batches = [TINY["micro_batch"](step, 0, 2) for step in range(steps)]
    mean = sum(flops_of(backbone, batch, objective) for batch in batches) / steps
    config = TrainingConfig.model_validate({"objective": objective}).objective
    others, share = other_forwards(config, 0.5), share_of_steps(config, steps)
    flops = partial(backbone.training_flops, 16, 0)
    assert mean == pytest.approx(2 * sample_flops(flops, 0.5, others, share))


def test_a_configured_peak_comes_first_and_a_cpu_has_none() -> None:
    assert peak_tflops(TrainingConfig(peak_tflops=500), CPU) == 500
    assert peak_tflops(TrainingConfig(), CPU) is None
