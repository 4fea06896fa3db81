"""Plan a training run before it is paid for: memory, days, cost, storage, by arithmetic alone.

    python -m launch.plan --gpus 64 --config configs/tr_dit_2b5.yaml
    python -m launch.plan --gpus 256 --config configs/tr_dit_2b5.yaml --gpu h100 --json plan.json
    python -m launch.plan --gpus 64 --config configs/tr_dit_2b5.yaml --set launch.plan.mfu=0.3

For ZeRO 1, 2 and 3, with and without gradient checkpointing: what one GPU has to hold in a step,
and how long a step and both stages take. The sizes come from the config, the machines from its
section launch.plan; every assumption is printed. Nothing is measured, so no GPU is needed. How far
the formulas have been checked: docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.latents import LatentsConfig
from launch.config import LaunchConfig, stage_section
from launch.plan_config import PlanConfig
from launch.plan_model import (
    GIB,
    ZERO_STAGES,
    Job,
    Memory,
    Time,
    make_job,
    memory,
    storage_bytes,
    time,
)
from t2i.config import ConfigError, Section, add_config_arguments, config_from_args, section
from t2i.console import run_command
from t2i.encoders.text_config import TextEncoderConfig
from t2i.hardware import GPUS
from t2i.models.macs import parameter_sizes
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.memory import checkpoint_bytes, snapshots_bytes
from t2i.training.training_config import TrainingConfig

# ZeRO stage and gradient checkpointing of each row
ROWS = [(zero, checkpointing) for checkpointing in (False, True) for zero in ZERO_STAGES]


class Config(Section):
    """What this command reads."""

    plan: PlanConfig = section("launch.plan")
    launch: LaunchConfig = section("launch.train")
    training: TrainingConfig = section("t2i.training")
    model: TRDiTConfig = section("t2i.models.tr_dit")
    text: TextEncoderConfig = section("t2i.encoders.text")
    latents: LatentsConfig = section("data_pipeline.latents")


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpus", type=int, required=True, help="how many")
    parser.add_argument("--gpu", choices=tuple(GPUS), help="which, instead of launch.plan.gpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan."""
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    plan = config.plan if args.gpu is None else config.plan.model_copy(update={"gpu": args.gpu})
    jobs = make_jobs(config, plan, args.gpus)
    print("\n".join(describe(jobs, config.model)))
    if args.json is not None:
        args.json.write_text(json.dumps(figures(jobs, config.model), indent=1) + "\n")
    return 0


def make_jobs(config: Config, plan: PlanConfig, num_gpus: int) -> list[Job]:
    """Both stages.

    Raises:
        ConfigError: a backbone without formulas, or sizes that do not divide.
    """
    if config.launch.model != "tr_dit":
        raise ConfigError(
            f"launch.train.model {config.launch.model}: a plan knows the memory of tr_dit only"
        )
    if num_gpus < 1:
        raise ConfigError(f"--gpus {num_gpus}: at least one GPU is needed")
    resolutions = plan.resolutions or (config.latents.resolution,) * 2
    jobs = []
    for stage, number, resolution in zip(
        (config.launch.stage1, config.launch.stage2), (1, 2), resolutions, strict=True
    ):
        key = f"launch.train.stage{number}.training"
        training = stage_section(config.training, stage.training, key)
        name, tokens = f"stage {number}", config.text.max_tokens
        jobs.append(make_job(name, config.model, training, plan, num_gpus, resolution, tokens))
    return jobs


def describe(jobs: Sequence[Job], model: TRDiTConfig) -> list[str]:
    """The lines that are printed."""
    plan, gpu = jobs[0].plan, GPUS[jobs[0].plan.gpu]
    billions = sum(parameter_sizes(model)) / 1e9
    lines = [
        f"PLAN, not measured: TR-DiT of {billions:.2f} B parameters on {jobs[0].num_gpus} x "
        f"{plan.gpu.upper()} ({gpu.memory_gib:g} GiB, {gpu.peak_tflops:g} TFLOP/s in bf16)"
    ]
    for job in jobs:
        lines += ["", *describe_job(job)]
    lines += ["", *map(describe_saving, jobs)]
    lines += ["", f"Data of {plan.num_images / 1e6:g} M samples (TB)"]
    for resolution in sorted({job.resolution for job in jobs}):
        sizes = storage_bytes(plan, model.in_channels, resolution)
        cells = ", ".join(f"{name} {size / 1e12:.2f}" for name, size in sizes.items())
        lines.append(f"  {resolution}x{resolution}: {cells}")
    return [*lines, "", *describe_assumptions(plan)]


