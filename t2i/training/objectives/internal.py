"""Flow matching with a second head inside the network (Internal Guidance, arXiv 2512.24176).

    loss = mean ||D(x_t, t, c) - v*||^2 + weight mean ||D_internal(x_t, t, c) - v*||^2

D_internal is what the auxiliary head makes of the tokens after a block near the input: a weaker
prediction, which guidance `ig` extrapolates from. The authors' weight is 0.5.

Shape suffixes: B samples, C channels, H x W latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from t2i.batch import TrainingBatch
from t2i.training.conditions import Condition
from t2i.training.objectives.flow_matching import FlowMatching, Losses

# an objectives.Network that with internal=True returns both predictions, (2, B, C, H, W)
TwoHeaded = Callable[..., Tensor]


@dataclass(frozen=True)
class InternalFlowMatching:
    """Flow matching of both heads, on the draws of a flow-matching objective.

    Attributes:
        base: draws noise, times and routed tokens.
        weight: of the internal head's loss.
    """

    base: FlowMatching
    weight: float

    def training_loss(
        self, network: TwoHeaded, batch: TrainingBatch, condition: Condition
    ) -> Losses:
        """Losses of a micro-batch at its step: the final head's plus weight times the other's."""
        noised = self.base.draw(batch)
        inputs = noised.x_t_BCHW, noised.timestep_B, condition, noised.keep_ids_BK
        final_BCHW, internal_BCHW = network(*inputs, internal=True, **noised.inputs)
        final = noised.losses(final_BCHW, noised.velocity_BCHW)
        internal = noised.losses(internal_BCHW, noised.velocity_BCHW)
        return Losses(final.loss_B + self.weight * internal.loss_B, noised.timestep_B)

    def validation_loss(
        self, network: TwoHeaded, batch: TrainingBatch, condition: Condition, timestep: float
    ) -> Losses:
        """Dense losses of the final head."""
        return self.base.validation_loss(network, batch, condition, timestep)
