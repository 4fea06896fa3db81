"""What a network is trained on: flow matching on routed tokens (SPEC of Sparse Guidance, eq. 1-2, 5).

    x_t = (1 - t) z + t x,   loss = mean ||D(x_t, t, c) - (x - z)||^2

Every draw (VAE noise, z, t, routed tokens) belongs to (seed, stream, step, sample id), so a loss
does not depend on the rank or the batch that the sample is computed in.

Shape suffixes: B samples, C channels, H x W latents, L text tokens, E text width, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2i import flow, rng
from t2i.batch import TrainingBatch
from t2i.flow import TimestepConfig
from t2i.models.routing import draw_keep_ids
from t2i.models.tr_dit import TRDiT

# (x_t BCHW, timestep B, text states BLE, text mask BL, keep ids BK or None) -> velocity BCHW
Network = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Losses:
    """One number per sample, float32, and the time at which it was measured."""

    loss_B: Tensor
    timestep_B: Tensor


class TextConditioned(nn.Module):
    """TR-DiT with its text preparation as one call: the module that DeepSpeed wraps."""

    def __init__(self, model: TRDiT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        latents_BCHW: Tensor,
        timestep_B: Tensor,
        states_BLE: Tensor,
        mask_BL: Tensor,
        keep_ids_BK: Tensor | None,
    ) -> Tensor:
        """The velocity, in the dtype of ``latents_BCHW``."""
        text = self.model.prepare_text(states_BLE, mask_BL)
        return self.model(latents_BCHW, timestep_B, text, keep_ids_BK)


@dataclass(frozen=True)
class FlowMatching:
    """Flow matching with a fraction ``gamma`` of the tokens skipping the routed layers.

    Attributes:
        seed: of the run.
        gamma: in [0, 1); 0 = dense.
        timestep: how times are drawn.
        patch_size: of the network, for the number of tokens.
    """

    seed: int
    gamma: float
    timestep: TimestepConfig
    patch_size: int

    def training_loss(
        self, network: Network, batch: TrainingBatch, states_BLE: Tensor, mask_BL: Tensor
    ) -> Losses:
        """Losses of a micro-batch at its step. The tensors lie on one device."""
        draw = (batch.step, batch.sample_ids)
        uniform_B = rng.uniform(self.seed, "timestep", *draw, (), batch.moments.device)
        timestep_B = flow.draw_timesteps(self.timestep, uniform_B)
        return self._loss(network, batch, states_BLE, mask_BL, timestep_B, self.gamma)

    @torch.no_grad()
    def validation_loss(
        self,
        network: Network,
        batch: TrainingBatch,
        states_BLE: Tensor,
        mask_BL: Tensor,
        timestep: float,
    ) -> Losses:
        """Dense losses of a held-out batch, all at time ``timestep``."""
        timestep_B = torch.full_like(batch.sample_ids, timestep, dtype=torch.float32)
        timestep_B = timestep_B.to(batch.moments.device)
        return self._loss(network, batch, states_BLE, mask_BL, timestep_B, gamma=0.0)

    def _loss(
        self,
        network: Network,
        batch: TrainingBatch,
        states_BLE: Tensor,
        mask_BL: Tensor,
        timestep_B: Tensor,
        gamma: float,
    ) -> Losses:
        data_BCHW = self.draw_latents(batch)
        device = data_BCHW.device
        draw = (batch.step, batch.sample_ids)
        noise_BCHW = rng.normal(self.seed, "noise", *draw, data_BCHW.shape[1:], device)
        keep_ids_BK = None
        if gamma > 0:
            num_tokens = data_BCHW[0, 0].numel() // self.patch_size**2
            keep_ids_BK = draw_keep_ids(self.seed, "routing", *draw, num_tokens, gamma, device)
        x_t = flow.interpolate(data_BCHW, noise_BCHW, timestep_B)
        velocity = network(x_t, timestep_B, states_BLE, mask_BL, keep_ids_BK)
        error = velocity.float() - flow.velocity_target(data_BCHW, noise_BCHW)
        return Losses(error.square().mean(dim=(1, 2, 3)), timestep_B)

    def draw_latents(self, batch: TrainingBatch) -> Tensor:
        """x = mean + std * noise from the VAE's moments, float32 (B, C, H, W)."""
        mean_BCHW, std_BCHW = batch.moments.float().chunk(2, dim=1)
        shape = mean_BCHW.shape[1:]
        device = batch.moments.device
        noise = rng.normal(self.seed, "vae", batch.step, batch.sample_ids, shape, device)
        return mean_BCHW + std_BCHW * noise
