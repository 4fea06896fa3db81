"""Proves both terms of masked training token by token by hand, and that lambda balances them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from t2i.batch import TrainingBatch
from t2i.flow import TimestepConfig
from t2i.models.mask_dit import MaskDiT
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.training.objectives.flow_matching import FlowMatching
from t2i.training.objectives.masked import MaskedFlowMatching, term_gradients, visible_pixels
from t2i.training.objectives.masked_config import BalancedWeight, MaskedConfig, balanced_weight

BASE = FlowMatching(seed=1, gamma=0.75, timestep=TimestepConfig(), patch_size=2)
LABELS = torch.zeros(4, dtype=torch.int64)


def network(x_t: Tensor, timestep_B: Tensor, condition: object, keep: object) -> Tensor:
    return torch.sin(3 * x_t) + timestep_B.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("masked_target", ["zero", "velocity"])
def test_the_terms_equal_a_sum_over_tokens_written_by_hand(
    masked_target: str, batch: TrainingBatch
) -> None:
    config = MaskedConfig.model_validate({"masked_target": masked_target})
    terms = MaskedFlowMatching(BASE, config).training_terms(network, batch, LABELS)
    noised = BASE.draw(batch)
    predicted = network(noised.x_t_BCHW, noised.timestep_B, LABELS, None)
    for row in range(4):
        kept = noised.keep_ids_BK[row].tolist()  # type: ignore[index]
        visible, masked = [], []
        for token in range(16):
            y, x = 2 * (token // 4), 2 * (token % 4)
            for c, i, j in torch.cartesian_prod(
                torch.arange(4), torch.arange(y, y + 2), torch.arange(x, x + 2)
            ).tolist():
                v = predicted[row, c, i, j].item()
                target = noised.velocity_BCHW[row, c, i, j].item()
                if token in kept:
                    visible.append((v - target) ** 2)
                else:
                    masked.append(v**2 if masked_target == "zero" else (v - target) ** 2)
        assert (len(visible), len(masked)) == (4 * 16, 12 * 16)
        time_weight = (1 - noised.timestep_B[row].item()) ** 2
        assert terms.visible_B[row].item() == pytest.approx(sum(visible) / len(visible), rel=1e-5)
        by_hand = time_weight * sum(masked) / len(masked)
        assert terms.masked_B[row].item() == pytest.approx(by_hand, rel=1e-5)
        total = terms.weighted(0.25).loss_B[row].item()
        assert total == pytest.approx(sum(visible) / len(visible) + 0.25 * by_hand, rel=1e-5)


def test_normalized_targets_are_patches_of_the_noisy_latents(batch: TrainingBatch) -> None:
    """Patch by patch by hand: the data estimate against mean 0, variance 1 (of n - 1)."""
    config = MaskedConfig.model_validate({"masked_target": "normalized", "weight": 0.1})
    terms = MaskedFlowMatching(BASE, config).training_terms(network, batch, LABELS)
    noised = BASE.draw(batch)
    predicted = network(noised.x_t_BCHW, noised.timestep_B, LABELS, None)
    for row in range(4):
        to_data, errors = 1 - noised.timestep_B[row], []
        for token in set(range(16)) - set(noised.keep_ids_BK[row].tolist()):  # type: ignore[index]
            y, x = 2 * (token // 4), 2 * (token % 4)
            patch = noised.x_t_BCHW[row, :, y : y + 2, x : x + 2]
            target = (patch - patch.mean()) / (patch.std() ** 2 + 1e-6).sqrt()
            data = patch + to_data * predicted[row, :, y : y + 2, x : x + 2]
            errors.append((data - target).square().mean())
        expected = torch.stack(errors).mean().item()
        assert terms.masked_B[row].item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(terms.weighted(0.1).loss_B, terms.visible_B + 0.1 * terms.masked_B)


def test_visible_pixels_are_the_patches_of_an_oblong_grid() -> None:
    visible = visible_pixels(torch.tensor([[0, 4]]), (4, 6), patch_size=2)
    assert visible[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
    ]


def test_the_network_sees_the_visible_tokens_of_each_sample(
    batch: TrainingBatch, select_samples: Callable[[TrainingBatch, list[int]], TrainingBatch]
) -> None:
    seen = []

    def watched(x_t: Tensor, timestep_B: Tensor, condition: object, keep: Tensor) -> Tensor:
        seen.append(keep)
        return network(x_t, timestep_B, condition, keep)

    objective = MaskedFlowMatching(BASE, MaskedConfig())
    whole = objective.training_terms(watched, batch, LABELS).weighted(2.0)
    part = objective.training_terms(watched, select_samples(batch, [2, 0]), LABELS[:2])
    assert torch.equal(seen[0][[2, 0]], seen[1])
    assert seen[0].shape == (4, 4)
    torch.testing.assert_close(part.weighted(2.0).loss_B, whole.loss_B[[2, 0]])


@pytest.mark.parametrize("masked_target", ["zero", "velocity"])
def test_samples_with_different_numbers_of_masked_tokens_have_terms_of_their_own(
    masked_target: str, batch: TrainingBatch
) -> None:
    """Each term is the mean over the sample's own tokens; that of no tokens is 0."""
    base = replace(BASE, gamma=0.1, bernoulli=True)
    config = MaskedConfig.model_validate({"masked_target": masked_target})
    many = replace(batch, moments=batch.moments.repeat(8, 1, 1, 1), sample_ids=torch.arange(32))
    given = []

    def watched(*inputs: Tensor, keep_mask_BK: Tensor) -> Tensor:
        given.append(keep_mask_BK)
        return network(*inputs)

    terms = MaskedFlowMatching(base, config).training_terms(watched, many, LABELS)
    noised = base.draw(many)
    assert torch.equal(given[0], noised.keep_mask_BK)
    predicted = network(noised.x_t_BCHW, noised.timestep_B, LABELS, None)
    target = 0 if masked_target == "zero" else noised.velocity_BCHW
    seen = tokens((predicted - noised.velocity_BCHW).square())
    unseen = tokens((predicted - target).square())
    counts = set()
    for row in range(32):
        kept = noised.keep_ids_BK[row][noised.keep_mask_BK[row]].tolist()
        masked = sorted(set(range(16)) - set(kept))
        counts.add(len(masked))
        torch.testing.assert_close(terms.visible_B[row], seen[row, kept].mean())
        time_weight = (1 - noised.timestep_B[row]) ** 2
        by_hand = unseen[row, masked].sum() / max(len(masked), 1) * time_weight
        torch.testing.assert_close(terms.masked_B[row], by_hand)
    assert {0, 1, 2} <= counts


