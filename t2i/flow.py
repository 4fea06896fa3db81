"""Flow matching: the straight path from noise (t = 0) to data (t = 1), its targets, its times.

    x_t = (1 - t) z + t x,   v* = x - z      (Sparse Guidance, eq. 1-2), z ~ N(0, I)

Sources that use t = 1 for noise are converted at the boundary, never inside. Pure functions on
tensors; times have shape (B,), the other tensors (B, ...) of any float dtype.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from t2i.config import Section

if TYPE_CHECKING:
    from torch import Tensor


class TimestepConfig(Section):
    """How training draws its times."""

    distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    # of logit(t), only for logit_normal; a negative mean gives more time to noisy inputs
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    # > 1 moves times towards noise, see `shift_timestep`; resolution_shift() gives a value
    shift: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _uniform_has_no_mean(self) -> TimestepConfig:
        if self.distribution == "uniform" and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError(
                f"mean {self.mean:g} and std {self.std:g} are of logit_normal, and distribution is "
                "uniform; leave them at 0 and 1, or take logit_normal"
            )
        return self


def interpolate(data: Tensor, noise: Tensor, timestep_B: Tensor) -> Tensor:
    """x_t = (1 - t) z + t x, in the dtype of `data`."""
    return noise.lerp(data, expand_timestep(timestep_B, data))


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """v* = x - z, what the network learns; it does not depend on t."""
    return data - noise


def data_estimate(x_t: Tensor, velocity: Tensor, timestep_B: Tensor) -> Tensor:
    """x^ = x_t + (1 - t) v."""
    return x_t + (1 - expand_timestep(timestep_B, x_t)) * velocity


def noise_estimate(x_t: Tensor, velocity: Tensor, timestep_B: Tensor) -> Tensor:
    """z^ = x_t - t v."""
    return x_t - expand_timestep(timestep_B, x_t) * velocity


def velocity_from_data(x_t: Tensor, data: Tensor, timestep_B: Tensor) -> Tensor:
    """v = (x^ - x_t) / (1 - t), the inverse of `data_estimate`; t < 1."""
    return (data - x_t) / (1 - expand_timestep(timestep_B, x_t))


def draw_timesteps(config: TimestepConfig, uniform_B: Tensor) -> Tensor:
    """Training times, one per sample.

    Args:
        config: distribution and shift.
        uniform_B: (B,) float32 uniform draws in [0, 1), e.g. `t2i.rng.uniform(..., shape=())`.

    Returns:
        (B,) float32 in [0, 1].
    """
    timestep_B = uniform_B
    if config.distribution == "logit_normal":
        normal_B = (2 * uniform_B - 1).erfinv() * math.sqrt(2)
        timestep_B = (config.mean + config.std * normal_B).sigmoid()
    return shift_timestep(timestep_B, config.shift)


def shift_timestep(timestep: Tensor, shift: float) -> Tensor:
    """Move times towards noise: t' = t / (a - (a - 1) t), which keeps 0 and 1 (SD3, eq. 23).

    In noise level s = 1 - t this is s' = a s / (1 + (a - 1) s). a = 1 changes nothing.
    """
    return timestep / (shift - (shift - 1) * timestep)


def resolution_shift(num_tokens: int, reference_tokens: int) -> float:
    """a = sqrt(T / T_ref): the shift that gives T tokens the signal-to-noise ratio of T_ref."""
    return math.sqrt(num_tokens / reference_tokens)


def expand_timestep(timestep_B: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with the rank and dtype of `like`."""
    return timestep_B.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
