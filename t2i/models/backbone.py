"""What guided sampling needs of a model: three parts that may run for several branches at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


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

    def before_route(self, hidden: Any, condition: Any, skip_blocks: Sequence[int] = (), /) -> Any:
        """The blocks before the first route."""

    def from_route(
        self,
        hidden: Any,
        condition: Any,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        skip_blocks: Sequence[int] = (),
        /,
    ) -> Tensor:
        """All that follows; the velocity (B, C, H, W)."""