def tokens(numbers_BCHW: Tensor) -> Tensor:
    """(B, 16): the mean of each 2 x 2 patch of all channels."""
    return functional.avg_pool2d(numbers_BCHW, 2).mean(dim=1).flatten(1)


def test_a_masked_bernoulli_loss_is_that_of_the_sample_alone(
    batch: TrainingBatch, select_samples: Callable[[TrainingBatch, list[int]], TrainingBatch]
) -> None:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "width": 16, "num_heads": 2, "num_classes": 3}
    decoder = {"decoder_layers": 1, "decoder_width": 8, "decoder_heads": 2}
    model = MaskDiT(MaskDiTConfig.model_validate({**sizes, **decoder}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    objective = MaskedFlowMatching(replace(BASE, bernoulli=True), MaskedConfig())
    whole = objective.training_terms(model, batch, LABELS).weighted(0.5)
    for row in range(4):
        alone = objective.training_terms(model, select_samples(batch, [row]), LABELS[:1])
        torch.testing.assert_close(alone.weighted(0.5).loss_B, whole.loss_B[[row]])


def test_masking_nothing_is_refused(batch: TrainingBatch) -> None:
    for gamma in (0.0, 0.05):
        base = FlowMatching(seed=1, gamma=gamma, timestep=TimestepConfig(), patch_size=2)
        with pytest.raises(ValueError, match=f"gamma {gamma:g} masks none of 16 tokens"):
            MaskedFlowMatching(base, MaskedConfig()).training_terms(network, batch, LABELS)


def test_lambda_gives_both_terms_gradients_of_one_size(batch: TrainingBatch) -> None:
    torch.manual_seed(0)
    last = nn.Conv2d(4, 4, 1)

    def learned(x_t: Tensor, timestep_B: Tensor, condition: object, keep: object) -> Tensor:
        return last(network(x_t, timestep_B, condition, keep))

    terms = MaskedFlowMatching(BASE, MaskedConfig()).training_terms(learned, batch, LABELS)
    visible, masked = (gradient.norm().item() for gradient in term_gradients(terms, last.weight))
    assert visible != pytest.approx(masked, rel=0.2)
    weight = balanced_weight(BalancedWeight(decay=0.0), 7.0, visible, masked)
    (visible_only,) = torch.autograd.grad(
        terms.weighted(0.0).loss_B.mean(), last.weight, retain_graph=True
    )
    (both,) = torch.autograd.grad(terms.weighted(weight).loss_B.mean(), last.weight)
    assert (both - visible_only).norm().item() == pytest.approx(
        visible_only.norm().item(), rel=1e-4
    )


def test_lambda_is_smoothed_and_bounded() -> None:
    config = BalancedWeight(decay=0.75, highest=4.0)
    assert balanced_weight(config, None, 1.0, 2.0) == 0.5
    assert balanced_weight(config, 1.5, 1.0, 2.0) == 0.75 * 1.5 + 0.25 * 0.5
    assert balanced_weight(config, None, 3.0, 0.0) is None, "a last layer that starts at zero"
    assert balanced_weight(config, None, 9.0, 1.0) == 4.0
    assert balanced_weight(config, 1.5, 0.0, 0.0) == 1.5
    assert balanced_weight(config, 1.0, 3.0, 1e-9) == 0.75 + 0.25 * 4.0
