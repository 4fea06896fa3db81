"""What guided sampling needs of a model: three parts that may run for several branches at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from t2i.models.perturbation import UNPERTURBED, Perturbation


class Backbone(Protocol):
    """A predictor of flow-matching velocities: TRDiT, SiT, MaskDiT, EpsilonToVelocity.

    `hidden` is a model's own state between two blocks, of which ``select(ids)`` takes samples. The
    condition is a TextContext (TRDiT) or class labels (B,) int64 (all others).
    """

    config: Any

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""

    def compile_blocks(self, backend: str = "inductor", /) -> None:
        """Compile the blocks in place, see `t2i.models.compilation`."""

    def embed(
        self, latents_BCHW: Tensor, timestep_B: Tensor, guidance_scale_B: Tensor | None = None, /
    ) -> Any:
        """x_t, t in [0, 1] and (with a scale input) w to the hidden state before the first block."""

    def before_route(
        self, hidden: Any, condition: Any, perturbation: Perturbation = UNPERTURBED, /
    ) -> Any:
        """The blocks before the first route."""

    def from_route(
        self,
        hidden: Any,
        condition: Any,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        perturbation: Perturbation = UNPERTURBED,
        /,
    ) -> Tensor:
        """All that follows; the velocity (B, C, H, W)."""

    def internal_velocity(self, hidden: Any, condition: Any, /) -> Tensor:
        """The internal head's velocity (B, C, H, W), from the state of `before_route`.

        Only of a network whose config says ``internal_after``.
        """
