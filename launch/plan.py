"""Plan a training run before it is paid for: memory, days, cost, storage, by arithmetic alone.

    python -m launch.plan --gpus 64 --config configs/tr_dit_2b5.yaml
    python -m launch.plan --gpus 256 --config configs/tr_dit_2b5.yaml --gpu h100 --json plan.json
    python -m launch.plan --gpus 64 --config configs/tr_dit_2b5.yaml --set launch.plan.mfu=0.3
    python -m launch.plan --gpus 8 --config configs/imagenet_sit_xl2_mg.yaml --gpu h100

For ZeRO 1, 2 and 3, with and without gradient checkpointing: what one GPU has to hold in a step,
and how long a step and each of launch.plan.stages take. The sizes come from the config, the machines from its
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
from data_pipeline.loading.loader_config import LoaderConfig
from launch.backbones import BackboneSections, check_fits
from launch.config import stage_section
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
from t2i.config import ConfigError, add_config_arguments, config_from_args, section
from t2i.console import command_parser, run_command
from t2i.hardware import GPUS
from t2i.models.costs.parameters import parameter_sizes
from t2i.training.memory import checkpoint_bytes, snapshots_bytes
from t2i.training.training_config import TrainingConfig

NAMES = {"tr_dit": "TR-DiT", "sit": "SiT", "mask_dit": "MaskDiT"}
# what of Memory is printed, and its title; nets that a run does not have are left out
COLUMNS = {
    "weights": "weights",
    "optimizer": "optimizer",
    "averages": "averages",
    "gradients": "gradients",
    "bucket": "buckets",
    "activations": "activations",
    "text_encoder": "encoder",
    "teacher": "teacher",
    "reserve": "reserve",
    "total": "peak",
}
OTHER_NETS = ("text_encoder", "teacher")


class Config(BackboneSections):
    """What this command reads."""

    plan: PlanConfig = section("launch.plan")
    training: TrainingConfig = section("t2i.training")
    loader: LoaderConfig = section("data_pipeline.loader")
    latents: LatentsConfig = section("data_pipeline.latents")


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_parser("python -m launch.plan", __doc__)
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
    print("\n".join(describe(jobs, NAMES[config.launch.model])))
    if args.json is not None:
        args.json.write_text(json.dumps(figures(jobs), indent=1) + "\n")
    return 0


def make_jobs(config: Config, plan: PlanConfig, num_gpus: int) -> list[Job]:
    """The stages that are planned.

    Raises:
        ConfigError: sizes that do not divide, or settings that training refuses.
    """
    if num_gpus < 1:
        raise ConfigError(f"--gpus {num_gpus}: at least one GPU is needed")
    resolutions = plan.resolutions or (config.latents.resolution,) * len(plan.stages)
    model = config.chosen_model
    max_text_tokens = config.text.max_tokens if config.launch.model == "tr_dit" else 0
    jobs = []
    for number, resolution in zip(plan.stages, resolutions, strict=True):
        stage, key = config.launch.stage(number), f"launch.train.stage{number}"
        training = stage_section(config.training, stage.training, f"{key}.training")
        check_fits(config, training, stage_section(config.loader, stage.loader, f"{key}.loader"))
        name = f"stage {number}"
        sizes = (num_gpus, resolution, max_text_tokens)
        jobs.append(make_job(name, model, training, plan, *sizes, config.latents.mirrored))
    return jobs


def describe(jobs: Sequence[Job], model_name: str) -> list[str]:
    """The lines that are printed."""
    plan, model = jobs[0].plan, jobs[0].model
    gpu, billions = GPUS[plan.gpu], sum(parameter_sizes(model)) / 1e9
    lines = [
        f"PLAN, not measured: {model_name} of {billions:.2f} B parameters on {jobs[0].num_gpus} x "
        f"{plan.gpu.upper()} ({gpu.memory_gib:g} GiB, {gpu.peak_tflops:g} TFLOP/s in bf16)"
    ]
    for job in jobs:
        lines += ["", *describe_job(job)]
    lines += ["", *map(describe_saving, jobs)]
    lines += ["", f"Data of {plan.num_images / 1e6:.4g} M samples (GB)"]
    for resolution, job in sorted({job.resolution: job for job in jobs}.items()):
        sizes = storage_bytes(job)
        cells = ", ".join(f"{name} {size / 1e9:,.0f}" for name, size in sizes.items())
        lines.append(f"  {resolution}x{resolution}: {cells}")
    return [*lines, "", *describe_assumptions(jobs)]


def describe_job(job: Job) -> list[str]:
    """Memory and time of one stage."""
    training = job.training
    lines = [
        f"{job.name}: {training.steps:,} steps x {training.global_batch:,} images of "
        f"{job.resolution}x{job.resolution} ({training.steps * training.global_batch / 1e6:,.0f} M"
        f" samples), {training.objective.name}, gamma {training.gamma:g}, {training.precision}",
        f"micro-batch {job.micro_batch} x accumulation {job.accumulation} x {job.num_gpus} GPUs"
        + (
            ""
            if job.micro_batch == training.micro_batch
            else f" (t2i.training.micro_batch {training.micro_batch} does not divide)"
        ),
        *describe_forwards(job),
        "",
        *memory_lines([memory(job, *row) for row in job.rows]),
        "",
        "time           TFLOP/GPU  compute s  sent GB  exposed s  step s  images/s    days"
        "  GPU-hours        cost",
    ]
    return [*lines, *(time_line(time(job, *row)) for row in job.rows)]


def describe_forwards(job: Job) -> list[str]:
    """One line on what an objective computes beside training, if it does."""
    gammas, share = job.forwards_beside
    if not gammas or share == 0:
        return []
    passes = f"{len(gammas)} forward pass{'es' if len(gammas) > 1 else ''} at gamma {gammas[0]:g}"
    return [f"{job.training.objective.name} adds {passes} in {share:.0%} of the steps"]


def describe_saving(job: Job) -> str:
    """Bytes of one stage's checkpoints and snapshots."""
    training, num_parameters = job.training, sum(parameter_sizes(job.model))
    gigabytes, kept = checkpoint_bytes(num_parameters, training) / 1e9, training.keep_checkpoints
    kept += len(training.keep_at)
    line = f"A checkpoint of {job.name}: {gigabytes:.1f} GB; {kept} kept: {kept * gigabytes:.0f} GB"
    if training.snapshot_every:
        line += f"; all snapshots: {snapshots_bytes(num_parameters, training) / 1e9:,.0f} GB"
    return line


