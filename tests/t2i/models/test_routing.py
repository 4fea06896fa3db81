"""Proves the draw of kept tokens and that gather and scatter undo each other."""

import math

import pytest
import torch

from t2i.models.routes import num_kept
from t2i.models.routing import draw_keep, draw_keep_ids, gather_tokens, scatter_tokens

IDS = torch.arange(5)


@pytest.mark.parametrize(
    ("num_tokens", "gamma", "kept"),
    [(1024, 0.0, 1024), (1024, 0.1, 922), (1024, 0.8, 205), (256, 0.5, 128), (100, 0.29, 71)],
)
def test_number_of_kept_tokens(num_tokens, gamma, kept):
    assert num_kept(num_tokens, gamma) == kept


@pytest.mark.parametrize("gamma", [-0.1, 1.0, 1.5, math.nan])
def test_gamma_outside_its_range_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\)"):
        num_kept(64, gamma)


def test_kept_tokens_are_distinct_and_ascending():
    keep_ids = draw_keep_ids(0, "route", 0, IDS, 64, 0.5)
    assert keep_ids.shape == (5, 32)
    assert keep_ids.dtype == torch.int64
    assert (keep_ids.diff(dim=1) > 0).all()
    assert keep_ids.min() >= 0
    assert keep_ids.max() < 64


def test_gamma_zero_keeps_every_token():
    keep_ids = draw_keep_ids(0, "route", 0, IDS, 64, 0.0)
    assert torch.equal(keep_ids, torch.arange(64).expand(5, -1))


def test_a_draw_belongs_to_its_sample_and_changes_with_step_and_stream():
    keep_ids = draw_keep_ids(0, "route", 3, IDS, 64, 0.5)
    assert torch.equal(keep_ids[2:3], draw_keep_ids(0, "route", 3, IDS[2:3], 64, 0.5))
    assert not torch.equal(keep_ids, draw_keep_ids(0, "route", 4, IDS, 64, 0.5))
    assert not torch.equal(keep_ids, draw_keep_ids(0, "weak", 3, IDS, 64, 0.5))


def test_a_larger_gamma_keeps_a_subset_of_the_same_draw():
    many, few = (draw_keep_ids(0, "route", 0, IDS, 64, gamma) for gamma in (0.25, 0.75))
    for row_many, row_few in zip(many.tolist(), few.tolist(), strict=True):
        assert set(row_few) < set(row_many)


def test_every_token_is_kept_equally_often():
    # binomial(4000, 0.25) per token; 6 standard deviations: odds below 1 in 10**7 for 64 tokens
    keep_ids = draw_keep_ids(0, "route", 0, torch.arange(4000), 64, 0.75)
    counts = torch.bincount(keep_ids.flatten(), minlength=64)
    assert (counts - 1000).abs().max() < 6 * math.sqrt(4000 * 0.25 * 0.75)


def test_scatter_puts_gathered_tokens_back_and_leaves_the_others_alone():
    tokens = torch.randn(5, 64, 3)
    keep_ids = draw_keep_ids(0, "route", 0, IDS, 64, 0.5)
    kept = gather_tokens(tokens, keep_ids)
    expected = torch.stack([row[ids] for row, ids in zip(tokens, keep_ids, strict=True)])
    assert torch.equal(kept, expected)
    assert torch.equal(scatter_tokens(tokens, kept, keep_ids), tokens)
    changed = scatter_tokens(tokens, kept + 1, keep_ids) - tokens
    is_kept = torch.zeros(5, 64, dtype=torch.bool).scatter(1, keep_ids, True)
    assert torch.equal((changed != 0).all(-1), is_kept)
    assert torch.equal((changed == 0).all(-1), ~is_kept)


def test_gradients_flow_through_both_ways_around():
    tokens = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    keep_ids = torch.tensor([[0, 3, 5], [1, 2, 4]])
    route = lambda x: scatter_tokens(x, gather_tokens(x, keep_ids).square(), keep_ids)  # noqa: E731
    assert torch.autograd.gradcheck(route, (tokens,))


