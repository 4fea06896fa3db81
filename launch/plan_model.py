"""The arithmetic of a plan: memory, time and storage of a training run. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launch.plan_config import PlanConfig
from t2i.config import ConfigError
from t2i.hardware import GPUS
from t2i.models.activations import Kernels, activations
from t2i.models.macs import forward_macs, parameter_sizes, training_flops
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.memory import state_bytes
from t2i.training.training_config import TrainingConfig, largest_divisor

GIB = 2**30
ZERO_STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
LATENT_DOWNSAMPLE = 8
HALF = 2  # bytes of bf16, and of a latent's float16
FP32 = 4
# a tar holds a header of 512 bytes for each part and fills parts up to 512 bytes: 768 on average
TAR_PART = 768


@dataclass(frozen=True)
class Job:
    """One stage of training on a number of GPUs.

    Attributes:
        name: of the stage.
        training: its settings.
        resolution: side of its images in pixels.
        text_tokens: of a caption, padding included.
        micro_batch: the config's, or its largest divisor that fits the number of GPUs.
    """

    name: str
    model: TRDiTConfig
    training: TrainingConfig
    plan: PlanConfig
    num_gpus: int
    resolution: int
    text_tokens: int
    micro_batch: int

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step and GPU."""
        return self.training.global_batch // self.num_gpus // self.micro_batch

    @property
    def num_tokens(self) -> int:
        """Image tokens before routing."""
        return (self.resolution // LATENT_DOWNSAMPLE // self.model.patch_size) ** 2


def make_job(
    name: str,
    model: TRDiTConfig,
    training: TrainingConfig,
    plan: PlanConfig,
    num_gpus: int,
    resolution: int,
    text_tokens: int,
) -> Job:
    """See `Job`.

    Raises:
        ConfigError: a global batch or a resolution that does not divide.
    """
    if num_gpus > training.global_batch or training.global_batch % num_gpus:
        raise ConfigError(
            f"t2i.training.global_batch {training.global_batch} ({name}) cannot be divided among "
            f"{num_gpus} GPUs; choose e.g. {largest_divisor(training.global_batch, num_gpus)}"
        )
    pixels = LATENT_DOWNSAMPLE * model.patch_size
    if resolution % pixels:
        raise ConfigError(f"{name}: resolution {resolution} must be a multiple of {pixels}")
    micro_batch = largest_divisor(training.global_batch // num_gpus, training.micro_batch)
    return Job(name, model, training, plan, num_gpus, resolution, text_tokens, micro_batch)


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
    reserve: int
    total: int
    fits: bool


def memory(job: Job, zero_stage: Literal[1, 2, 3], gradient_checkpointing: bool) -> Memory:
    """What a GPU holds in a step of a job."""
    plan, precision = job.plan, job.training.precision
    model = job.model.model_copy(update={"gradient_checkpointing": gradient_checkpointing})
    num_averages = len(job.training.power_averages)
    sizes = parameter_sizes(model)
    states = state_bytes(sizes, zero_stage, precision, job.num_gpus, num_averages)
    kernels = Kernels.of(precision, on_gpu=True)
    saved = activations(
        model, job.micro_batch, job.num_tokens, job.text_tokens, job.training.gamma, kernels
    )
    peak = round(saved.peak * (1 + plan.allocator_share))
    encoder = round(plan.text_encoder_parameters * kernels.element)
    reserve = round(plan.reserve_gib * GIB)
    total = states.peak(peak) + encoder + reserve
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


def time(job: Job, zero_stage: Literal[1, 2, 3], gradient_checkpointing: bool) -> Time:
    """How long a step and the stage take."""
    plan, training = job.plan, job.training
    images = training.global_batch // job.num_gpus
    arguments = job.model, job.num_tokens, job.text_tokens, training.gamma
    flops = training_flops(*arguments) + encoder_flops(job)
    again = 2 * forward_macs(*arguments) if gradient_checkpointing else 0
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
    """Of the frozen text encoder for one caption: a forward pass, without attention products."""
    plan = job.plan
    used = plan.text_encoder_parameters - plan.text_encoder_embeddings
    return 2 * used * (plan.prefix_tokens + job.text_tokens)


def traffic(job: Job, zero_stage: Literal[1, 2, 3]) -> float:
    """Bytes that a GPU sends in a step, by ring algorithms.

    ZeRO 1 in bf16 reduces gradients once a step, the others in each micro-batch. DeepSpeed's ZeRO 1
    and 2 all-reduce them (twice their size) and gather the weights once; ZeRO 3 gathers the weights
    for the forward and for the backward pass, and scatters gradients (once their size).
    """
    element = HALF if job.training.precision == "bf16" else FP32
    weights = sum(parameter_sizes(job.model)) * element
    if zero_stage == 3:
        volume = 3 * job.accumulation
    elif zero_stage == 1 and job.training.precision == "bf16":
        volume = 2 + 1
    else:
        volume = 2 * job.accumulation + 1
    return volume * weights * (job.num_gpus - 1) / job.num_gpus


def storage_bytes(plan: PlanConfig, in_channels: int, resolution: int) -> dict[str, int]:
    """Of the data: pictures, captions, latents with captions, each in tars."""
    side = resolution // LATENT_DOWNSAMPLE
    latent = 2 * in_channels * side**2 * HALF
    sizes = {
        "images": plan.image_bytes + 2 * TAR_PART,
        "captions": plan.captions_bytes + TAR_PART,
        "latents": latent + plan.captions_bytes + 2 * TAR_PART,
    }
    return {name: size * plan.num_images for name, size in sizes.items()}
