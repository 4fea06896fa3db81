"""DiT's prediction of noise as a flow-matching velocity, so that one sampler serves both.

DiT's diffusion (Ho et al., arXiv 2006.11239; 1000 steps, betas linear from 1e-4 to 0.02) has

    x_s = a_s data + b_s noise,   a_s^2 + b_s^2 = 1.

Divided by a + b this is a point of the straight path, x_t = t data + (1 - t) noise with
t = a / (a + b), so log(a / b) is the logit of t. The network is asked about (a + b) x_t at step s:

    velocity = data - noise = (x_t - epsilon) / t.

Between two steps s is interpolated in log(a / b). The diffusion has no t below 0.006 or above 0.99:
there the velocity is that of the nearest t it has, at the same x_t.

Shape suffixes: B samples, C latent channels, H x W latents, K kept tokens, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.sit import Hidden, SiT

NUM_STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02


def step_logits(device: torch.device | str = "cpu") -> Tensor:
    """log(a / b) at steps 0 ... 999: (S,) float64, descending from 4.6 to -5.1."""
    betas_S = torch.linspace(FIRST_BETA, LAST_BETA, NUM_STEPS, dtype=torch.float64, device=device)
    log_signal_S = (-betas_S).log1p().cumsum(0)  # log a^2
    return (log_signal_S - (-log_signal_S.expm1()).log()) / 2


def nearest_step(timestep_B: Tensor) -> tuple[Tensor, Tensor]:
    """The step of the diffusion for t in [0, 1], and its own t (another only beyond the ends).

    Returns:
        (B,) float32 in [0, 999], not rounded; (B,) float32 in [0.006, 0.99].
    """
    ascending_S = step_logits(timestep_B.device).flip(0)
    logit_B = timestep_B.double().logit().clamp(ascending_S[0], ascending_S[-1])
    above_B = torch.searchsorted(ascending_S, logit_B).clamp(min=1)
    low_B, high_B = ascending_S[above_B - 1], ascending_S[above_B]
    place_B = above_B - (high_B - logit_B) / (high_B - low_B)
    return (NUM_STEPS - 1 - place_B).float(), logit_B.sigmoid().float()


@dataclass(frozen=True)
class EpsilonHidden:
    """DiT's state between two blocks, with what turns its prediction into a velocity."""

    of_model: Hidden
    latents_BCHW: Tensor
    timestep_B: Tensor

    def select(self, ids: Tensor) -> EpsilonHidden:
        """The samples `ids` (int64, may repeat), in that order."""
        return EpsilonHidden(
            self.of_model.select(ids), self.latents_BCHW[ids], self.timestep_B[ids]
        )


class EpsilonToVelocity(nn.Module):
    """A DiT with the three parts of a velocity model; the variance it predicts is dropped."""

    def __init__(self, model: SiT) -> None:
        super().__init__()
        assert model.config.prediction == "epsilon"
        self.model = model
        self.config = model.config

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks in place, see `t2i.models.compilation`."""
        self.model.compile_blocks(backend)

    def embed(
        self, latents_BCHW: Tensor, timestep_B: Tensor, guidance_scale_B: Tensor | None = None
    ) -> EpsilonHidden:
        """x_t (B, C, H, W) and t (B,) in [0, 1], 0 = noise, as of any velocity model."""
        step_B, timestep_B = nearest_step(timestep_B)
        scale_B = (timestep_B**2 + (1 - timestep_B) ** 2).rsqrt()  # a + b
        scaled_BCHW = latents_BCHW * scale_B.view(-1, 1, 1, 1)
        hidden = self.model.embed(scaled_BCHW, step_B, guidance_scale_B)
        return EpsilonHidden(hidden, latents_BCHW, timestep_B)

    def before_route(
        self, hidden: EpsilonHidden, labels_B: Tensor, perturbation: Perturbation = UNPERTURBED
    ) -> EpsilonHidden:
        """The blocks before the first route; arguments as in `SiT.forward`."""
        of_model = self.model.before_route(hidden.of_model, labels_B, perturbation)
        return EpsilonHidden(of_model, hidden.latents_BCHW, hidden.timestep_B)

    def from_route(
        self,
        hidden: EpsilonHidden,
        labels_B: Tensor,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        perturbation: Perturbation = UNPERTURBED,
    ) -> Tensor:
        """The velocity (B, C, H, W) float32; arguments as in `SiT.forward`."""
        prediction = self.model.from_route(
            hidden.of_model, labels_B, keep_ids_BK, keep_mask_BK, perturbation
        )
        return self._velocity(prediction, hidden)

    def internal_velocity(self, hidden: EpsilonHidden, labels_B: Tensor) -> Tensor:
        """The internal head's velocity (B, C, H, W) float32."""
        return self._velocity(self.model.internal_velocity(hidden.of_model, labels_B), hidden)

    def _velocity(self, prediction: Tensor, hidden: EpsilonHidden) -> Tensor:
        epsilon_BCHW = prediction[:, : self.config.in_channels].float()
        return (hidden.latents_BCHW - epsilon_BCHW) / hidden.timestep_B.view(-1, 1, 1, 1)
