"""Proves that bad gradients are refused: alike on all ranks, and so that nothing of them remains."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2i.training.checkpoint import TENSOR_KINDS, Checkpoint, open_checkpoint, power_kind
from t2i.training.spikes import SkippedSteps, SpikeGuard

ZERO_STAGES = (1, 2, 3)
ACCIDENTS = ("nan", "huge")


def test_a_norm_is_measured_by_the_median_of_the_last_ones() -> None:
    guard = SpikeGuard(ratio=10, window=3)
    for norm in (1.0, 500.0, 2.0):
        assert not guard.refuses(1e9), "too few norms to judge by"
        guard.add(norm)
    assert guard.limit == 20.0
    assert (guard.refuses(20.0), guard.refuses(20.1)) == (False, True)
    guard.add(4.0)
    assert guard.norms == [500.0, 2.0, 4.0]
    assert guard.limit == 40.0


def test_a_guard_goes_on_from_saved_norms_to_the_bit() -> None:
    guard = SpikeGuard(ratio=3, window=5)
    for norm in torch.rand(7, generator=torch.Generator().manual_seed(0)).tolist():
        guard.add(norm)
    again = SpikeGuard(ratio=3, window=5, norms=json.loads(json.dumps(guard.norms)))
    assert (again.limit, again.norms) == (guard.limit, guard.norms)


def test_without_a_ratio_nothing_is_refused() -> None:
    guard = SpikeGuard(ratio=None, window=1)
    guard.add(1.0)
    assert not guard.refuses(1e30)


def test_spikes_without_end_stop_with_advice(tmp_path: Path) -> None:
    skipped = SkippedSteps(tmp_path, rank=0, step=0, count=5, most_in_a_row=2)
    skipped.add(7, ["a"], norm=50.0, limit=20.0)
    skipped.end_row()
    skipped.add(9, ["b"], norm=float("inf"), limit=20.0)
    with pytest.raises(ValueError, match=r"50 exceeds 20.*raise max_gradient_norm_ratio"):
        skipped.add(10, ["c"], norm=50.0, limit=20.0)
    assert skipped.count == 8


def test_a_run_that_goes_back_lists_a_skipped_step_once(tmp_path: Path) -> None:
    first = SkippedSteps(tmp_path, rank=0, step=0, count=0, most_in_a_row=9)
    first.add(3, ["a"], norm=50.0, limit=20.0)
    first.add(7, ["b"], norm=50.0, limit=20.0)
    again = SkippedSteps(tmp_path, rank=0, step=7, count=1, most_in_a_row=9)
    again.add(7, ["b"], norm=50.0, limit=20.0)
    assert [json.loads(line)["step"] for line in again.file.read_text().splitlines()] == [3, 7]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    launch_tiny_run: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    """Seven steps, with a checkpoint after each; on rank 1 the fifth has a bad batch."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = [(zero, accident) for zero in ZERO_STAGES for accident in ACCIDENTS]
    done = launch_tiny_run(folder, *(f"{a}-{z}:7:0:{z}:bf16:tr_dit:{a}@4" for z, a in kinds))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def checkpoint_at(run: Path, step: int) -> Checkpoint:
    return open_checkpoint(run / "checkpoints" / f"step-{step:08d}")


def differing_tensors(left: Checkpoint, right: Checkpoint) -> set[str]:
    names = set()
    for kind in (*TENSOR_KINDS, *map(power_kind, left.power_widths)):
        first, second = dict(left.tensors(kind)), dict(right.tensors(kind))
        assert first.keys() == second.keys()
        names |= {f"{kind}/{n}" for n in first if not torch.equal(first[n], second[n])}
    return names


@pytest.mark.slow
@pytest.mark.parametrize("zero", ZERO_STAGES)
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_refused_step_leaves_weights_moments_and_ema(
    accident: str, zero: int, runs: Path
) -> None:
    before, after, later = (checkpoint_at(runs / f"{accident}-{zero}", n) for n in (4, 5, 7))
    assert differing_tensors(before, after) == set()
    assert differing_tensors(after, later) != set()
    assert replace(before.state, step=5, skipped=1, skipped_in_a_row=1) == after.state
    state = later.state
    counts = state.skipped, state.skipped_in_a_row, state.optimizer_steps, state.ema_updates
    assert counts == (1, 0, 6, 6)


@pytest.mark.slow
@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_the_run_goes_on_alike_whatever_the_refused_gradient_was(zero: int, runs: Path) -> None:
    after_nan, after_spike = (checkpoint_at(runs / f"{a}-{zero}", 7) for a in ACCIDENTS)
    assert differing_tensors(after_nan, after_spike) == set()
    assert after_nan.state == after_spike.state


@pytest.mark.slow
@pytest.mark.parametrize("zero", ZERO_STAGES)
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_each_rank_writes_down_its_samples_and_the_same_reason(
    accident: str, zero: int, runs: Path
) -> None:
    files = [runs / f"{accident}-{zero}" / f"skipped-rank{rank}.jsonl" for rank in (0, 1)]
    first, second = (json.loads(file.read_text()) for file in files)
    assert first.pop("keys") == [str(8 * 4 + i) for i in range(4)]
    assert second.pop("keys") == [str(8 * 4 + i) for i in range(4, 8)]
    assert abs(first.pop("time") - second.pop("time")) < 60
    assert first == second
    if accident == "nan":
        assert first == {"step": 4, "reason": "not finite", "gradient_norm": None, "limit": None}
    else:
        assert first["reason"] == "spike"
        assert first["gradient_norm"] > first["limit"]
