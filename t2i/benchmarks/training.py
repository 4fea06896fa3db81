"""Cases of `train`: whole optimizer steps of one engine, dense and routed in turn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from t2i.batch import TrainingBatch
from t2i.benchmarks.benchmark_config import LATENT_DOWNSAMPLE, BenchmarkConfig
from t2i.benchmarks.rows import Case
from t2i.encoders.text import TextStates, load_text_encoder
from t2i.encoders.text_config import TextEncoderConfig
from t2i.models.costs.macs import training_flops
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.averages.ema import EMA, decay_at
from t2i.training.backbone import text_backbone
from t2i.training.engine import Engine
from t2i.training.objectives.config import FlowMatchingConfig
from t2i.training.objectives.flow_matching import FlowMatching
from t2i.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORD = "circle "  # at least one token


@dataclass(frozen=True)
class TrainingSubject:
    """One engine with its EMA, and the micro-batch that every step of every row is made of."""

    engine: Engine
    ema: EMA
    config: TrainingConfig
    model: TRDiTConfig
    batch: TrainingBatch
    encode: Callable[[Sequence[str]], TextStates]
    accumulation: int

    def step(self, gamma: float) -> None:
        """Forward and backward of all micro-batches, clipping, AdamW, EMA: as the trainer does."""
        objective = FlowMatching(
            self.config.seed,
            gamma,
            self.config.timestep,
            self.model.patch_size,
            num_draws=self.model.num_draws,
        )
        for _ in range(self.accumulation):
            condition = self.encode(self.batch.captions)
            losses = objective.training_loss(self.engine.network, self.batch, condition)
            self.engine.backward(losses.loss_B.mean())
            self.engine.step(self.config.learning_rate)
        assert self.engine.was_applied, "a gradient of the benchmark was not finite"
        self.ema.update()


def make_subject(
    model_config: TRDiTConfig,
    training: TrainingConfig,
    text: TextEncoderConfig,
    settings: BenchmarkConfig,
    device: torch.device,
) -> TrainingSubject:
    """Model with random weights under DeepSpeed, random latents; on every process of the group.

    Raises:
        ValueError: an objective other than flow matching with fixed draws, or another device than
            the engine's.
    """
    if not isinstance(training.objective, FlowMatchingConfig):
        raise ValueError(
            f"t2i.training.objective {training.objective.name}: `train` measures flow_matching; "
            "add --set t2i.training.objective='{name: flow_matching}'"
        )
    if model_config.scale_input or training.routing_draw != "fixed":
        raise ValueError(
            "`train` measures flow matching with fixed draws: set t2i.models.tr_dit.scale_input to "
            "false and t2i.training.routing_draw to fixed"
        )
    if torch.device(settings.device).type != device.type:
        raise ValueError(
            f"t2i.benchmark.device is {settings.device}, but training runs on {device.type} here; "
            f"add --set t2i.benchmark.device={device.type}"
        )
    world_size = torch.distributed.get_world_size()
    global_batch = training.micro_batch * settings.accumulation * world_size
    training = training.model_copy(update={"global_batch": global_batch})
    torch.manual_seed(training.seed)
    model = TRDiT(model_config)
    if settings.compile:
        model.compile_blocks()
    batch = random_batch(model_config, training.micro_batch, settings, device)
    encode = make_encode(model_config, training, text, settings, device)
    network = text_backbone(model, encode, device).network
    engine = Engine(network, model, training, world_size)
    ema = EMA(engine.masters, partial(decay_at, limit=training.ema_decay))
    return TrainingSubject(
        engine, ema, training, model_config, batch, encode, settings.accumulation
    )


def random_batch(
    model: TRDiTConfig, size: int, settings: BenchmarkConfig, device: torch.device
) -> TrainingBatch:
    """``size`` samples of random latents; the captions matter to `encode_text` alone."""
    height, width = (side // LATENT_DOWNSAMPLE for side in settings.size)
    moments = torch.rand(size, 2 * model.in_channels, height, width, device=device).half()
    ids = torch.arange(size, device=device)
    keys = tuple(str(i) for i in range(size))
    return TrainingBatch(moments, (WORD * 4096,) * size, keys, ids, step=0)


def make_encode(
    model: TRDiTConfig,
    training: TrainingConfig,
    text: TextEncoderConfig,
    settings: BenchmarkConfig,
    device: torch.device,
) -> Callable[[Sequence[str]], TextStates]:
    """The frozen encoder, or a function that gives random states at once."""
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    if settings.encode_text:
        text = text.model_copy(update={"max_tokens": settings.text_tokens})  # cuts longer captions
        return load_text_encoder(text, device, dtype).encode
    shape = training.micro_batch, settings.text_tokens
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    states = TextStates(torch.randn(*shape, model.text_width, device=device, dtype=dtype), mask)
    return lambda captions: states


def train_cases(subject: TrainingSubject, settings: BenchmarkConfig) -> list[Case]:
    """A training step at each sparsity; FLOPs and images are those of this process."""
    states = subject.encode(subject.batch.captions).states
    height, width = subject.batch.moments.shape[-2:]
    num_tokens = height * width // subject.model.patch_size**2
    images = len(subject.batch.captions) * subject.accumulation
    cases = []
    for gamma in settings.train_gammas:
        flops = images * training_flops(subject.model, num_tokens, states.shape[1], gamma)
        name = "dense" if gamma == 0 else f"gamma {gamma:g}"
        cases.append(Case(name, partial(subject.step, gamma), images, flops))
    return cases
