"""Proves CMMD against the double sum over pairs, two points by hand, and its properties."""

from __future__ import annotations

import math

import numpy as np
import pytest

from t2i.evaluation.mmd import cmmd


def embeddings(seed: int, num: int, shift: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, 8)) + shift * np.eye(8)[0]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def oracle(one: np.ndarray, other: np.ndarray) -> float:
    def mean(rows: np.ndarray, columns: np.ndarray) -> float:
        kernels = [math.exp(-np.sum((a - b) ** 2) / 200) for a in rows for b in columns]
        return math.fsum(kernels) / len(kernels)

    return 1000 * (mean(one, one) + mean(other, other) - 2 * mean(one, other))


@pytest.mark.parametrize("block_size", [1, 9, 4096])
def test_it_is_the_double_sum(block_size: int) -> None:
    one, other = embeddings(0, 20), embeddings(1, 31, shift=2)
    found = cmmd(one, other, block_size)
    assert found == pytest.approx(oracle(one, other), abs=1e-9)
    assert cmmd(other, one, block_size) == pytest.approx(found, abs=1e-9)


def test_two_opposite_points_by_hand() -> None:
    """||a - b||^2 = 4, so 1,000 (1 + 1 - 2 exp(-4 / 200))."""
    assert cmmd(np.array([[1.0, 0]]), np.array([[-1.0, 0]])) == pytest.approx(39.602654, abs=1e-6)


def test_a_set_is_at_0_from_itself_and_a_shift_is_seen() -> None:
    one, alike = embeddings(0, 200), embeddings(1, 200)
    assert cmmd(one, one) == pytest.approx(0, abs=1e-9)
    assert 0 < cmmd(one, alike) < cmmd(one, embeddings(1, 200, shift=1))


def test_half_precision_is_close() -> None:
    one, other = embeddings(0, 50), embeddings(1, 50, shift=1)
    found = cmmd(one.astype(np.float16), other.astype(np.float16))
    assert found == pytest.approx(cmmd(one, other), abs=0.01)


def test_embeddings_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="must be of length 1"):
        cmmd(embeddings(0, 5), 2 * embeddings(1, 5))
