"""The arithmetic of a plan: memory, time and storage of a training run. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import ValidationError

from launch.plan_config import PlanConfig
from t2i.config import ConfigError
from t2i.hardware import GPUS
from t2i.models.costs.activations import activations
from t2i.models.costs.kernels import Kernels
from t2i.models.costs.macs import Backbone, forward_macs, training_flops
from t2i.models.costs.parameters import parameter_sizes
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.memory import state_bytes, teacher_bytes
from t2i.training.objectives.model_guidance_config import ModelGuidanceConfig
from t2i.training.objectives.other_forwards import other_forwards, sample_flops, share_of_steps
from t2i.training.training_config import TrainingConfig, largest_divisor

GIB = 2**30
ZeroStage = Literal[1, 2, 3]
ZERO_STAGES: tuple[ZeroStage, ...] = (1, 2, 3)
LATENT_DOWNSAMPLE = 8
HALF = 2  # bytes of bf16, and of a latent's float16
FP32 = 4
# a tar holds a header of 512 bytes for each part and fills parts up to 512 bytes: 768 on average
TAR_PART = 768
LABEL_PART = 1024  # a header and less than 512 bytes of json


@dataclass(frozen=True)
class Job:
    """One stage of training on a number of GPUs.

    Attributes:
        name: of the stage.
        training: its settings.
        resolution: side of its images in pixels.
        text_tokens: of a caption, padding included, on average; 0 for models of classes.
        max_text_tokens: of the longest one, for which memory must suffice.
        micro_batch: the config's, or its largest divisor that fits the number of GPUs.
        is_mirrored: whether there are latents of mirrored pictures too.
    """

    name: str
    model: Backbone
    training: TrainingConfig
    plan: PlanConfig
    num_gpus: int
    resolution: int
    text_tokens: int
    max_text_tokens: int
    micro_batch: int
    is_mirrored: bool

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step and GPU."""
        return self.training.global_batch // self.num_gpus // self.micro_batch

    @property
    def rows(self) -> list[tuple[ZeroStage, bool]]:
        """ZeRO stage and gradient checkpointing of each way to run it that training takes."""
        stages = [stage for stage in ZERO_STAGES if _takes(self.training, stage)]
        return [(stage, checkpointing) for checkpointing in (False, True) for stage in stages]

    @property
    def num_tokens(self) -> int:
        """Image tokens before routing."""
        return (self.resolution // LATENT_DOWNSAMPLE // self.model.patch_size) ** 2

    @property
    def has_text(self) -> bool:
        """Whether the model is conditioned on captions; else on classes."""
        return isinstance(self.model, TRDiTConfig)

    @property
    def forwards_beside(self) -> tuple[Sequence[float], float]:
        """gamma of each forward pass beside training, and in which share of the steps they run."""
        objective, steps = self.training.objective, self.training.steps
        return other_forwards(objective, self.training.gamma), share_of_steps(objective, steps)


def make_job(
    name: str,
    model: Backbone,
    training: TrainingConfig,
    plan: PlanConfig,
    num_gpus: int,
    resolution: int,
    max_text_tokens: int,
    is_mirrored: bool,
) -> Job:
    """See `Job`.

    Raises:
        ConfigError: a global batch or a resolution that does not divide; launch.plan.text_tokens
            beyond the longest caption.
    """
    if num_gpus > training.global_batch or training.global_batch % num_gpus:
        raise ConfigError(
            f"t2i.training.global_batch {training.global_batch} ({name}) cannot be divided among "
            f"{num_gpus} GPUs; choose e.g. {largest_divisor(training.global_batch, num_gpus)}"
        )
    pixels = LATENT_DOWNSAMPLE * model.patch_size
    if resolution % pixels:
        raise ConfigError(f"{name}: resolution {resolution} must be a multiple of {pixels}")
    text_tokens = max_text_tokens if plan.text_tokens is None else plan.text_tokens
    if text_tokens > max_text_tokens:
        raise ConfigError(
            f"launch.plan.text_tokens {text_tokens} is more than the {max_text_tokens} tokens that "
            + (
                "t2i.encoders.text.max_tokens lets a caption have; lower the one or raise the other"
                if max_text_tokens
                else "a model of classes reads; leave it out"
            )
        )
    micro_batch = training.fitted(num_gpus).micro_batch
    return Job(
        name,
        model,
        training,
        plan,
        num_gpus,
        resolution,
        text_tokens,
        max_text_tokens,
        micro_batch,
        is_mirrored,
    )


def _takes(training: TrainingConfig, zero_stage: ZeroStage) -> bool:
    """Whether a run may have this ZeRO stage: some settings need whole weights."""
    try:
        TrainingConfig.model_validate(training.model_dump() | {"zero_stage": zero_stage})
    except ValidationError:
        return False
    return True


@dataclass(frozen=True)
class Memory:
    """Of one GPU, in bytes; `total` is the peak of a step."""

    zero_stage: int
    gradient_checkpointing: bool
    weights: int
    optimizer: int
    averages: int
    gradients: int
    bucket: int
    activations: int
    text_encoder: int
    teacher: int
    reserve: int
    total: int
    fits: bool


def memory(job: Job, zero_stage: ZeroStage, gradient_checkpointing: bool) -> Memory:
    """What a GPU holds in a step of a job."""
    plan, precision = job.plan, job.training.precision
    model = job.model.model_copy(update={"gradient_checkpointing": gradient_checkpointing})
    num_averages = len(job.training.power_averages)
    sizes = parameter_sizes(model)
    states = state_bytes(sizes, zero_stage, precision, job.num_gpus, num_averages)
    kernels = Kernels.of(precision, on_gpu=True)
    saved = activations(
        model, job.micro_batch, job.num_tokens, job.max_text_tokens, job.training.gamma, kernels
    )
    peak = round(saved.peak * (1 + plan.allocator_share))
    encoder = round(plan.text_encoder_parameters * kernels.element) if job.has_text else 0
    teacher = teacher_bytes(sum(sizes), job.training)
    reserve = round(plan.reserve_gib * GIB)
    total = states.peak(peak) + encoder + teacher + reserve
    return Memory(
        zero_stage=zero_stage,
        gradient_checkpointing=gradient_checkpointing,
        weights=states.weights,
        optimizer=states.optimizer,
        averages=states.averages,
        gradients=states.gradients,
        bucket=states.bucket + states.live,
        activations=peak,
        text_encoder=encoder,
        teacher=teacher,
        reserve=reserve,
        total=total,
        fits=total <= GPUS[plan.gpu].memory_gib * GIB,
    )


@dataclass(frozen=True)
class Time:
    """Of one step, and of a stage.

    Attributes:
        tflops: executed by a GPU in a step, without what checkpointing computes again.
        traffic: bytes that a GPU sends in a step.
        exposed: seconds of communication that no computation hides.
    """

    zero_stage: int
    gradient_checkpointing: bool
    tflops: float
    compute: float
    traffic: float
    exposed: float
    seconds: float
    images_per_second: float
    days: float
    gpu_hours: float
    cost: float


def time(job: Job, zero_stage: ZeroStage, gradient_checkpointing: bool) -> Time:
    """How long a step and the stage take."""
    plan, training = job.plan, job.training
    images = training.global_batch // job.num_gpus
    arguments = job.model, job.num_tokens, job.text_tokens
    flops = sample_flops(partial(training_flops, *arguments), training.gamma, *job.forwards_beside)
    flops += encoder_flops(job)
    again = 2 * forward_macs(*arguments, training.gamma) if gradient_checkpointing else 0
    peak = GPUS[plan.gpu].peak_tflops * 1e12
    compute = images * (flops + again) / (peak * plan.mfu)
    sent = traffic(job, zero_stage)
    is_one_node = job.num_gpus <= plan.gpus_per_node
    bandwidth = plan.intra_node_gb_s if is_one_node else plan.inter_node_gb_s
    exposed = sent / (bandwidth * 1e9) * plan.exposed[zero_stage - 1]
    seconds = compute + exposed
    gpu_hours = job.num_gpus * training.steps * seconds / 3600
    return Time(
        zero_stage=zero_stage,
        gradient_checkpointing=gradient_checkpointing,
        tflops=images * flops / 1e12,
        compute=compute,
        traffic=sent,
        exposed=exposed,
        seconds=seconds,
        images_per_second=training.global_batch / seconds,
        days=training.steps * seconds / 86400,
        gpu_hours=gpu_hours,
        cost=gpu_hours * plan.price_per_gpu_hour,
    )


def encoder_flops(job: Job) -> float:
    """Of the frozen text encoder for one sample: forward passes, without attention products.

    For its caption, and where a teacher is asked about references for as many captions more (fewer
    where samples share them).
    """
    if not job.has_text:
        return 0.0
    plan, objective = job.plan, job.training.objective
    used = plan.text_encoder_parameters - plan.text_encoder_embeddings
    num_captions = 1.0
    if isinstance(objective, ModelGuidanceConfig):
        num_captions += objective.num_references * job.forwards_beside[1]
    return num_captions * 2 * used * (plan.prefix_tokens + job.text_tokens)


def traffic(job: Job, zero_stage: ZeroStage) -> float:
    """Bytes that a GPU sends in a step, by ring algorithms.

    ZeRO 1 in bf16 reduces gradients once a step, the others in each micro-batch. DeepSpeed's ZeRO 1
    and 2 all-reduce them (twice their size) and gather the weights once; ZeRO 3 gathers the weights
    for the forward and for the backward pass, and scatters gradients (once their size). A teacher's
    fp32 weights come from all GPUs: by an all-reduce in ZeRO 1 and 2, gathered in ZeRO 3.
    """
    element = HALF if job.training.precision == "bf16" else FP32
    num_parameters, objective = sum(parameter_sizes(job.model)), job.training.objective
    weights, teacher = num_parameters * element, 0.0
    if isinstance(objective, ModelGuidanceConfig):
        times = (1 if zero_stage == 3 else 2) * job.forwards_beside[1] / objective.teacher_every
        teacher = times * num_parameters * FP32
    if zero_stage == 3:
        volume = 3 * job.accumulation
    elif zero_stage == 1 and job.training.precision == "bf16":
        volume = 2 + 1
    else:
        volume = 2 * job.accumulation + 1
    return (volume * weights + teacher) * (job.num_gpus - 1) / job.num_gpus


def storage_bytes(job: Job) -> dict[str, int]:
    """Of the data, in tars: pictures, captions, latents with captions; or with labels alone."""
    plan, side = job.plan, job.resolution // LATENT_DOWNSAMPLE
    latent = (2 * job.model.in_channels * side**2 * HALF + TAR_PART) * (2 if job.is_mirrored else 1)
    captions = plan.captions_bytes + TAR_PART
    sizes = {"images": plan.image_bytes + 2 * TAR_PART}
    if job.has_text:
        sizes |= {"captions": captions, "latents": latent + captions}
    else:
        sizes |= {"latents": latent + LABEL_PART}
    return {name: size * plan.num_images for name, size in sizes.items()}
