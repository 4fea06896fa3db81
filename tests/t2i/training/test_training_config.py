"""Proves the arithmetic of the training settings and their refusals."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from t2i.training.training_config import TrainingConfig


def test_the_paper_is_the_default() -> None:
    config = TrainingConfig()
    assert (config.learning_rate, config.betas, config.global_batch) == (5e-5, (0.9, 0.95), 3072)
    assert (config.gamma, config.ema_decay, config.gradient_clipping) == (0.5, 0.9999, 1.0)


def test_the_global_batch_is_dealt_out_by_accumulation() -> None:
    config = TrainingConfig(global_batch=96, micro_batch=8)
    assert [config.accumulation(world_size) for world_size in (1, 2, 4)] == [12, 6, 3]


def test_micro_batches_are_as_large_as_they_may_be_and_divide() -> None:
    config = TrainingConfig()
    sizes = {world_size: config.fitted(world_size).micro_batch for world_size in (1, 64, 96, 256)}
    assert sizes == {1: 32, 64: 24, 96: 32, 256: 12}
    for world_size in sizes:
        fitted = config.fitted(world_size)
        assert fitted.accumulation(world_size) * fitted.micro_batch * world_size == 3072
    with pytest.raises(ValueError, match="3072 cannot be divided among 5 processes"):
        config.fitted(5)


def test_a_draw_of_tokens_that_is_never_made_is_refused() -> None:
    assert TrainingConfig().routing_draw == "fixed"
    with pytest.raises(ValidationError, match="gamma 0 lets none skip; set routing_draw to fixed"):
        TrainingConfig(routing_draw="bernoulli", gamma=0)


def test_power_averages_that_cannot_be_are_refused() -> None:
    assert TrainingConfig(power_averages=(0.05, 0.1)).snapshot_every == 0
    for widths in ((0.0,), (0.28,), (0.01, 0.02, 0.03, 0.04, 0.05)):
        with pytest.raises(ValidationError, match=r"power_averages(\.0)?\n"):
            TrainingConfig(power_averages=widths)
    with pytest.raises(ValidationError, match=r"must rise; write \[0\.05, 0\.1\]"):
        TrainingConfig(power_averages=(0.1, 0.05, 0.1))
    with pytest.raises(ValidationError, match="snapshot_every 10 has nothing to write"):
        TrainingConfig(snapshot_every=10)


def test_a_milestone_that_the_run_does_not_reach_is_refused() -> None:
    assert TrainingConfig(steps=10, keep_at=(5, 10)).keep_at == (5, 10)
    with pytest.raises(ValidationError, match=r"keep_at \[11\]: the run has 10 steps"):
        TrainingConfig(steps=10, keep_at=(5, 11))


def test_the_learning_rate_warms_up_and_stays() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=4)
    assert [config.learning_rate_at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert TrainingConfig(learning_rate=1.0, warmup_steps=0).learning_rate_at(0) == 1.0


def test_the_learning_rate_falls_linearly_in_the_last_steps() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=2, steps=8, decay_steps=4)
    rates = [config.learning_rate_at(step) for step in range(8)]
    assert rates == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    with pytest.raises(ValidationError, match="warmup_steps 5 and decay_steps 4 do not fit in 8"):
        TrainingConfig(warmup_steps=5, steps=8, decay_steps=4)
