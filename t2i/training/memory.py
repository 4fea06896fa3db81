"""Bytes that one process of a training run needs, and those it saves, by formula. Free of torch.

What DeepSpeed 0.19 allocates with the settings of `t2i.training.engine.deepspeed_config`, for N
parameters and P processes. The test beside it measures the same in real processes.

    weights       bf16 or fp32: N in ZeRO 1 and 2, N / P in ZeRO 3 (small ones whole)
    AdamW, EMA    fp32: masters, two moments, average: 16 bytes x N / P; each power average 4 more
    gradients     fp32: N in ZeRO 1 (in bf16 runs another N in bf16), N / P in ZeRO 2 and 3
    bucket        500 M elements, where gradients are reduced; none in ZeRO 1 with bf16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from t2i.training.objectives.model_guidance_config import ModelGuidanceConfig
from t2i.training.training_config import TrainingConfig

FP32 = 4
SNAPSHOT = 2  # float16
# DeepSpeed's defaults, in elements: gradients that are reduced together; parameters below which
# ZeRO 3 keeps them whole; how many it leaves whole because they are needed again soon; how many it
# fetches ahead.
BUCKET = 500_000_000
PERSISTENT_BELOW = 100_000
MOST_LIVE = 1_000_000_000
FETCHED_AHEAD = 50_000_000
NUM_OPTIMIZER_STATES = 3  # fp32 masters, two moments


@dataclass(frozen=True)
class StateBytes:
    """Of one process.

    Attributes:
        weights: that the network computes with.
        optimizer: fp32 masters and both moments.
        averages: EMA and power averages, fp32.
        gradients: accumulated, fp32; the most that there is in a step.
        gradients_held: those of them that are there between steps, too.
        bucket: where gradients are gathered to be reduced.
        bucket_held: whether it is there between steps, too.
        live: ZeRO 3: weights that are whole while the network computes, and those fetched ahead.
        gradient_copy: this process's share, flat, as the optimizer takes it.
    """

    weights: int
    optimizer: int
    averages: int
    gradients: int
    gradients_held: int
    bucket: int
    bucket_held: bool
    live: int
    gradient_copy: int

    @property
    def held(self) -> int:
        """Between two steps."""
        bucket = self.bucket if self.bucket_held else 0
        return self.weights + self.optimizer + self.averages + self.gradients_held + bucket

    def peak(self, activations: int) -> int:
        """The most in a step: as a backward pass begins, or when the optimizer copies gradients."""
        always = self.weights + self.optimizer + self.averages + self.gradients
        always += self.bucket if self.bucket_held else 0
        bucket = 0 if self.bucket_held else self.bucket
        return always + max(bucket + self.live + activations, self.gradient_copy)


def state_bytes(
    sizes: Sequence[int],
    zero_stage: Literal[1, 2, 3],
    precision: Literal["bf16", "fp32"],
    world_size: int,
    num_power_averages: int = 0,
) -> StateBytes:
    """What does not depend on the batch.

    Args:
        sizes: elements of each parameter of the network.
        num_power_averages: beside the EMA.
    """
    element = 2 if precision == "bf16" else FP32
    total = sum(sizes)
    share = -(-total // world_size)
    bucket = BUCKET * element
    weights, live, gradients, held = total * element, 0, share * FP32, 0
    if zero_stage == 1 and precision == "bf16":
        # BF16_Optimizer: whole gradients in fp32, always there, and in bf16 until they are added
        gradients, held, bucket = total * (FP32 + element), total * FP32, 0
    elif zero_stage == 1:
        gradients = total * FP32
    elif zero_stage == 3:
        whole = sum(size for size in sizes if size < PERSISTENT_BELOW)
        weights, held = (share + whole) * element, gradients
        live = sum(min(total - whole, most) for most in (MOST_LIVE, FETCHED_AHEAD)) * element
    return StateBytes(
        weights=weights,
        optimizer=NUM_OPTIMIZER_STATES * FP32 * share,
        averages=(1 + num_power_averages) * FP32 * share,
        gradients=gradients,
        gradients_held=held,
        bucket=bucket,
        bucket_held=zero_stage == 3,
        live=live,
        gradient_copy=0 if zero_stage == 1 and precision == "bf16" else share * FP32,
    )


def teacher_bytes(num_parameters: int, training: TrainingConfig) -> int:
    """Of model-guidance's teacher: whole weights in the precision of training, in any ZeRO stage."""
    if not isinstance(training.objective, ModelGuidanceConfig):
        return 0
    return num_parameters * (2 if training.precision == "bf16" else FP32)


def checkpoint_bytes(num_parameters: int, training: TrainingConfig) -> int:
    """Of one checkpoint: masters, two moments, EMA and power averages, all fp32."""
    kinds = NUM_OPTIMIZER_STATES + 1 + len(training.power_averages)
    return kinds * FP32 * num_parameters


def snapshots_bytes(num_parameters: int, training: TrainingConfig, there: int = 0) -> int:
    """Of all snapshots of a run, none of which is removed, without those that are ``there``."""
    if not training.snapshot_every:
        return 0
    count = -(-training.steps // training.snapshot_every)
    one = len(training.power_averages) * SNAPSHOT * num_parameters
    return max(count - there, 0) * one