def row_name(row: Memory | Time) -> str:
    """ZeRO stage, and whether blocks are computed again."""
    return f"ZeRO {row.zero_stage}{' + ckpt' if row.gradient_checkpointing else ''}".ljust(13)


def memory_lines(rows: Sequence[Memory]) -> list[str]:
    """The table of memory."""
    columns = {
        name: title
        for name, title in COLUMNS.items()
        if name not in OTHER_NETS or any(getattr(row, name) for row in rows)
    }
    widths = {name: max(len(title) + 2, 8) for name, title in columns.items()}
    titles = "".join(title.rjust(widths[name]) for name, title in columns.items())
    lines = ["GiB per GPU".ljust(13) + titles + "  fits"]
    for row in rows:
        cells = "".join(f"{getattr(row, name) / GIB:{widths[name]}.1f}" for name in columns)
        lines.append(row_name(row) + cells + ("   yes" if row.fits else "    NO"))
    return lines


def time_line(row: Time) -> str:
    """One line of the table of time."""
    return (
        f"{row_name(row)}{row.tflops:11.1f}{row.compute:11.2f}{row.traffic / 1e9:9.1f}"
        f"{row.exposed:11.2f}{row.seconds:8.2f}{row.images_per_second:10.0f}{row.days:8.1f}"
        f"{row.gpu_hours:11,.0f}{row.cost:12,.0f}"
    )


def describe_assumptions(jobs: Sequence[Job]) -> list[str]:
    """What the figures rest on."""
    job, plan = jobs[0], jobs[0].plan
    shares = ", ".join(f"{share:g}" for share in plan.exposed)
    lines = [
        "Assumptions (launch.plan)",
        f"  mfu {plan.mfu:g} while computing; ckpt computes every block's forward pass again",
        f"  communication at {plan.intra_node_gb_s:g} GB/s per GPU within a machine of "
        f"{plan.gpus_per_node}, else {plan.inter_node_gb_s:g}; exposed {shares} of it (ZeRO 1, 2, 3)",
        f"  {plan.price_per_gpu_hour:g} per GPU-hour; no time for loading, saving, validation, "
        "failures",
        f"  activations: eager kernels, after routing, + {plan.allocator_share:.0%} for gradients "
        "of one block and fragmentation",
        f"  reserve {plan.reserve_gib:g} GiB for CUDA, NCCL, cuBLAS",
    ]
    if job.has_text:
        lines += [
            f"  frozen text encoder of {plan.text_encoder_parameters / 1e9:g} B parameters on each "
            f"GPU, run on {plan.prefix_tokens} tokens + the caption's",
            f"  captions of {job.text_tokens} tokens, padding included; memory suffices for "
            f"{job.max_text_tokens}",
            f"  a picture has {plan.image_bytes:,} bytes, its four captions {plan.captions_bytes:,}",
        ]
    else:
        lines.append(f"  a picture has {plan.image_bytes:,} bytes; labels, no captions")
    if any(len(job.rows) < 2 * len(ZERO_STAGES) for job in jobs):
        lines.append("  without the ZeRO stages that t2i.training refuses for this run")
    if len(jobs) == 1:
        lines.append(f"  {job.name} alone (launch.plan.stages)")
    return lines


def figures(jobs: Sequence[Job]) -> dict[str, Any]:
    """The same in bytes and seconds."""
    num_parameters = sum(parameter_sizes(jobs[0].model))
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
                "memory": [asdict(memory(job, *row)) for row in job.rows],
                "time": [asdict(time(job, *row)) for row in job.rows],
                "storage": storage_bytes(job),
                "checkpoint_bytes": checkpoint_bytes(num_parameters, job.training),
                "snapshots_bytes": snapshots_bytes(num_parameters, job.training),
            }
            for job in jobs
        ],
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
