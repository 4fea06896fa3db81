"""Flow matching on visible tokens, masked reconstruction on the others (Sparse Guidance, eq. A4).

    loss = mean_visible ||v - v*||^2 + lambda (1 - t)^2 mean_masked ||v||^2

v is what a masked network (MaskDiT) predicts for all tokens when it has seen the visible ones; its
data estimate is D = x_t + (1 - t) v. What D shall be on masked tokens is a choice
(`MaskedConfig.masked_target`), because the sources differ:

    velocity    D -> x, eq. A1:  (1 - t)^2 ||v - v*||^2
    zero        D -> x_t:        (1 - t)^2 ||v||^2, eq. A3 and A4 as printed. A3 drops v* without a
                word; MaskDiT's released code has the noisy image in x's place, which is the same
    normalized  D -> x_t with each patch at mean 0 and variance 1: what the released code does by
                default (norm_pix_loss), with lambda 0.1 (``weight: 0.1``)

Each term is a mean over its own tokens' elements (the paper writes sums), so a term's size does not
depend on gamma and lambda means the same at any sparsity.

Shape suffixes: B samples, C channels, H x W latents, h x w patches, K visible tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from t2i import flow
from t2i.batch import TrainingBatch
from t2i.training.conditions import Condition
from t2i.training.objectives.flow_matching import FlowMatching, Losses, Network, Noised
from t2i.training.objectives.masked_config import MaskedConfig

SMALLEST_VARIANCE = 1e-6  # added, as in the released code


@dataclass(frozen=True)
class MaskedTerms:
    """Both terms of each sample, float32, and the time at which they were measured."""

    visible_B: Tensor
    masked_B: Tensor
    timestep_B: Tensor

    def weighted(self, weight: float) -> Losses:
        """visible + weight * masked."""
        return Losses(self.visible_B + weight * self.masked_B, self.timestep_B)


@dataclass(frozen=True)
class MaskedFlowMatching:
    """Flow matching plus masked reconstruction, on the draws of a flow-matching objective.

    Attributes:
        base: its ``gamma`` is the fraction of masked tokens; > 0.
        config: see `MaskedConfig`.
    """

    base: FlowMatching
    config: MaskedConfig

    def training_terms(
        self, network: Network, batch: TrainingBatch, condition: Condition
    ) -> MaskedTerms:
        """The two terms of a micro-batch at its step; `MaskedTerms.weighted` adds them up.

        Raises:
            ValueError: gamma is too small to mask a single token.
        """
        noised = self.base.draw(batch)
        num_tokens = noised.x_t_BCHW[0, 0].numel() // self.base.patch_size**2
        keep_ids_BK, keep_mask_BK = noised.keep_ids_BK, noised.keep_mask_BK
        if keep_ids_BK is None or (keep_mask_BK is None and keep_ids_BK.shape[1] == num_tokens):
            raise ValueError(
                f"gamma {self.base.gamma:g} masks none of {num_tokens} tokens; masked training "
                f"needs gamma >= 1 / {num_tokens}, the papers use 0.5"
            )
        predicted_BCHW = network(
            noised.x_t_BCHW, noised.timestep_B, condition, keep_ids_BK, **noised.masks
        ).float()
        size = noised.x_t_BCHW.shape[-2:]
        visible_B1HW = visible_pixels(keep_ids_BK, size, self.base.patch_size, keep_mask_BK)
        error_BCHW = predicted_BCHW - noised.velocity_BCHW
        masked_BCHW = self._data_error(predicted_BCHW, noised)
        return MaskedTerms(
            _mean_over(error_BCHW.square(), visible_B1HW),
            _mean_over(masked_BCHW.square(), ~visible_B1HW),
            noised.timestep_B,
        )

    def _data_error(self, predicted_BCHW: Tensor, noised: Noised) -> Tensor:
        """D less what it shall be, see `MaskedConfig.masked_target`."""
        to_data_B111 = flow.expand_timestep(1 - noised.timestep_B, predicted_BCHW)
        match self.config.masked_target:
            case "velocity":
                return to_data_B111 * (predicted_BCHW - noised.velocity_BCHW)
            case "zero":
                return to_data_B111 * predicted_BCHW
            case "normalized":
                target_BCHW = normalize_patches(noised.x_t_BCHW, self.base.patch_size)
                return noised.x_t_BCHW + to_data_B111 * predicted_BCHW - target_BCHW

    def validation_loss(
        self, network: Network, batch: TrainingBatch, condition: Condition, timestep: float
    ) -> Losses:
        """Dense flow-matching losses: nothing is masked."""
        return self.base.validation_loss(network, batch, condition, timestep)


def term_gradients(terms: MaskedTerms, parameter: Tensor) -> Tensor:
    """Gradients of the visible and the masked mean, (2, ...) float32; norms: `balanced_weight`.

    They add up over micro-batches and processes, as the norms do not. Costs a backward pass from
    the losses to ``parameter`` for each, so choose one near the end of the network.
    """
    gradients = [
        torch.autograd.grad(term_B.mean(), parameter, retain_graph=True)[0].float()
        for term_B in (terms.visible_B, terms.masked_B)
    ]
    return torch.stack(gradients)


def normalize_patches(x_BCHW: Tensor, patch_size: int) -> Tensor:
    """Each patch less its mean, by its standard deviation over pixels and channels."""
    patches = x_BCHW.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # B C h p w p
    of_patch = {"dim": (1, 3, 5), "keepdim": True}
    centred = patches - patches.mean(**of_patch)
    return (centred / (patches.var(**of_patch) + SMALLEST_VARIANCE).sqrt()).reshape(x_BCHW.shape)


def visible_pixels(
    keep_ids_BK: Tensor,
    size: tuple[int, ...],
    patch_size: int,
    keep_mask_BK: Tensor | None = None,
) -> Tensor:
    """Which latent pixels lie in kept tokens, (B, 1, H, W) bool; tokens are patches row by row.

    Places where ``keep_mask_BK`` (bool, None = all kept) is False do not count as kept.
    """
    kept_BK = torch.ones_like(keep_ids_BK).bool() if keep_mask_BK is None else keep_mask_BK
    grid = (size[0] // patch_size, size[1] // patch_size)
    none_BT = torch.zeros(len(keep_ids_BK), grid[0] * grid[1], device=keep_ids_BK.device)
    visible_BT = none_BT.bool().scatter(1, keep_ids_BK, kept_BK)
    visible_B1hw = visible_BT.unflatten(1, (1, *grid))
    return visible_B1hw.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)


def _mean_over(numbers_BCHW: Tensor, where_B1HW: Tensor) -> Tensor:
    """(B,) mean over a sample's elements at ``where``; 0 where there are none."""
    chosen_BCHW = numbers_BCHW * where_B1HW
    num_pixels_B = where_B1HW.sum(dim=(1, 2, 3)).clamp(min=1)
    return chosen_BCHW.sum(dim=(1, 2, 3)) / (num_pixels_B * numbers_BCHW.shape[1])
