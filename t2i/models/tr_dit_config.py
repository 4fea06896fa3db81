"""Settings of TR-DiT; free of torch, so that a command's --help stays fast."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from t2i.config import Section
from t2i.models.routes import (
    AfterRoute,
    Routes,
    check_fusion,
    check_internal_head,
    count_draws,
    resolve_routes,
)


class TRDiTConfig(Section):
    """Sizes and routes of TR-DiT. The defaults are the nano model; see configs/tr_dit_2b5.yaml."""

    num_layers: int = Field(default=8, ge=1)
    width: int = Field(default=192, ge=8)
    num_heads: int = Field(default=3, ge=1)
    in_channels: int = Field(default=4, ge=1)
    patch_size: int = Field(default=2, ge=1)
    # width of the text encoder's hidden states
    text_width: int = Field(default=192, ge=1)
    num_refiner_layers: int = Field(default=2, ge=0)
    # FFN hidden width = width * ffn_expansion, rounded up to a multiple of ffn_multiple
    ffn_expansion: float = Field(default=8 / 3, gt=0)
    ffn_multiple: int = Field(default=16, ge=1)
    adaln_rank: int = Field(default=64, ge=1)
    # what tells image tokens where they are: relative RoPE alone (the papers; also what a stored
    # config without this key means), or absolute sines and cosines beside it
    positions: Literal["rope", "rope+absolute"] = "rope"
    # tokens along a side of the smallest grid in training: absolute positions do not alias on it
    smallest_grid: int | None = Field(default=None, ge=2)
    # [first, last] layer that dropped tokens skip, both included; negative counts from the end
    routes: Routes = ((2, 5),)
    # each route draws the tokens that it keeps, in training and sampling; else all take the same
    draw_per_route: bool = False
    # tokens that leave the route: put back where they were (TREAD), or fused with the state before
    # it by a linear over both, a learned mask in the places of those that skipped (SPRINT)
    after_route: AfterRoute = "put_back"
    # a second head predicts from the tokens after this block, 0 the first (Internal Guidance)
    internal_after: int | None = Field(default=None, ge=0)
    # take the guidance scale as an input (model-guidance with an interval of scales feeds it)
    scale_input: bool = False
    # recompute each block in the backward pass: less memory, a third more time
    gradient_checkpointing: bool = False

    @field_validator("width")
    @classmethod
    def _width_is_even(cls, width: int) -> int:
        if width % 2:
            raise ValueError("width must be even")
        return width

    @model_validator(mode="after")
    def _absolute_positions_know_their_grid(self) -> TRDiTConfig:
        if (self.positions == "rope+absolute") == (self.smallest_grid is None):
            raise ValueError(
                f"positions {self.positions} with smallest_grid {self.smallest_grid}: rope+absolute "
                "needs smallest_grid, the tokens along a side of the smallest grid in training "
                "(pixels / VAE factor / patch_size: 8 for 128 px, 16 for 256 px); rope ignores it"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> TRDiTConfig:
        if self.width % self.num_heads or self.head_width % 8:
            raise ValueError(
                f"width {self.width} over num_heads {self.num_heads} must give a head width that "
                "is a multiple of 8 (axial RoPE rotates a quarter of it by y and a quarter by x)"
            )
        resolve_routes(self.routes, self.num_layers)
        count_draws(self.routes, self.draw_per_route)
        check_internal_head(self.internal_after, self.resolved_routes, self.num_layers)
        check_fusion(self.after_route, self.routes)
        return self

    @property
    def head_width(self) -> int:
        """Channels per attention head."""
        return self.width // self.num_heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of the SwiGLU feed-forward network."""
        multiple = self.ffn_multiple
        return math.ceil(round(self.width * self.ffn_expansion, 6) / multiple) * multiple

    @property
    def num_draws(self) -> int:
        """Draws of kept tokens of a forward pass: 1, or one for each route."""
        return count_draws(self.routes, self.draw_per_route)

    @property
    def resolved_routes(self) -> Routes:
        """The routes with non-negative layers, in order."""
        return resolve_routes(self.routes, self.num_layers)
