"""Proves that the EMA on flat partitions equals its formula, and the ramp of its decay."""

from __future__ import annotations

import pytest
import torch

from t2i.training.ema import EMA, decay_at


def test_the_average_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    masters = [torch.randn(7, generator=generator), torch.randn(3, generator=generator)]
    ema = EMA(masters)
    expected = [master.double() for master in masters]
    for step in range(20):
        for master in masters:
            master += torch.randn(master.shape, generator=generator)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * m.double() for e, m in zip(expected, masters, strict=True)
        ]
        ema.update(limit=0.8)
    for average, reference in zip(ema.averages, expected, strict=True):
        torch.testing.assert_close(average.double(), reference, rtol=1e-5, atol=1e-6)
    assert ema.updates == 20


def test_the_decay_rises_to_its_limit() -> None:
    decays = [decay_at(updates, 0.999) for updates in (0, 10, 1_000, 100_000)]
    assert decays == sorted(decays)
    assert decays[0] == pytest.approx(0.1)
    assert decays[-1] == 0.999


def test_an_inherited_average_is_not_forgotten() -> None:
    ema = EMA([torch.zeros(2)], updates=100_000)
    ema.masters[0].fill_(1.0)
    ema.update(limit=0.99)
    torch.testing.assert_close(ema.averages[0], torch.full((2,), 0.01))
