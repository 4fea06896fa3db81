"""Proves that snapshots give averages of widths that were not tracked, near to those that are tracked
directly on the same random walk; and what happens to damaged, missing and foreign snapshots."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i.training.averages.ema import EMA
from t2i.training.averages.post_hoc import Reconstruction, find_snapshots
from t2i.training.averages.power_functions import gamma_of, power_decay
from t2i.training.checkpoint import (
    TrainingState,
    commit,
    power_kind,
    temporary_folder,
    write_tensors,
)

TRACKED = (0.05, 0.1)
STEPS, EVERY = 300, 30
SHAPES = {"weight": (40, 5), "bias": (40,)}
Tensors = dict[str, Tensor]


def write_snapshot(
    run: Path, step: int, averages: dict[float, Tensors], updates: int | None = None
) -> Path:
    """As the trainer does."""
    temporary = temporary_folder(run / "snapshots", step)
    temporary.mkdir(parents=True)
    for width, tensors in averages.items():
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        write_tensors(temporary, power_kind(width), halves)
    updates = step if updates is None else updates
    state = TrainingState(step, step, step, 0, power_updates=updates)
    return commit(temporary, state, "", keep=None)


def walk(run: Path, direct: tuple[float, ...]) -> dict[int, dict[float, Tensors]]:
    """Snapshots of weights that wander by a twentieth of their size a step; step -> width -> average."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    averages = {
        width: EMA(list(weights.values()), partial(power_decay, gamma=gamma_of(width)))
        for width in (*TRACKED, *direct)
    }
    history = {}
    for step in range(1, STEPS + 1):
        for tensor in weights.values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
        for average in averages.values():
            average.update()
        if step % EVERY == 0:
            history[step] = {
                width: {n: t.clone() for n, t in zip(SHAPES, average.averages, strict=True)}
                for width, average in averages.items()
            }
            write_snapshot(run, step, {width: history[step][width] for width in TRACKED})
    return history


def distance(left: Reconstruction | Tensors, right: Tensors) -> float:
    """Relative: norm of the difference / norm of the right one."""
    flat = [torch.cat([tensors[name].flatten() for name in SHAPES]) for tensors in (left, right)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize(("width", "largest"), [(0.05, 5e-4), (0.075, 1e-3), (0.15, 2e-3)])
def test_a_width_is_made_of_others(width: float, largest: float, tmp_path: Path) -> None:
    """Within what float16 and ten snapshots lose, and 20 times nearer than any tracked width."""
    direct = walk(tmp_path, tuple({width} - set(TRACKED)))
    for step in (STEPS, 8 * EVERY):
        made = Reconstruction(find_snapshots(tmp_path, step), width)
        assert made.snapshots[-1].state.step == step
        wanted = direct[step][width]
        assert {name: made[name].dtype for name in made} == dict.fromkeys(SHAPES, torch.float32)
        error = distance(made, wanted)
        assert error < largest
        for tracked in set(TRACKED) - {width}:
            assert 20 * error < distance(direct[step][tracked], wanted)


def test_steps_without_an_update_are_no_other_average(tmp_path: Path) -> None:
    """Nor is one before the first update; both would be singular."""
    last = walk(tmp_path, ())[STEPS]
    averages = {width: last[width] for width in TRACKED}
    before = Reconstruction(find_snapshots(tmp_path), 0.075)
    write_snapshot(tmp_path, STEPS + 5, averages, updates=STEPS)
    write_snapshot(tmp_path, 1, averages, updates=0)
    after = Reconstruction(find_snapshots(tmp_path), 0.075)
    assert after.snapshots[-1].state.step == STEPS + 5
    assert len(after.snapshots) == len(before.snapshots)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_damaged_snapshot_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    walk(tmp_path, ())
    whole = dict(Reconstruction(find_snapshots(tmp_path), 0.075))
    damaged = tmp_path / "snapshots" / f"step-{8 * EVERY:08d}"
    file = damaged / f"{power_kind(0.1)}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    logger = logging.getLogger("sparse")
    logger.propagate = True
    found = find_snapshots(tmp_path)
    logger.propagate = False
    assert f"{damaged} is damaged and passed over: the content of {file.name}" in caplog.text
    assert len(found) == STEPS // EVERY - 1
    made = Reconstruction(found, 0.075)
    assert 0 < distance(made, whole) < 1e-2
    with pytest.raises(ValueError, match=rf"the snapshot of step {8 * EVERY} is damaged; choose"):
        find_snapshots(tmp_path, 8 * EVERY)


def test_what_is_half_written_is_absent(tmp_path: Path) -> None:
    walk(tmp_path, ())
    newest = tmp_path / "snapshots" / f"step-{STEPS:08d}"
    newest.rename(newest.with_suffix(".tmp"))
    assert find_snapshots(tmp_path)[-1].state.step == STEPS - EVERY


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no whole snapshot; train with .*power_averages"):
        find_snapshots(tmp_path)
    averages = {width: {"w": torch.ones(2)} for width in TRACKED}
    write_snapshot(tmp_path, 5, averages, updates=0)
    with pytest.raises(FileNotFoundError, match="no whole snapshot"):
        find_snapshots(tmp_path)
    write_snapshot(tmp_path, 10, averages)
    with pytest.raises(ValueError, match=r"no snapshot of step 7; there are \[5, 10\]"):
        find_snapshots(tmp_path, 7)
    with pytest.raises(ValueError, match=r"width 0.2 cannot be made of 1 snapshot\(s\).*by 60%"):
        Reconstruction(find_snapshots(tmp_path), 0.2)
    write_snapshot(tmp_path, 20, {width: {"v": torch.ones(2)} for width in TRACKED})
    with pytest.raises(ValueError, match=r"power-0\.05\.safetensors has other tensors than"):
        Reconstruction(find_snapshots(tmp_path), 0.075)
    write_snapshot(tmp_path, 30, {0.1: averages[0.1]})
    with pytest.raises(ValueError, match=r"has the widths \[0\.05, 0\.1\], but .* \[0\.1\]"):
        find_snapshots(tmp_path)
