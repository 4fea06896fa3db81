"""Proves that draws are Philox, belong to their sample alone, and have the right distribution.

The statistical bounds are five standard errors: a false alarm has odds below 1 in 10**6, and none
can occur between runs, because the draws are deterministic.
"""

import math

import pytest
import torch

from t2i import rng

# kat_vectors of Random123 (Salmon et al.): counter, key, result
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
DRAWS = [rng.uniform, rng.normal]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter, key, answer):
    words = rng.philox4x32(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == answer


@pytest.mark.parametrize("draw", DRAWS)
def test_a_sample_is_the_same_alone_and_in_any_batch(draw):
    batch = draw(7, "noise", 3, torch.tensor([5, 9, 2**40 + 1]), (4, 3, 3))
    shuffled = draw(7, "noise", 3, torch.tensor([2**40 + 1, 11, 5]), (4, 3, 3))
    alone = draw(7, "noise", 3, torch.tensor([9]), (4, 3, 3))
    assert torch.equal(batch[[2, 0]], shuffled[[0, 2]])
    assert torch.equal(batch[1:2], alone)


@pytest.mark.parametrize("draw", DRAWS)
def test_each_of_seed_stream_step_and_sample_changes_every_number(draw):
    base = draw(1, "a", 0, torch.tensor([0]), (64,))
    others = [
        draw(2, "a", 0, torch.tensor([0]), (64,)),
        draw(1, "b", 0, torch.tensor([0]), (64,)),
        draw(1, "a", 1, torch.tensor([0]), (64,)),
        draw(1, "a", 0, torch.tensor([1]), (64,)),
        draw(1, "a", 0, torch.tensor([2**32]), (64,)),
    ]
    for other in others:
        assert (base == other).sum() == 0


def test_words_do_not_depend_on_how_many_are_drawn():
    ids = torch.arange(3)
    assert torch.equal(rng.words(0, "a", 0, ids, 5), rng.words(0, "a", 0, ids, 37)[:, :5])


def test_shapes_and_dtypes_are_as_documented():
    ids = torch.arange(3)
    assert rng.uniform(0, "t", 0, ids, ()).shape == (3,)
    assert rng.normal(0, "t", 0, ids, (3, 5)).shape == (3, 3, 5)
    assert rng.normal(0, "t", 0, ids, ()).dtype == torch.float32


def test_normal_numbers_have_the_moments_of_a_normal():
    numbers = rng.normal(0, "noise", 0, torch.arange(64), (4, 32, 32)).double().flatten()
    count = numbers.numel()
    assert abs(numbers.mean()) < 5 / math.sqrt(count)
    assert abs(numbers.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((numbers**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((numbers**4).mean() - 3) < 5 * math.sqrt(96 / count)


def test_numbers_are_uncorrelated_between_neighbouring_samples_steps_and_indices():
    numbers = rng.normal(0, "noise", 0, torch.arange(101), (1000,)).double()
    next_step = rng.normal(0, "noise", 1, torch.arange(101), (1000,)).double()
    bound = 5 / math.sqrt(100_000)
    assert abs((numbers[:-1] * numbers[1:]).mean()) < bound
    assert abs((numbers * next_step).mean()) < bound
    assert abs((numbers[:, :-1] * numbers[:, 1:]).mean()) < bound


def test_uniform_numbers_fill_the_unit_interval_evenly():
    numbers = rng.uniform(0, "t", 0, torch.arange(100_000), ())
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1).double()
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert abs(chi_squared - 99) < 5 * math.sqrt(2 * 99)


def test_generator_is_deterministic_and_its_own():
    first = torch.randn(8, generator=rng.generator(0, "a", 1, 2))
    again = torch.randn(8, generator=rng.generator(0, "a", 1, 2))
    other = torch.randn(8, generator=rng.generator(0, "a", 1, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