def test_samples_of_different_gammas_keep_what_each_would_keep_alone():
    gammas = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.9])
    kept = draw_keep(0, "route", 0, IDS, 64, gammas)
    assert kept.ids_BK.shape == (5, 64)
    for row, gamma in enumerate(gammas.tolist()):
        alone = draw_keep_ids(0, "route", 0, IDS[row : row + 1], 64, gamma)
        assert torch.equal(kept.ids_BK[row][kept.mask_BK[row]], alone[0])


def test_a_row_is_filled_up_with_other_tokens():
    kept = draw_keep(0, "route", 0, IDS, 64, torch.tensor([0.9, 0.2, 0.9, 0.5, 0.3]))
    assert (kept.ids_BK.diff(dim=1) > 0).all()


def test_one_gamma_for_all_is_the_fixed_draw_without_a_mask():
    kept = draw_keep(0, "route", 0, IDS, 64, 0.5)
    assert kept.mask_BK is None
    assert torch.equal(kept.ids_BK, draw_keep_ids(0, "route", 0, IDS, 64, 0.5))


@pytest.mark.parametrize(("gamma", "num_tokens"), [(0.7, 400), (0.29, 100), (0.9, 400), (0.5, 256)])
def test_a_gamma_per_sample_in_float32_keeps_what_the_number_keeps(gamma, num_tokens):
    kept = draw_keep(0, "route", 0, IDS[:2], num_tokens, torch.tensor([gamma, gamma]))
    assert torch.equal(kept.ids_BK, draw_keep_ids(0, "route", 0, IDS[:2], num_tokens, gamma))


@pytest.mark.parametrize("bernoulli", [False, True])
@pytest.mark.parametrize("gamma", [0.5, torch.tensor([0.25, 0.75])])
def test_each_route_has_a_draw_of_its_own_and_the_first_is_the_only_one(gamma, bernoulli):
    (one, three) = (
        draw_keep(0, "route", 4, IDS[:2], 64, gamma, bernoulli, num_draws=num) for num in (1, 3)
    )
    assert three.ids_BK.shape[:2] == (3, 2)
    for sample in range(2):
        kept = [
            three.of_route(route)
            .ids_BK[sample][
                slice(None) if three.mask_BK is None else three.of_route(route).mask_BK[sample]
            ]
            .tolist()
            for route in range(3)
        ]
        first = one.ids_BK[sample][slice(None) if one.mask_BK is None else one.mask_BK[sample]]
        assert kept[0] == first.tolist()
        assert kept[0] != kept[1] != kept[2] != kept[0]


def test_bernoulli_counts_are_binomial():
    # mean and variance of binomial(64, 0.25) over 4,000 samples, within 6 standard errors
    kept = draw_keep(0, "route", 0, torch.arange(4000), 64, 0.75, bernoulli=True)
    counts = kept.mask_BK.sum(dim=1).double()
    variance = 64 * 0.25 * 0.75
    assert abs(counts.mean() - 16) < 6 * math.sqrt(variance / 4000)
    assert abs(counts.var() - variance) < 6 * variance * math.sqrt(2 / 4000)


def test_bernoulli_keeps_at_least_one_token():
    kept = draw_keep(0, "route", 0, torch.arange(500), 4, 0.95, bernoulli=True)
    assert kept.mask_BK.any(dim=1).all()
    assert kept.mask_BK.sum(dim=1).min() == 1


@pytest.mark.parametrize("gamma", [1.0, torch.tensor([0.5, 1.0])])
@pytest.mark.parametrize("bernoulli", [False, True])
def test_a_gamma_outside_its_range_is_refused_in_every_kind_of_draw(gamma, bernoulli):
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\)"):
        draw_keep(0, "route", 0, IDS[:2], 64, gamma, bernoulli)
