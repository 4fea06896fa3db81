"""Proves the formulas of memory against the bytes that two real processes under DeepSpeed hold."""

from __future__ import annotations

import json
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i.models.costs.activations import activations
from t2i.models.costs.kernels import Kernels
from t2i.models.costs.parameters import parameter_sizes
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.memory import state_bytes, teacher_bytes
from t2i.training.objectives.moving import MovingGuidance, make_objective
from t2i.training.training_config import TrainingConfig

CASES = ("1:bf16", "2:bf16", "3:bf16", "1:fp32", "2:fp32", "3:fp32")


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory,
    start_two_processes: Callable[..., subprocess.CompletedProcess[str]],
) -> list[dict[str, Any]]:
    """What each rank of a real run wrote."""
    folder = tmp_path_factory.mktemp("memory")
    done = start_two_processes("memory_run.py", str(folder), *CASES)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_states_and_peak_of_a_step(case: str, measured: list[dict[str, Any]]) -> None:
    zero_stage, precision = int(case[0]), case[2:]
    for rank in measured:
        sizes, found = rank["sizes"], rank["cases"][case]
        model = TRDiTConfig.model_validate(rank["model"])
        states = state_bytes(parameter_sizes(model), zero_stage, precision, world_size=2)
        saved = activations(model, **sizes, kernels=Kernels.of(precision, on_gpu=False))
        # the bucket is a hundred times the rest here, and would hide every error
        held_bucket = states.bucket if states.bucket_held else 0
        expected = states.held - held_bucket
        assert found["held"] - held_bucket == pytest.approx(expected, rel=0.02)
        peak = states.peak(saved.peak) - states.bucket
        assert found["peak"] - states.bucket == pytest.approx(peak, rel=0.05)


def test_what_zero_shards_falls_with_the_number_of_processes() -> None:
    sizes = parameter_sizes(TRDiTConfig())
    one, eight = (state_bytes(sizes, 2, "bf16", processes) for processes in (1, 8))
    assert one.weights == eight.weights == 2 * sum(sizes)
    for part in ("optimizer", "averages", "gradients"):
        assert getattr(one, part) == pytest.approx(8 * getattr(eight, part), rel=1e-5)
    # what SPEC's 45 GB of TR-DiT-2.5B are: 18 bytes for each parameter
    assert one.held == 18 * sum(sizes)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_teacher_is_a_copy_of_the_weights(precision: str) -> None:
    tiny = runpy.run_path(str(Path(__file__).with_name("tiny_run.py")))
    guided = {"objective": tiny["GUIDED"], "precision": precision}
    config, backbone = TrainingConfig.model_validate(guided), tiny["make_backbone"]("sit")
    objective = make_objective(config, backbone, torch.device("cpu"), {})
    assert isinstance(objective, MovingGuidance)
    held = sum(average.nbytes for average in objective.averages.values())
    assert teacher_bytes(sum(parameter_sizes(tiny["SIT"])), config) == held
    assert teacher_bytes(10, TrainingConfig()) == 0
