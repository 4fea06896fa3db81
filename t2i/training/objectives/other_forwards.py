"""Forward passes that an objective runs beside the trained one, and what they cost; no torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from t2i.models.costs.macs import TRAINING_PASSES
from t2i.training.objectives.config import ObjectiveConfig
from t2i.training.objectives.masked_config import BalancedWeight, MaskedConfig
from t2i.training.objectives.model_guidance_config import ModelGuidanceConfig


def other_forwards(objective: ObjectiveConfig, gamma: float) -> Sequence[float]:
    """gamma of each of them, in a step that runs them.

    Model-guidance asks its teacher about the condition and about each of the references; masked
    flow matching measures its automatic lambda.
    """
    match objective:
        case ModelGuidanceConfig():
            teacher_gamma = gamma if objective.teacher_skips_tokens else 0.0
            return (teacher_gamma,) * (1 + max(objective.num_references, 1))
        case MaskedConfig(weight=BalancedWeight()):
            return (gamma,)
        case _:
            return ()


def share_of_steps(objective: ObjectiveConfig, steps: int) -> float:
    """In which part of a run of ``steps`` steps they run, in [0, 1].

    An automatic scale of model-guidance starts as the plain one, which asks no teacher, until a
    validation moves it: here it counts as moved.
    """
    match objective:
        case ModelGuidanceConfig(scale=1):
            return 0.0
        case ModelGuidanceConfig(from_step=first):
            return max(0, steps - first) / steps
        case MaskedConfig(weight=BalancedWeight(every=every)):
            return -(-steps // every) / steps
        case _:
            return 0.0


def sample_flops(
    training_flops: Callable[[float], float],
    gamma: float,
    others: Sequence[float],
    share: float = 1.0,
) -> float:
    """FLOPs of one sample: the trained forward and backward pass, and other forward passes.

    Args:
        training_flops: gamma -> FLOPs of a forward and a backward pass.
        others: from `other_forwards`; ``share``: from `share_of_steps`.
    """
    forwards = sum(training_flops(other) for other in others) / TRAINING_PASSES
    return training_flops(gamma) + share * forwards
