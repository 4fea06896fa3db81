"""Measure the speed of the model, of guided sampling and of training, rows side by side in one run.

    python -m t2i.benchmark forward                                   sparsities, nano
    python -m t2i.benchmark sample --config configs/benchmark_cpu.yaml
    python -m t2i.benchmark sample --set t2i.benchmark.guidance='[cfg, sg, apg]'
    python -m t2i.benchmark grid --config configs/tr_dit_2b5.yaml --set t2i.benchmark.device=cuda
    python -m t2i.benchmark train --config configs/benchmark_cpu.yaml
    torchrun --nproc-per-node 8 -m t2i.benchmark train --config configs/tr_dit_2b5.yaml

Measured is TR-DiT; a config that trains another model (launch.train.model) is refused.
Weights and inputs are random: they do not change the time. Rows take turns, so that a change of
the machine's speed meets all of them, and each is given by its median. Beside the time stands what
the arithmetic says: FLOPs of the matrix products that are executed, as a ratio to the first row.
`train` takes whole steps (forward, backward, clipping, AdamW, EMA) of the engine that training
uses, with the settings of t2i.training; figures are those of one process. MFU is the share of the
device's peak that these FLOPs are.
Results go to <output>/<command>-<name>-<device>.json with versions and commit, and to a table
(.md); `grid` draws a heat map (.png) of images per second over both sparsities.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from t2i.benchmarks.benchmark_config import LATENT_DOWNSAMPLE, BenchmarkConfig
from t2i.config import (
    ConfigError,
    Section,
    add_config_arguments,
    config_from_args,
    describe_config,
    section,
)
from t2i.console import command_parser, get_logger, run_command
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae_config import VAEConfig
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.models.trained_family import TrainedFamily
from t2i.training.training_config import TrainingConfig

LOG = get_logger("benchmark")


class Config(Section):
    """What this command reads."""

    benchmark: BenchmarkConfig = section("t2i.benchmark")
    model: TRDiTConfig = section("t2i.models.tr_dit")
    vae: VAEConfig = section("t2i.encoders.vae")
    text: TextEncoderConfig = section("t2i.encoders.text")
    training: TrainingConfig = section("t2i.training")
    launch: TrainedFamily = section("launch.train")

    def check_fits(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ConfigError: another model than TR-DiT, a size that is not one of whole patches, or
                longer captions than the text encoder reads.
        """
        if self.launch.model != "tr_dit":
            raise ConfigError(
                f"launch.train.model is {self.launch.model}, but TR-DiT alone is measured: "
                "--set launch.train.model=tr_dit takes the config's t2i.models.tr_dit"
            )
        multiple = LATENT_DOWNSAMPLE * self.model.patch_size
        if any(side < 1 or side % multiple for side in self.benchmark.size):
            raise ConfigError(
                f"t2i.benchmark.size {list(self.benchmark.size)}: both sides must be multiples "
                f"of {multiple}"
            )
        if self.benchmark.text_tokens > self.text.max_tokens:
            raise ConfigError(
                f"t2i.benchmark.text_tokens {self.benchmark.text_tokens} is more than "
                f"t2i.encoders.text.max_tokens {self.text.max_tokens}: no caption is as long; lower "
                "the one or raise the other"
            )


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_parser("python -m t2i.benchmark", __doc__)
    parser.add_argument(
        "what",
        choices=("forward", "sample", "grid", "train"),
        help="forward: one pass per sparsity; sample: guided steps; grid: SG over both "
        "sparsities; train: optimizer steps per sparsity",
    )
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    config.check_fits()
    LOG.info(describe_config(args))
    return run_train(config) if args.what == "train" else run_inference(args.what, config)


def run_inference(what: str, config: Config) -> int:
    """`forward`, `sample` or `grid`."""
    import torch

    from t2i.benchmarks.inference import (
        Subject,
        draw_grid,
        forward_cases,
        grid_cases,
        sample_cases,
        with_decoding,
    )
    from t2i.benchmarks.rows import measure, peak_tflops, write
    from t2i.environment import describe_environment

    settings = config.benchmark
    subject = Subject(config.model, config.vae, settings)
    build = {"forward": forward_cases, "sample": sample_cases, "grid": grid_cases}[what]
    with torch.inference_mode():
        peak = peak_tflops(settings, in_bf16=settings.dtype == "bfloat16")
        rows = measure(build(subject), settings, what, peak)
    if what == "sample" and settings.decode:
        rows = with_decoding(rows)
    batch = f"batch {settings.batch_size}, {settings.text_tokens} text tokens, {settings.dtype}"
    result = {
        "what": what,
        "batch": batch,
        **describe_environment(settings.device),
        "settings": dump(config),
    }
    stem = write(rows, result, settings)
    if what == "grid":
        draw_grid(rows, settings.grid, stem.with_suffix(".png"))
    LOG.info("%s", stem.with_suffix(".json"))
    return 0


def run_train(config: Config) -> int:
    """`train`, on every process of the launcher."""
    import torch

    from t2i.benchmarks.rows import measure, peak_tflops, write
    from t2i.benchmarks.training import make_subject, train_cases
    from t2i.environment import describe_environment
    from t2i.training.engine import start_processes, stop_processes

    settings, training = config.benchmark, config.training
    device = start_processes(training.timeout_minutes)
    try:
        subject = make_subject(config.model, training, config.text, settings, device)
        cases = train_cases(subject, settings)
        rows = measure(
            cases, settings, "train", peak_tflops(settings, training.precision == "bf16")
        )
        if torch.distributed.get_rank() == 0:
            result = {
                "what": "train",
                "batch": describe_batch(config),
                **describe_environment(settings.device),
            }
            stem = write(rows, {**result, "settings": dump(config)}, settings)
            LOG.info("%s", stem.with_suffix(".json"))
        subject.engine.close()
    finally:
        stop_processes()
    return 0


def describe_batch(config: Config) -> str:
    """What a training step is made of, in words."""
    import torch

    settings, training = config.benchmark, config.training
    text = f"{settings.text_tokens} text tokens, random states"
    if settings.encode_text:
        text = f"{settings.text_tokens} text tokens, encoded in each step"
    memory = ", gradient checkpointing" if config.model.gradient_checkpointing else ""
    compiled = ", compiled blocks" if settings.compile else ""
    return (
        f"{torch.distributed.get_world_size()} process(es) x {settings.accumulation} x "
        f"{training.micro_batch} samples, {text}, {training.precision}, "
        f"ZeRO {training.zero_stage}{memory}{compiled}"
    )


def dump(config: Config) -> dict[str, Any]:
    """The settings that made the figures, for the .json."""
    model, training = config.model.model_dump(), config.training.model_dump(mode="json")
    return {**config.benchmark.model_dump(mode="json"), "model": model, "training": training}


if __name__ == "__main__":
    raise SystemExit(run_command(main))
