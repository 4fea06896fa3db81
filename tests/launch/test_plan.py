"""Proves the plan: its sums, what it refuses, and that it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.plan import Config, main, make_jobs
from launch.plan_model import GIB, ZERO_STAGES, Job, memory, time, traffic
from t2i.config import ConfigError, load_config
from t2i.hardware import GPUS

REPO = Path(__file__).resolve().parents[2]
FULL = REPO / "configs" / "tr_dit_2b5.yaml"


def jobs(num_gpus: int, *overrides: str) -> list[Job]:
    config = load_config(FULL, list(overrides), Config)
    return make_jobs(config, config.plan, num_gpus)


def test_a_plan_is_made_without_torch() -> None:
    program = (
        "import sys, launch.plan; launch.plan.main(['--gpus', '1']); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].startswith("PLAN, not measured")
    assert done.stdout.splitlines()[-1] == "False"


def test_parts_of_memory_sum_to_the_peak() -> None:
    for job in jobs(64):
        for zero_stage in ZERO_STAGES:
            row = memory(job, zero_stage, True)
            parts = (row.weights, row.optimizer, row.averages, row.gradients, row.bucket)
            parts += (row.activations, row.text_encoder, row.reserve)
            assert row.total == sum(parts)
            assert row.fits == (row.total <= GPUS["h200"].memory_gib * GIB)


def test_states_of_the_full_model_on_one_gpu_are_45_gigabytes() -> None:
    (job, _) = jobs(1)
    row = memory(job, 2, True)
    assert row.weights + row.optimizer + row.averages == pytest.approx(45.5e9, rel=0.02)


def test_larger_batches_and_resolutions_need_more() -> None:
    stage1, stage2 = jobs(96)
    (small, _) = jobs(96, "t2i.training.micro_batch=8")
    assert (stage1.micro_batch, small.micro_batch) == (32, 8)
    rows = [memory(job, 2, False).activations for job in (small, stage1, stage2)]
    assert rows[1] == pytest.approx(4 * rows[0], rel=0.01)
    assert rows[2] > 3.5 * rows[1]


def test_time_is_arithmetic_and_what_is_sent() -> None:
    (job, _) = jobs(64, "launch.plan.mfu=0.5", "launch.plan.exposed=[0, 0, 0]")
    row = time(job, 2, False)
    assert row.seconds == pytest.approx(row.tflops / (0.5 * 989))
    assert row.days * 86400 == pytest.approx(job.training.steps * row.seconds)
    assert row.gpu_hours == pytest.approx(64 * row.days * 24)
    assert time(job, 2, True).seconds > 1.2 * row.seconds
    (exposed, _) = jobs(64, "launch.plan.mfu=0.5", "launch.plan.exposed=[1, 1, 1]")
    sent = traffic(exposed, 2) / 45e9
    assert time(exposed, 2, False).seconds == pytest.approx(row.seconds + sent)


def test_the_micro_batch_is_fitted_to_the_number_of_gpus() -> None:
    (job, _) = jobs(64)
    assert (job.micro_batch, job.accumulation) == (24, 2)
    with pytest.raises(ConfigError, match=r"3072.*cannot be divided among 100 GPUs"):
        jobs(100)


def test_it_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpus", "256", "--gpu", "a100-80gb", "--config", str(FULL)]
    assert main([*arguments, "--json", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    assert "256 x A100-80GB" in printed
    assert "stage 2: 100,000 steps" in printed
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["planned"] is True
    assert len(figures["stages"]) == 2
    for stage in figures["stages"]:
        assert stage["checkpoint_bytes"] == 16 * figures["num_parameters"]
        assert stage["snapshots_bytes"] == 0


def test_power_averages_and_their_snapshots_take_room(capsys: pytest.CaptureFixture[str]) -> None:
    """A GPU's share of two fp32 averages; two float16 ones in each of 50 snapshots of stage 1."""
    averages = ("t2i.training.power_averages=[0.05, 0.1]", "t2i.training.snapshot_every=8000")
    plain, tracked = (memory(found[0], 2, False) for found in (jobs(64), jobs(64, *averages)))
    assert tracked.averages == 3 * plain.averages
    assert tracked.total - plain.total == 2 * plain.averages
    flags = [part for override in averages for part in ("--set", override)]
    assert main(["--gpus", "64", "--config", str(FULL), *flags]) == 0
    printed = capsys.readouterr().out
    assert "A checkpoint of stage 1: 60.6 GB; 3 kept: 182 GB; all snapshots: 505 GB" in printed


def test_what_has_no_formula_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"launch\.train\.model sit"):
        jobs(8, "launch.train.model=sit")
    with pytest.raises(ConfigError, match=r"launch\.plan\.gpu.*valid: a100-40gb"):
        jobs(8, "launch.plan.gpu=tpu")
