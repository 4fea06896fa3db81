"""Proves the Inception Score on logits whose score is known, against numpy and scipy, and that the
order in which pictures were saved does not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch

from t2i import rng
from t2i.evaluation.inception_score import inception_score


def generator(seed: int = 0) -> torch.Generator:
    return rng.generator(seed, "inception_score", 0, 0)


def oracle(logits_NC: np.ndarray) -> float:
    """Of one chunk."""
    probs = scipy.special.softmax(logits_NC, axis=1)
    return float(np.exp(scipy.special.rel_entr(probs, probs.mean(axis=0)).sum(axis=1).mean()))


def test_answers_all_alike_score_one() -> None:
    score = inception_score(np.tile([1.0, 2.0, 3.0], (12, 1)), generator())
    assert (score.mean, score.std, score.num_chunks) == (pytest.approx(1), 0, 1)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_sure_answers_score_the_number_of_classes(num_classes: int) -> None:
    """Logits of 1,000 also show that nothing overflows, and that 0 log 0 is 0."""
    logits = 1000 * np.tile(np.eye(num_classes), (4, 1))
    assert inception_score(logits, generator()).mean == pytest.approx(num_classes)


def test_two_classes_by_hand() -> None:
    """Answers (3/4, 1/4) and (1/4, 3/4): exp(3/4 log 3/2 + 1/4 log 1/2)."""
    logits = np.log([[0.75, 0.25], [0.25, 0.75]])
    expected = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert inception_score(logits, generator()).mean == pytest.approx(expected, rel=1e-12)


def test_a_bias_would_change_it_and_a_shift_of_a_row_does_not() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 6))
    score = inception_score(logits, generator()).mean
    assert score == pytest.approx(oracle(logits), rel=1e-12)
    assert inception_score(logits + np.arange(50)[:, None], generator()).mean == pytest.approx(
        score
    )
    assert inception_score(logits + np.arange(6), generator()).mean != pytest.approx(score, rel=0.1)


def test_chunks_follow_each_other_after_the_shuffle() -> None:
    """Of 25 in chunks of 10 the last has 5 and counts as much as the others, as ADM has it."""
    logits = np.random.default_rng(0).normal(size=(25, 6))
    shuffled = logits[torch.randperm(25, generator=generator()).numpy()]
    scores = [oracle(shuffled[start : start + 10]) for start in (0, 10, 20)]
    found = inception_score(logits, generator(), chunk_size=10)
    assert found.mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert found.std == pytest.approx(np.std(scores), rel=1e-9)
    assert found.num_chunks == 3


def test_samples_saved_class_by_class_score_as_others() -> None:
    """Chunks of one class each would score 1."""
    labels = np.repeat(np.arange(5), 200)
    found = inception_score(20 * np.eye(5)[labels], generator(), chunk_size=200)
    assert found.mean == pytest.approx(5, rel=0.03)
    mixed = np.random.default_rng(0).permutation(labels)
    other = inception_score(20 * np.eye(5)[mixed], generator(), chunk_size=200)
    assert other.mean == pytest.approx(found.mean, rel=0.02)


def test_the_seed_decides() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 6))
    one, again, other = (inception_score(logits, generator(seed), 10) for seed in (0, 0, 1))
    assert one == again != other


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 rows"):
        inception_score(np.array([[0.0, np.nan], [0, 1]]), generator())