def describe_job(job: Job) -> list[str]:
    """Memory and time of one stage."""
    training = job.training
    lines = [
        f"{job.name}: {training.steps:,} steps x {training.global_batch:,} images of "
        f"{job.resolution}x{job.resolution} ({training.steps * training.global_batch / 1e6:,.0f} M"
        f" samples), gamma {training.gamma:g}, {training.precision}",
        f"micro-batch {job.micro_batch} x accumulation {job.accumulation} x {job.num_gpus} GPUs"
        + (
            ""
            if job.micro_batch == training.micro_batch
            else f" (t2i.training.micro_batch {training.micro_batch} does not divide)"
        ),
        "",
        "GiB per GPU    weights  optimizer  averages  gradients  buckets  activations  encoder"
        "  reserve    peak  fits",
    ]
    lines += [memory_line(memory(job, *row)) for row in ROWS]
    lines += [
        "",
        "time           TFLOP/GPU  compute s  sent GB  exposed s  step s  images/s    days"
        "  GPU-hours        cost",
    ]
    return [*lines, *(time_line(time(job, *row)) for row in ROWS)]


def describe_saving(job: Job) -> str:
    """Bytes of one stage's checkpoints and snapshots."""
    training, num_parameters = job.training, sum(parameter_sizes(job.model))
    gigabytes, kept = checkpoint_bytes(num_parameters, training) / 1e9, training.keep_checkpoints
    line = f"A checkpoint of {job.name}: {gigabytes:.1f} GB; {kept} kept: {kept * gigabytes:.0f} GB"
    if training.snapshot_every:
        line += f"; all snapshots: {snapshots_bytes(num_parameters, training) / 1e9:,.0f} GB"
    return line


def row_name(row: Memory | Time) -> str:
    """ZeRO stage, and whether blocks are computed again."""
    return f"ZeRO {row.zero_stage}{' + ckpt' if row.gradient_checkpointing else ''}".ljust(13)


def memory_line(row: Memory) -> str:
    """One line of the table of memory."""
    widths = {"weights": 9, "optimizer": 11, "averages": 10, "gradients": 11, "bucket": 9}
    widths |= {"activations": 13, "text_encoder": 9, "reserve": 9, "total": 8}
    cells = [f"{getattr(row, name) / GIB:{width}.1f}" for name, width in widths.items()]
    return row_name(row) + "".join(cells) + ("   yes" if row.fits else "    NO")


def time_line(row: Time) -> str:
    """One line of the table of time."""
    return (
        f"{row_name(row)}{row.tflops:11.1f}{row.compute:11.2f}{row.traffic / 1e9:9.1f}"
        f"{row.exposed:11.2f}{row.seconds:8.2f}{row.images_per_second:10.0f}{row.days:8.1f}"
        f"{row.gpu_hours:11,.0f}{row.cost:12,.0f}"
    )


def describe_assumptions(plan: PlanConfig) -> list[str]:
    """What the figures rest on."""
    shares = ", ".join(f"{share:g}" for share in plan.exposed)
    return [
        "Assumptions (launch.plan)",
        f"  mfu {plan.mfu:g} while computing; ckpt computes every block's forward pass again",
        f"  communication at {plan.intra_node_gb_s:g} GB/s per GPU within a machine of "
        f"{plan.gpus_per_node}, else {plan.inter_node_gb_s:g}; exposed {shares} of it (ZeRO 1, 2, 3)",
        f"  {plan.price_per_gpu_hour:g} per GPU-hour; no time for loading, saving, validation, "
        "failures",
        f"  activations: eager kernels, after routing, + {plan.allocator_share:.0%} for gradients "
        "of one block and fragmentation",
        f"  frozen text encoder of {plan.text_encoder_parameters / 1e9:g} B parameters on each GPU, "
        f"run on {plan.prefix_tokens} tokens + the caption's",
        f"  reserve {plan.reserve_gib:g} GiB for CUDA, NCCL, cuBLAS",
        f"  a picture has {plan.image_bytes:,} bytes, its four captions {plan.captions_bytes:,}",
    ]


def figures(jobs: Sequence[Job], model: TRDiTConfig) -> dict[str, Any]:
    """The same in bytes and seconds."""
    num_parameters = sum(parameter_sizes(model))
    return {
        "planned": True,
        "num_parameters": num_parameters,
        "num_gpus": jobs[0].num_gpus,
        "assumptions": jobs[0].plan.model_dump(mode="json"),
        "stages": [
            {
                "name": job.name,
                "micro_batch": job.micro_batch,
                "accumulation": job.accumulation,
                "resolution": job.resolution,
                "memory": [asdict(memory(job, *row)) for row in ROWS],
                "time": [asdict(time(job, *row)) for row in ROWS],
                "storage": storage_bytes(job.plan, model.in_channels, job.resolution),
                "checkpoint_bytes": checkpoint_bytes(num_parameters, job.training),
                "snapshots_bytes": snapshots_bytes(num_parameters, job.training),
            }
            for job in jobs
        ],
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
