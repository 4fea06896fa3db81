"""Proves the EMA on flat partitions by its formula, the ramp of its decay, and the network it gives."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from t2i.training.averages.ema import EMA, averaged_network, decay_at


def test_the_average_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    masters = [torch.randn(7, generator=generator), torch.randn(3, generator=generator)]
    ema = EMA(masters, partial(decay_at, limit=0.8))
    expected = [master.double() for master in masters]
    for step in range(60):  # the ramp reaches the limit at 35
        for master in masters:
            master += torch.randn(master.shape, generator=generator)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * m.double() for e, m in zip(expected, masters, strict=True)
        ]
        ema.update()
    for average, reference in zip(ema.averages, expected, strict=True):
        torch.testing.assert_close(average.double(), reference, rtol=1e-5, atol=1e-6)
    assert ema.updates == 60


def test_the_decay_rises_to_its_limit() -> None:
    """Of 0.999: (1 + n) / (10 + n) is 0.9989 at n = 8,170 and above it from 8,990 on."""
    expected = {0: 1 / 10, 10: 11 / 20, 1_000: 1_001 / 1_010, 8_170: 8_171 / 8_180}
    assert {n: decay_at(n, 0.999) for n in expected} == pytest.approx(expected, rel=1e-12)
    assert {decay_at(updates, 0.999) for updates in (8_991, 10**5, 10**7)} == {0.999}


def test_an_inherited_average_is_not_forgotten() -> None:
    ema = EMA([torch.zeros(2)], partial(decay_at, limit=0.99), updates=100_000)
    ema.masters[0].fill_(1.0)
    ema.update()
    torch.testing.assert_close(ema.averages[0], torch.full((2,), 0.01))


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_the_averaged_network_is_a_copy_that_holds_the_averages() -> None:
    network, copy = make_network(), make_network()
    masters = list(network.parameters())
    ema = EMA(masters, lambda updates: 0.5)
    names = [name for name, _ in network.named_parameters()]
    teacher = averaged_network(network, dict(zip(names, ema.averages, strict=True)))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for master in masters:
            master += 1.0
        ema.update()
        for parameter, average in zip(copy.parameters(), ema.averages, strict=True):
            parameter.copy_(average)
    assert torch.equal(teacher(x), copy(x)), "averages written later take effect"
    assert not torch.equal(teacher(x), network(x))


def test_asking_the_averaged_network_does_not_disturb_training() -> None:
    network = make_network()
    averages = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    x = torch.ones(2, 3)
    loss = network(x).square().sum()
    answer = averaged_network(network, averages)(x)  # between forward and backward
    loss.backward()
    assert not answer.requires_grad
    assert (answer == 0).all()
    reference = make_network()
    reference(x).square().sum().backward()
    for (name, parameter), other in zip(
        network.named_parameters(), reference.parameters(), strict=True
    ):
        assert torch.equal(parameter, before[name])
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.equal(parameter.grad, other.grad)


def test_averages_with_other_names_are_refused() -> None:
    with pytest.raises(RuntimeError, match="bias"):
        averaged_network(make_network(), {"0.weight": torch.zeros(4, 3)})(torch.ones(2, 3))
