"""Proves the power averages of a run: what they hold, that they are saved, go on, begin anew in another run
and refuse other widths. That they do not depend on where a run stops: test_resume."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from t2i.training.averages.power_functions import gamma_of
from t2i.training.checkpoint import Checkpoint, newest_checkpoint, power_kind, whole_checkpoints
from t2i.training.run import Run, resume, start_new_run

WIDTHS = (0.05, 0.1)  # of tiny_run


@pytest.fixture
def make_run(process_group: None) -> Callable[..., Run]:
    made: Callable[..., Run] = runpy.run_path(str(Path(__file__).parents[1] / "tiny_run.py"))[
        "make_run"
    ]
    return made


def train(run: Run) -> Checkpoint:
    """The last checkpoint of a trained run."""
    from t2i.training import trainer

    assert trainer.train(run)
    saved = newest_checkpoint(run.folder / "checkpoints")
    assert saved is not None
    return saved


def test_they_are_the_weighted_sums_of_the_weights(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    steps = 5
    saved = train(
        make_run(tmp_path, steps, 0, 2, "fp32", checkpoint_every=1, keep_checkpoints=steps)
    )
    history = [c.tensors("weights") for c in whole_checkpoints(tmp_path / "checkpoints")][::-1]
    assert saved.power_widths == WIDTHS
    assert saved.state.power_updates == steps
    for width in WIDTHS:
        parts = np.diff((np.arange(steps + 1) / steps) ** (gamma_of(width) + 1))
        for name, tensor in saved.tensors(power_kind(width)).items():
            expected = sum(
                part * weights[name].double() for part, weights in zip(parts, history, strict=True)
            )
            assert isinstance(expected, torch.Tensor)
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_snapshots_are_the_averages_of_their_step_in_float16_and_all_stay(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    train(make_run(tmp_path, 5, 0, 2, "fp32", checkpoint_every=1, keep_checkpoints=5))
    snapshots = list(whole_checkpoints(tmp_path / "snapshots"))[::-1]
    assert [s.state.step for s in snapshots] == [2, 4, 5]
    checkpoints = {c.state.step: c for c in whole_checkpoints(tmp_path / "checkpoints")}
    for snapshot in snapshots:
        saved = checkpoints[snapshot.state.step]
        assert snapshot.state == saved.state
        assert snapshot.power_widths == WIDTHS
        assert not (snapshot.path / "weights.safetensors").exists()
        for width in WIDTHS:
            whole = saved.tensors(power_kind(width))
            for name, tensor in snapshot.tensors(power_kind(width)).items():
                assert torch.equal(tensor, whole[name].half())


def test_another_run_begins_them_anew_with_its_first_update(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    first = train(make_run(tmp_path / "first", 2, 0, 2, "fp32"))
    run = make_run(tmp_path / "second", 1, 0, 2, "fp32")
    saved = train(replace(run, start=start_new_run(first, with_moments=True)))
    assert (saved.state.power_updates, saved.state.ema_updates) == (1, 3)
    for width in WIDTHS:
        for name, tensor in saved.tensors(power_kind(width)).items():
            assert torch.equal(tensor, saved.tensors("weights")[name]), "the update copies"


def test_a_refused_step_does_not_count(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(tmp_path, 3, 0, 2, "fp32")
    with_accident = runpy.run_path(str(Path(__file__).parents[1] / "tiny_run.py"))["with_accident"]
    saved = train(replace(run, batches=with_accident(run.batches, "nan", 1)))
    assert (saved.state.step, saved.state.power_updates) == (3, 2)


@pytest.mark.parametrize("widths", [(), (0.05,), (0.05, 0.1, 0.2)])
def test_a_run_cannot_change_its_widths(
    widths: tuple[float, ...], make_run: Callable[..., Run], tmp_path: Path
) -> None:
    saved = train(make_run(tmp_path, 1, 0, 2, "fp32"))
    with pytest.raises(ValueError, match=r"power_averages is .*; set it to \[0\.05, 0\.1\], or"):
        resume(saved, widths)
