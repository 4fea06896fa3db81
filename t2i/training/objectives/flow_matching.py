"""What a network is trained on: flow matching on routed tokens (SPEC of Sparse Guidance, eq. 1-2, 5).

    x_t = (1 - t) z + t x,   loss = mean ||D(x_t, t, c) - (x - z)||^2

Every draw (VAE noise, z, t, routed tokens) belongs to (seed, stream, step, sample id), so a loss
does not depend, but for rounding, on the rank or the batch that the sample is computed in. Objectives that change the
target, the weighting or the outputs take the same draws: `model_guidance`, `masked`, `internal` of this
folder.

Shape suffixes: B samples, C channels, H x W latents, K kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from t2i import flow, rng
from t2i.batch import TrainingBatch
from t2i.flow import TimestepConfig
from t2i.models.routing import draw_keep
from t2i.training.conditions import Condition


class Network(Protocol):
    """What objectives train: a velocity model of any family."""

    def __call__(
        self,
        x_t_BCHW: Tensor,
        timestep_B: Tensor,
        condition: Condition,
        keep_ids_BK: Tensor | None,
        /,
        *,
        keep_mask_BK: Tensor | None = None,
        drop_deep_B: Tensor | None = None,
    ) -> Tensor:
        """The velocity (B, C, H, W); what is kept and dropped: see `Noised`.

        ``keep_mask_BK`` is given when samples keep different numbers of tokens, ``drop_deep_B``
        when some have no deep path, else they are left out.
        """


@dataclass(frozen=True)
class Losses:
    """One number per sample, float32, and the time at which it was measured."""

    loss_B: Tensor
    timestep_B: Tensor


@dataclass(frozen=True)
class Noised:
    """Latents on the way from noise to data, and what there is to predict.

    Attributes:
        x_t_BCHW: float32.
        timestep_B: (B,) float32 in [0, 1].
        velocity_BCHW: v* = x - z, float32.
        keep_ids_BK: (B, K) int64 ascending tokens that are not skipped, or None = all; (routes, B,
            K) for a draw of each route.
        keep_mask_BK: as keep_ids_BK, bool, False = a place that only fills up the row of a sample that
            keeps fewer than K tokens; None = all samples keep K.
        drop_deep_B: (B,) bool, samples of which no token comes out of a route; None = of none.
    """

    x_t_BCHW: Tensor
    timestep_B: Tensor
    velocity_BCHW: Tensor
    keep_ids_BK: Tensor | None
    keep_mask_BK: Tensor | None = None
    drop_deep_B: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of the network that is trained."""
        dropped = {} if self.drop_deep_B is None else {"drop_deep_B": self.drop_deep_B}
        return {**self.masks, **dropped}

    @property
    def masks(self) -> dict[str, Tensor]:
        """The mask as a network's keyword argument, where there is one."""
        return {} if self.keep_mask_BK is None else {"keep_mask_BK": self.keep_mask_BK}

    def losses(self, predicted_BCHW: Tensor, target_BCHW: Tensor) -> Losses:
        """Mean squared error of each sample."""
        error_BCHW = predicted_BCHW.float() - target_BCHW
        return Losses(error_BCHW.square().mean(dim=(1, 2, 3)), self.timestep_B)


@dataclass(frozen=True)
class FlowMatching:
    """Flow matching with a fraction ``gamma`` of the tokens skipping the routed layers.

    Attributes:
        seed: of the run.
        gamma: in [0, 1); 0 = dense.
        timestep: how times are drawn.
        patch_size: of the network, for the number of tokens.
        bernoulli: each token skips with probability gamma, and at least one per sample does not;
            else floor(gamma T) of a sample's T tokens skip.
        num_draws: of the network: 1, or one for each of its routes.
        deep_path_dropout: share of samples of which no token comes out of a route (SPRINT, arXiv
            2510.21986), so that path-drop guidance asks for what was trained; in [0, 1).
    """

    seed: int
    gamma: float
    timestep: TimestepConfig
    patch_size: int
    bernoulli: bool = False
    num_draws: int = 1
    deep_path_dropout: float = 0.0

    def training_loss(self, network: Network, batch: TrainingBatch, condition: Condition) -> Losses:
        """Losses of a micro-batch at its step. The tensors lie on one device."""
        return flow_matching_losses(network, self.draw(batch), condition)

    @torch.no_grad()
    def validation_loss(
        self, network: Network, batch: TrainingBatch, condition: Condition, timestep: float
    ) -> Losses:
        """Dense losses of a held-out batch, all at time ``timestep``."""
        timestep_B = torch.full_like(batch.sample_ids, timestep, dtype=torch.float32)
        noised = self.noise(batch, timestep_B.to(batch.moments.device), gamma=0.0)
        return flow_matching_losses(network, noised, condition)

    def draw(self, batch: TrainingBatch) -> Noised:
        """The training inputs and targets of a micro-batch at its step."""
        uniform_B = rng.uniform(
            self.seed, "timestep", batch.step, batch.sample_ids, (), batch.moments.device
        )
        noised = self.noise(batch, flow.draw_timesteps(self.timestep, uniform_B), self.gamma)
        if self.deep_path_dropout == 0:
            return noised
        draw = (batch.step, batch.sample_ids, (), batch.moments.device)
        dropped_B = rng.uniform(self.seed, "deep path", *draw) < self.deep_path_dropout
        return replace(noised, drop_deep_B=dropped_B)

    def noise(self, batch: TrainingBatch, timestep_B: Tensor, gamma: float) -> Noised:
        """The same at given times and sparsity."""
        data_BCHW = self.draw_latents(batch)
        device = data_BCHW.device
        draw = (batch.step, batch.sample_ids)
        noise_BCHW = rng.normal(self.seed, "noise", *draw, data_BCHW.shape[1:], device)
        kept = None
        if gamma > 0:
            num_tokens = data_BCHW[0, 0].numel() // self.patch_size**2
            kept = draw_keep(
                *(self.seed, "routing", *draw, num_tokens, gamma),
                *(self.bernoulli, device, self.num_draws),
            )
        return Noised(
            flow.interpolate(data_BCHW, noise_BCHW, timestep_B),
            timestep_B,
            flow.velocity_target(data_BCHW, noise_BCHW),
            kept.ids_BK if kept else None,
            kept.mask_BK if kept else None,
        )

    def draw_latents(self, batch: TrainingBatch) -> Tensor:
        """x = mean + std * noise from the VAE's moments, float32 (B, C, H, W)."""
        mean_BCHW, std_BCHW = batch.moments.float().chunk(2, dim=1)
        shape = mean_BCHW.shape[1:]
        device = batch.moments.device
        noise = rng.normal(self.seed, "vae", batch.step, batch.sample_ids, shape, device)
        return mean_BCHW + std_BCHW * noise


def flow_matching_losses(network: Network, noised: Noised, condition: Condition) -> Losses:
    """||D(x_t, t, c) - v*||^2, the mean over a sample's elements."""
    predicted_BCHW = network(
        noised.x_t_BCHW, noised.timestep_B, condition, noised.keep_ids_BK, **noised.inputs
    )
    return noised.losses(predicted_BCHW, noised.velocity_BCHW)
