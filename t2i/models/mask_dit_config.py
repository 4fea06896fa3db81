"""Settings of MaskDiT; free of torch."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from t2i.models.routes import Routes
from t2i.models.sit_config import ClassConditionalConfig


class MaskDiTConfig(ClassConditionalConfig):
    """SiT as the encoder of visible tokens, and a small decoder of all tokens."""

    FAMILIES: ClassVar[dict[str, dict[str, Any]]] = {"MaskDiT": {}}

    decoder_layers: int = Field(default=8, ge=1)
    decoder_width: int = Field(default=512, ge=4)
    decoder_heads: int = Field(default=16, ge=1)

    num_draws: ClassVar[int] = 1  # of visible tokens in a forward pass
    # as other families name them: no block is routed, and no head is inside
    resolved_routes: ClassVar[Routes] = ()
    internal_after: ClassVar[int | None] = None

    @model_validator(mode="after")
    def _decoder_width_divides(self) -> Self:
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width {self.decoder_width} must be a multiple of 4 (sines and cosines "
                f"of y and x) and of decoder_heads {self.decoder_heads}"
            )
        return self
