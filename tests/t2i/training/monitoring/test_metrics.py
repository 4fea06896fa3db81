"""Proves the loss sums by time, and that rates leave out what did not train."""

from __future__ import annotations

import time

import pytest
import torch

from t2i.training.monitoring.metrics import NUM_TIME_BINS, PHASES, LossSums, Window, mean_losses

CPU = torch.device("cpu")


def test_losses_are_averaged_by_eighths_of_time() -> None:
    sums = LossSums(CPU)
    sums.add(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.1]))
    sums.add(torch.tensor([8.0]), torch.tensor([1.0]))
    mean, by_time = mean_losses(sums.sums_2T)
    assert mean == pytest.approx(4.0)
    assert by_time == [2.0, *[None] * 6, 8.0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that `time.monotonic` tells, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def spend(window: Window, clock: list[float], phase: str, seconds: float) -> None:
    with window.stopwatch.timed(phase):
        clock[0] += seconds


def test_rates_are_of_applied_steps_in_the_time_of_training(clock: list[float]) -> None:
    window = Window(CPU)
    for phase, seconds in (("data", 1), ("forward", 2), ("validation", 10), ("saving", 4)):
        spend(window, clock, phase, seconds)
    clock[0] += 3  # other
    window.steps = 3  # one of them skipped
    for norm in (1.0, 3.0):
        window.add_applied(torch.ones(2, NUM_TIME_BINS), flops=12e12, gradient_norm=norm)
    fields = window.fields(global_batch=6, world_size=2, peak_tflops=10)
    assert fields["seconds"] == 20
    assert fields["images_per_second"] == 2 * 6 / 6
    assert fields["tflops"] == 24 / 6 / 2
    assert fields["mfu"] == 0.2
    assert (fields["gradient_norm"], fields["largest_gradient_norm"]) == (2, 3)
    assert fields["validation_share"] == 0.5
    assert fields["other_share"] == pytest.approx(3 / 20)
    assert sum(fields[f"{phase}_share"] for phase in (*PHASES, "other")) == pytest.approx(1)


def test_a_window_without_an_applied_step_has_no_loss(clock: list[float]) -> None:
    window = Window(CPU)
    window.steps = 1
    spend(window, clock, "forward", 1)
    fields = window.fields(global_batch=6, world_size=1, peak_tflops=None)
    assert "loss" not in fields
    assert (fields["images_per_second"], fields["tflops"], fields["mfu"]) == (0, 0, None)
