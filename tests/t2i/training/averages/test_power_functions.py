"""Proves the numbers of power averages: widths and powers, the weights that each update gets, inner products
of profiles by quadrature, and that least squares finds what is there, also where it is nearly singular."""

from __future__ import annotations

import numpy as np
import pytest

from t2i.training.averages.power_functions import (
    coefficients,
    gamma_of,
    inner_product,
    power_decay,
)
from t2i.training.training_config import LARGEST_WIDTH


def test_the_powers_of_the_paper() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.001, 0.05, 0.1, 0.2, 0.9999 * LARGEST_WIDTH])
def test_a_power_has_its_width(width: float) -> None:
    gamma = gamma_of(width)
    assert gamma > 0
    formula = (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5
    assert formula == pytest.approx(width, rel=1e-9)
    tau = (np.arange(200_000) + 0.5) / 200_000  # the formula itself, by quadrature
    weights = (gamma + 1) * tau**gamma / tau.size
    mean = (weights * tau).sum()
    assert np.sqrt((weights * (tau - mean) ** 2).sum()) == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("width", [0.05, 0.25])
def test_decays_give_each_update_its_part_of_the_profile(width: float) -> None:
    """In fp64: the running average is the sum of all updates, weighed by integrals of the profile."""
    gamma, num_updates = gamma_of(width), 100
    values = np.random.default_rng(0).normal(size=num_updates)
    average = 1e9  # is forgotten at once
    for updates, value in enumerate(values):
        decay = power_decay(updates, gamma)
        average = decay * average + (1 - decay) * value
    parts = np.diff((np.arange(num_updates + 1) / num_updates) ** (gamma + 1))
    assert parts.sum() == pytest.approx(1)
    assert average == pytest.approx(parts @ values, rel=1e-9)


def test_the_first_update_copies() -> None:
    assert power_decay(0, gamma_of(0.1)) == 0.0


def test_inner_products_are_integrals() -> None:
    tau = (np.arange(500_000) + 0.5) * (30 / 500_000)
    for time, gamma, time2, gamma2 in ((10.0, 0.5, 10.0, 0.5), (30.0, 6.9, 20.0, 17.0)):
        profiles = [
            np.where(tau < t, (g + 1) * (tau / t) ** g / t, 0)
            for t, g in ((time, gamma), (time2, gamma2))
        ]
        integral = (profiles[0] * profiles[1]).sum() * 30 / tau.size
        assert inner_product(time, gamma, time2, gamma2) == pytest.approx(integral, rel=1e-4)


def test_a_stored_average_is_found_again() -> None:
    stored = [(step, width) for step in (10, 20, 30) for width in (0.05, 0.1)]
    factors, error = coefficients(stored, 30, 0.05)
    np.testing.assert_allclose(factors, [0, 0, 0, 0, 1, 0], atol=1e-5)
    assert error < 1e-5


def test_more_snapshots_come_nearer_and_few_cannot_give_every_width() -> None:
    errors = []
    for count in (1, 4, 10, 40):
        stored = [(100 * (i + 1), width) for i in range(count) for width in (0.05, 0.1)]
        factors, error = coefficients(stored, 100 * count, 0.15)
        assert sum(factors) == pytest.approx(1, abs=1e-9)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.2
    assert errors[2] < 0.025
    assert errors[3] < 0.005


def test_many_snapshots_of_many_widths_do_not_blow_up_what_is_rounded() -> None:
    """800 profiles that are nearly the same: without the ridge, factors of hundreds that cancel."""
    stored = [(1000 * (i + 1), width) for i in range(200) for width in (0.05, 0.1, 0.15, 0.25)]
    factors, error = coefficients(stored, 200_000, 0.075)
    assert error < 1e-3
    assert np.linalg.norm(factors) < 2
