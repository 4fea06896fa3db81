"""Settings of flow matching on masked tokens, and its automatic weight; no torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from t2i.config import Section


class BalancedWeight(Section):
    """lambda that gives both terms gradients of one size, see `balanced_weight`.

    A step uses what the steps before it have measured; until a ratio is known it is 1.
    """

    every: int = Field(default=10, ge=1, description="steps; a measurement costs a forward pass")
    decay: float = Field(default=0.9, ge=0, lt=1, description="of the running average; 0: none")
    highest: float = Field(default=10.0, gt=0)


class MaskedConfig(Section):
    """The second term of Sparse Guidance, eq. A4. ``gamma`` is the share of masked tokens."""

    name: Literal["masked"] = "masked"
    # lambda: a number, or balanced
    weight: Annotated[float, Field(ge=0)] | BalancedWeight = BalancedWeight()
    masked_target: Literal["zero", "velocity", "normalized"] = Field(
        default="zero",
        description="zero: (1-t)^2 ||v M||^2 as printed; velocity: (1-t)^2 ||(v - v*) M||^2, eq. A1; "
        "normalized: the noisy latents, normalised by patch, as MaskDiT's code (with weight 0.1)",
    )


def balanced_weight(
    config: BalancedWeight, weight: float | None, visible_norm: float, masked_norm: float
) -> float | None:
    """The next lambda: a running average of visible_norm / masked_norm, at most ``highest``.

    Args:
        weight: the present lambda; None before the first ratio, which is taken as it is.
        visible_norm, masked_norm: of the two terms' gradients with respect to one parameter that
            both share, say the last layer (`masked.term_gradients`); finite, >= 0. A masked_norm of
            0, as of a network whose last layer starts at zero, tells nothing: lambda stays.
    """
    if masked_norm == 0:
        return weight
    ratio = config.highest
    if visible_norm < config.highest * masked_norm:
        ratio = visible_norm / masked_norm
    return ratio if weight is None else config.decay * weight + (1 - config.decay) * ratio
