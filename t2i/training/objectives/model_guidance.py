"""Model-guidance: a network that learns the guided prediction (Tang et al. 2025, eq. 17-23).

    u' = u + (w - 1) sg(u~(x_t, t, c) - u~(x_t, t, null)),   loss = mean ||D(x_t, t, c) - u'||^2

u = x - z is the plain target, u~ the EMA network (the teacher), sg stops the gradient. w = 1 is
plain flow matching: the scale of the paper's tables, whereas its equations and code use w - 1.

Scale-aware networks (eq. 21-22) are fed w. Their teacher is asked at (c, 1) and (null, 0), and on
the scale above that is consistent: u' at w = 1 is the plain conditional velocity and at w = 0 the
unconditional one. So dropped samples are fed 0 and the others a scale drawn from an interval that
holds 1, even where their target is plain (`from_step`, `below_noise_level`). The references of
eq. 23 are conditions like any other, asked at 1.

Shape suffixes: B samples, C channels, H x W latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i import flow, rng
from t2i.batch import TrainingBatch
from t2i.training.conditions import Condition, ContrastedConditions
from t2i.training.objectives.flow_matching import FlowMatching, Losses, Noised
from t2i.training.objectives.model_guidance_config import (
    PLAIN,
    AutoScale,
    ModelGuidanceConfig,
    ScaleInterval,
    ScaleState,
    check_scale_input,
)

# an objectives.Network; a scale-aware one also takes guidance_scale_B=, (B,) float32
GuidedNetwork = Callable[..., Tensor]


@dataclass(frozen=True)
class ModelGuidance:
    """Model-guidance on the draws of a flow-matching objective.

    Attributes:
        base: draws noise, times and routed tokens.
        config: see `ModelGuidanceConfig`.
        network_takes_scale: whether networks take ``guidance_scale_B``.
        auto: where the automatic scale stands, for `AutoScale`.

    Raises:
        ValueError: the config does not fit the network.
    """

    base: FlowMatching
    config: ModelGuidanceConfig
    network_takes_scale: bool = False
    auto: ScaleState = PLAIN

    def __post_init__(self) -> None:
        check_scale_input(self.config, self.network_takes_scale)

    def training_loss(
        self,
        network: GuidedNetwork,
        teacher: GuidedNetwork,
        batch: TrainingBatch,
        conditions: ContrastedConditions,
    ) -> Losses:
        """Losses of a micro-batch at its step. The tensors lie on one device.

        Args:
            network: the one that is trained.
            teacher: with the averaged weights, e.g. `t2i.training.averages.ema.averaged_network`.
            batch: see `FlowMatching.training_loss`.
            conditions: the references are the null condition, or ``config.num_references``.
        """
        noised = self.base.draw(batch)
        scale_B = self._draw_scales(batch, conditions)
        predicted_BCHW = network(
            noised.x_t_BCHW,
            noised.timestep_B,
            conditions.given,
            noised.keep_ids_BK,
            **self._scale_input(scale_B),
            **noised.inputs,
        )
        target_BCHW = noised.velocity_BCHW
        if self.asks_teacher(batch.step):
            strength_B = self._strengths(noised, conditions, scale_B)
            strength_B111 = flow.expand_timestep(strength_B, target_BCHW)
            target_BCHW = target_BCHW + strength_B111 * self._contrast(teacher, noised, conditions)
        return noised.losses(predicted_BCHW, target_BCHW)

    def asks_teacher(self, step: int) -> bool:
        """Whether the target of a step is guided, so that the teacher must be up to date."""
        return step >= self.config.from_step and self._scale != 1

    def validation_loss(
        self, network: GuidedNetwork, batch: TrainingBatch, condition: Condition, timestep: float
    ) -> Losses:
        """Dense losses against the plain target, of a scale-aware network at scale 1."""
        one_B = torch.ones(len(batch.sample_ids), device=batch.moments.device)

        def plain(*inputs: object, **masks: object) -> Tensor:
            return network(*inputs, **self._scale_input(one_B), **masks)

        return self.base.validation_loss(plain, batch, condition, timestep)

    @property
    def _scale(self) -> float | ScaleInterval:
        scale = self.config.scale
        return self.auto.scale if isinstance(scale, AutoScale) else scale

    def _draw_scales(self, batch: TrainingBatch, conditions: ContrastedConditions) -> Tensor:
        """w of each sample, (B,) float32; 0 for dropped ones."""
        scale, device = self._scale, batch.moments.device
        if isinstance(scale, ScaleInterval):
            draw = (batch.step, batch.sample_ids)
            draws_B = rng.uniform(self.base.seed, "guidance scale", *draw, (), device)
            scale_B = scale.low + (scale.high - scale.low) * draws_B
        else:
            scale_B = torch.full((len(batch.sample_ids),), scale, device=device)
        if conditions.dropped_B is None:
            return scale_B
        return scale_B.masked_fill(conditions.dropped_B, 0.0)

    def _strengths(
        self, noised: Noised, conditions: ContrastedConditions, scale_B: Tensor
    ) -> Tensor:
        """w - 1 where the target is guided, 0 where it is plain; (B,) float32."""
        strength_B = scale_B - 1
        if conditions.dropped_B is not None:
            strength_B = strength_B.masked_fill(conditions.dropped_B, 0.0)
        if self.config.below_noise_level is not None:
            too_noisy_B = 1 - noised.timestep_B >= self.config.below_noise_level
            strength_B = strength_B.masked_fill(too_noisy_B, 0.0)
        return strength_B

    @torch.no_grad()
    def _contrast(
        self, teacher: GuidedNetwork, noised: Noised, conditions: ContrastedConditions
    ) -> Tensor:
        """u~(x_t, t, c) - the mean of u~ over the references, float32 (B, C, H, W)."""
        expected = max(self.config.num_references, 1)
        assert len(conditions.references) == expected, f"{expected} references expected"
        is_routed = self.config.teacher_skips_tokens
        keep_ids_BK, masks = (noised.keep_ids_BK, noised.masks) if is_routed else (None, {})

        def ask(condition: Condition, scale: float) -> Tensor:
            scale_input = self._scale_input(torch.full_like(noised.timestep_B, scale))
            return teacher(
                noised.x_t_BCHW, noised.timestep_B, condition, keep_ids_BK, **scale_input, **masks
            ).float()

        reference_scale = 1.0 if self.config.num_references else 0.0
        references = [ask(condition, reference_scale) for condition in conditions.references]
        return ask(conditions.given, 1.0) - torch.stack(references).mean(dim=0)

    def _scale_input(self, scale_B: Tensor) -> dict[str, Tensor]:
        return {"guidance_scale_B": scale_B} if self.network_takes_scale else {}
