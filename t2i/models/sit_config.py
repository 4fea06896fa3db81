"""Settings of the class-conditional models SiT and DiT; free of torch."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from t2i.config import Section
from t2i.models.routes import (
    AfterRoute,
    Routes,
    check_fusion,
    check_internal_head,
    count_draws,
    resolve_routes,
)

# size -> layers, width, heads (Peebles & Xie, arXiv 2212.09748, table 1)
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
PATCH_SIZES = (2, 4, 8)


class ClassConditionalConfig(Section):
    """What SiT and MaskDiT have in common. The defaults are size S/2."""

    FAMILIES: ClassVar[dict[str, dict[str, Any]]]

    num_layers: int = Field(default=12, ge=1)
    width: int = Field(default=384, ge=4)
    num_heads: int = Field(default=6, ge=1)
    in_channels: int = Field(default=4, ge=1)
    patch_size: int = Field(default=2, ge=1)
    num_classes: int = Field(default=1000, ge=1)
    # take the guidance scale as an input (model-guidance with an interval of scales feeds it)
    scale_input: bool = False
    # recompute each block in the backward pass: less memory, a third more time
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _width_divides(self) -> Self:
        if self.width % 4 or self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} must be a multiple of 4 (sines and cosines of y and x) and "
                f"of num_heads {self.num_heads}"
            )
        return self

    @classmethod
    def from_size(cls, name: str, **fields: Any) -> Self:
        """The settings of a published size, such as "SiT-XL/2"; `fields` replace single values.

        Raises:
            ValueError: no such family, size, patch or field; names the valid ones.
        """
        match = re.fullmatch(r"(\w+)-(\w+)/(\d+)", name)
        family, size, patch_size = match.groups() if match else ("", "", "0")
        if family not in cls.FAMILIES or size not in SIZES or int(patch_size) not in PATCH_SIZES:
            raise ValueError(
                f"unknown size {name!r}; valid: {' or '.join(cls.FAMILIES)}, then -, one of "
                f"{', '.join(SIZES)}, then /, one of {', '.join(map(str, PATCH_SIZES))}; "
                f"for example {next(iter(cls.FAMILIES))}-XL/2"
            )
        num_layers, width, num_heads = SIZES[size]
        values = {"num_layers": num_layers, "width": width, "num_heads": num_heads}
        preset = cls.FAMILIES[family] | values | {"patch_size": int(patch_size)}
        return cls.model_validate(preset | fields)

    @property
    def null_label(self) -> int:
        """The label of the null class."""
        return self.num_classes


class SiTConfig(ClassConditionalConfig):
    """Sizes and routes of SiT, or of DiT, which has the same layers and another target."""

    FAMILIES: ClassVar[dict[str, dict[str, Any]]] = {"SiT": {}, "DiT": {"prediction": "epsilon"}}

    # velocity: flow matching, t = 1 is data. epsilon: the noise of DiT's 1000-step diffusion
    prediction: Literal["velocity", "epsilon"] = "velocity"
    # the head has 2 C channels, as in the published checkpoints; velocity models drop the second C
    learn_sigma: bool = True
    # [first, last] layer that dropped tokens skip, both included; negative counts from the end
    routes: Routes = ((2, -4),)
    # each route draws the tokens that it keeps, in training and sampling; else all take the same
    draw_per_route: bool = False
    # tokens that leave the route: put back where they were (TREAD), or fused with the state before
    # it by a linear over both, a learned mask in the places of those that skipped (SPRINT)
    after_route: AfterRoute = "put_back"
    # a second head predicts from the tokens after this block, 0 the first (Internal Guidance)
    internal_after: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _routes_exist(self) -> Self:
        resolve_routes(self.routes, self.num_layers)
        count_draws(self.routes, self.draw_per_route)
        check_internal_head(self.internal_after, self.resolved_routes, self.num_layers)
        check_fusion(self.after_route, self.routes)
        return self

    @property
    def head_channels(self) -> int:
        """Channels per pixel that the head computes."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def num_draws(self) -> int:
        """Draws of kept tokens of a forward pass: 1, or one for each route."""
        return count_draws(self.routes, self.draw_per_route)

    @property
    def resolved_routes(self) -> Routes:
        """The routes with non-negative layers, in order."""
        return resolve_routes(self.routes, self.num_layers)
