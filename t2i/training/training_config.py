"""Settings of a training run; no torch here. Every progress-dependent value is a function of the step."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i.config import Section
from t2i.flow import TimestepConfig
from t2i.models.routes import RoutingDraw
from t2i.training.objectives.config import FlowMatchingConfig, ObjectiveConfig
from t2i.training.objectives.masked_config import BalancedWeight, MaskedConfig

# Relative widths of averages of the weights: at 1 / sqrt(12) all updates weigh the same.
LARGEST_WIDTH = 0.28


class TrainingConfig(Section):
    """How a model is trained. The defaults are the paper's TR-DiT-2.5B (SG Table A1)."""

    steps: int = Field(default=400_000, ge=1, description="optimizer steps of the run")
    seed: int = 0

    # Optimizer: AdamW, constant rate after a linear warm-up, and perhaps a linear decay at the end.
    learning_rate: float = Field(default=5e-5, gt=0)
    warmup_steps: int = Field(default=1_000, ge=0)
    decay_steps: int = Field(
        default=0,
        ge=0,
        description="last steps of the run, in which the rate falls linearly towards zero; a run "
        "may be prolonged until they begin",
    )
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clipping: float | None = Field(
        default=1.0, gt=0, description="largest norm of the gradient; None = as it comes"
    )
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="limit; see ema.decay_at")
    power_averages: tuple[Annotated[float, Field(gt=0, lt=LARGEST_WIDTH)], ...] = Field(
        default=(),
        max_length=4,
        description="relative widths of more averages, by power functions, rising, e.g. [0.05, 0.1]: "
        "out of their snapshots t2i.export makes the average of any width; see power_functions",
    )

    # Batch: global_batch = micro_batch x gradient accumulation x processes.
    global_batch: int = Field(default=3_072, ge=1)
    micro_batch: int = Field(
        default=32, ge=1, description="samples of one forward of one process, at most; see `fitted`"
    )

    # Objective; sparsity and times are common to all of them.
    objective: ObjectiveConfig = FlowMatchingConfig()
    gamma: float = Field(
        default=0.5, ge=0, lt=1, description="fraction of tokens that skip, or are masked"
    )
    routing_draw: RoutingDraw = Field(
        default="fixed",
        description="fixed count of kept tokens, or each with probability 1 - gamma; the shapes of "
        "bernoulli draws differ from batch to batch",
    )
    deep_path_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of samples of which no token comes out of the route (SPRINT: 0.1), so "
        "that guidance pdg asks for what was trained",
    )
    timestep: TimestepConfig = TimestepConfig()

    # Engine.
    zero_stage: Literal[1, 2, 3] = 2
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = Field(default=False, description="torch.compile of the blocks")
    timeout_minutes: float = Field(
        default=30,
        gt=0,
        description="a phase of a step that lasts longer ends the run, see watchdog",
    )

    # Saving and seeing.
    checkpoint_every: int = Field(default=1_000, ge=1, description="steps")
    checkpoint_minutes: float | None = Field(
        default=None, gt=0, description="also this long after the last checkpoint; None = off"
    )
    keep_checkpoints: int = Field(default=3, ge=1)
    keep_at: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="steps after which a checkpoint is saved that is never removed, say [50000]: "
        "python -m t2i.export --step 50000 makes the weaker network of guidance ag+sg of it",
    )
    snapshot_every: int = Field(
        default=0,
        ge=0,
        description="steps between snapshots of power_averages, in float16, all kept; 0 = none",
    )
    log_every: int = Field(default=10, ge=1)
    communication_every: int = Field(
        default=1_000, ge=0, description="steps between traces of communication; 0 = none"
    )
    validate_every: int = Field(default=1_000, ge=1)
    sample_every: int = Field(default=0, ge=0, description="steps between images; 0 = none")
    # Steps without an update: gradients that are not finite, and spikes (see spikes.SpikeGuard).
    max_gradient_norm_ratio: float | None = Field(
        default=20, gt=1, description="to the median of the last norms; None = no limit"
    )
    gradient_norm_window: int = Field(default=128, ge=1, description="applied steps of the median")
    max_skipped_in_a_row: int = Field(default=20, ge=1)
    peak_tflops: float | None = Field(
        default=None, gt=0, description="of one process, for MFU; None = by the GPU's name"
    )
    wandb: Literal["off", "offline", "online"] = "off"

    @model_validator(mode="after")
    def _power_averages_rise_and_snapshots_have_some(self) -> TrainingConfig:
        widths = list(self.power_averages)
        if any(narrow >= wide for narrow, wide in pairwise(widths)):
            raise ValueError(f"power_averages {widths} must rise; write {sorted({*widths})}")
        if self.snapshot_every and not widths:
            raise ValueError(
                f"snapshot_every {self.snapshot_every} has nothing to write without power_averages; "
                "set power_averages, say to [0.05, 0.1], or snapshot_every to 0"
            )
        return self

    @model_validator(mode="after")
    def _milestones_are_reached(self) -> TrainingConfig:
        if beyond := [step for step in self.keep_at if step > self.steps]:
            raise ValueError(
                f"keep_at {beyond}: the run has {self.steps} steps; leave these out, or set steps higher"
            )
        return self

    @model_validator(mode="after")
    def _decay_follows_the_warm_up(self) -> TrainingConfig:
        if self.decay_steps and self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} do not fit in "
                f"{self.steps} steps; make one of them smaller"
            )
        return self

    @model_validator(mode="after")
    def _routing_draw_has_tokens_to_draw(self) -> TrainingConfig:
        if self.routing_draw == "bernoulli" and self.gamma == 0:
            raise ValueError(
                "routing_draw bernoulli draws the tokens that skip, and gamma 0 lets none skip; set "
                "routing_draw to fixed, or gamma above 0 (the papers: 0.5)"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_whole_where_they_are_measured(self) -> TrainingConfig:
        weight = self.objective.weight if isinstance(self.objective, MaskedConfig) else None
        if isinstance(weight, BalancedWeight) and self.zero_stage == 3:
            raise ValueError(
                "objective.weight is measured on whole weights, which zero_stage 3 does not keep; "
                "set zero_stage to 2, or objective.weight to a number"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_whole_where_they_are_compiled(self) -> TrainingConfig:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile needs whole weights, which zero_stage 3 does not keep; set zero_stage to "
                "2, or compile to false"
            )
        return self

    def fitted(self, world_size: int) -> TrainingConfig:
        """The same with the largest micro-batch, up to ``micro_batch``, that deals out evenly.

        Raises:
            ValueError: the global batch cannot be dealt out among so many processes.
        """
        if self.global_batch % world_size:
            raise ValueError(
                f"t2i.training.global_batch {self.global_batch} cannot be divided among "
                f"{world_size} processes"
            )
        size = largest_divisor(self.global_batch // world_size, self.micro_batch)
        return self.model_copy(update={"micro_batch": size})

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per step and process, of a config that is `fitted`."""
        count, rest = divmod(self.global_batch, self.micro_batch * world_size)
        assert rest == 0, (self.global_batch, self.micro_batch, world_size)
        return count

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step ``step`` (from 0): linear warm-up, constant, linear decay."""
        warmup = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        decay = (self.steps - step) / self.decay_steps if self.decay_steps else 1.0
        return self.learning_rate * min(1.0, warmup, decay)


def largest_divisor(number: int, at_most: int) -> int:
    """Largest divisor of ``number`` that is at most ``at_most``."""
    return max(d for d in range(1, at_most + 1) if number % d == 0)
