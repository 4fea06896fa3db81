"""Settings of model-guidance, and its automatic scale; no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i.config import Section


class ScaleInterval(Section):
    """Scale-aware: each sample's scale is uniform in [low, high] and is fed to the network."""

    low: float = Field(default=1.0, ge=0)
    high: float = 2.0

    @model_validator(mode="after")
    def _holds_the_plain_scale(self) -> ScaleInterval:
        if not self.low <= 1 < self.high:
            raise ValueError(
                f"scale interval [{self.low:g}, {self.high:g}] must hold 1, the plain scale at "
                "which the teacher is asked: low <= 1 < high"
            )
        return self


class AutoScale(Section):
    """One scale for all samples, moved by `update_scale` after each evaluation.

    What it follows is the quality of samples, as the paper has it (``launch.train.samples_metric``
    of a few hundred prompts or classes), or minus the validation loss, which costs nothing more. That
    loss holds the network against plain targets: a scale above 1 worsens it by itself, so the scale
    rises while that loss rises, for whatever reason, and ``highest`` is what keeps it in bounds.
    """

    follow: Literal["samples", "validation_loss"] = "validation_loss"
    highest: float = Field(default=2.0, gt=1)
    decay: float = Field(default=0.9, ge=0, lt=1, description="of both running averages")


class ModelGuidanceConfig(Section):
    """How the target of flow matching is guided (Model-guidance, eq. 17-23).

    The scale w is on the paper's scale: 1 is plain flow matching. At the fixed point of training
    without scale input, a network trained at w predicts what CFG predicts at omega = 1 / (2 - w):
    its own guided prediction teaches it. A scale-aware one predicts CFG at omega = w.
    """

    name: Literal["model_guidance"] = "model_guidance"
    # a number for all samples, an interval (scale-aware), or automatic
    scale: Annotated[float, Field(ge=1)] | ScaleInterval | AutoScale = 1.5
    num_references: int = Field(
        default=0, ge=0, description="N: mean over N conditions in place of the empty one (eq. 23)"
    )
    # Labels are drawn among all classes. Texts cannot be listed: they are drawn among the captions
    # of so many samples at the head of the data's order.
    num_reference_captions: int = Field(
        default=1024, ge=1, description="captions that references of texts are drawn from"
    )
    from_step: int = Field(default=0, ge=0, description="plain flow matching before this step")
    below_noise_level: float | None = Field(
        default=None, gt=0, le=1, description="guide only where 1 - t is below; None = everywhere"
    )
    teacher_skips_tokens: bool = Field(
        default=False, description="route the teacher like the trained network; else it is dense"
    )
    # 1 is exact. A longer interval saves gathering the average at each step; the teacher is then
    # up to that many steps old, and a run that is stopped within an interval goes on with a newer
    # one than if it had not been stopped.
    teacher_every: int = Field(default=1, ge=1, description="steps between two averages as teacher")

    @property
    def feeds_scale(self) -> bool:
        """Whether the network must take the scale as an input."""
        return isinstance(self.scale, ScaleInterval)


def check_scale_input(config: ModelGuidanceConfig, network_takes_scale: bool) -> None:
    """Refuse a config that does not fit the network.

    Raises:
        ValueError: one of them is scale-aware and the other is not.
    """
    if config.feeds_scale and not network_takes_scale:
        raise ValueError(
            "scale is an interval, but the network has no scale input; give a number, or set "
            "scale_input of the model to true"
        )
    if network_takes_scale and not config.feeds_scale:
        raise ValueError(
            "the network has a scale input, so scale must be an interval such as "
            "{low: 1.0, high: 2.0}; or set scale_input of the model to false"
        )


@dataclass(frozen=True)
class ScaleState:
    """Where the automatic scale stands; `dataclasses.asdict` is its state for a checkpoint.

    Attributes:
        scale: w; 1 = plain.
        quality: running average of the measured quality; None before the first evaluation.
    """

    scale: float = 1.0
    quality: float | None = None


PLAIN = ScaleState()


def update_scale(config: AutoScale, state: ScaleState, quality: float) -> ScaleState:
    """The scale after an evaluation: raised when the running quality fell, else lowered (MG 3.3).

    Both numbers are running averages: the scale moves towards ``highest`` or towards 1, so it
    stays between them. The first evaluation has nothing to compare with and leaves it at 1.

    Args:
        quality: of the model as just measured, higher is better (say, -FID).
    """
    if state.quality is None:
        return ScaleState(state.scale, quality)
    running = config.decay * state.quality + (1 - config.decay) * quality
    goal = config.highest if running < state.quality else 1.0
    return ScaleState(config.decay * state.scale + (1 - config.decay) * goal, running)
