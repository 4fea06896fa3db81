"""Train a diffusion transformer on latents and captions or classes, in two stages.

    deepspeed launch/train_t2i.py --stage 1                     nano, on this machine
    deepspeed launch/train_t2i.py --stage 2                     goes on from stage 1's weights
    deepspeed --num_gpus 8 launch/train_t2i.py --stage 1 --config configs/tr_dit_2b5.yaml
    deepspeed launch/train_t2i.py --stage 1 --check             only look at machines and settings
    torchrun --nproc-per-node 2 launch/train_t2i.py --stage 1   without the deepspeed launcher
    python launch/train_t2i.py --stage 1 --set launch.train.stage1.training.steps=100
    deepspeed --num_gpus 8 launch/train_t2i.py --stage 1 --config configs/imagenet_sit_xl2_mg.yaml
    deepspeed launch/train_t2i.py --stage 1 --profile 10:12     trace of two steps, in <run>/profile
    python launch/train_t2i.py --stage 1 --from-step 100        go back: the next start goes on there

launch.train.model chooses the backbone, t2i.training.objective what it is trained on.
The same command goes on from the newest whole checkpoint; of a finished run it says so and exits
with 0. SIGTERM to the processes saves a checkpoint and exits with 75. A process that hangs for
t2i.training.timeout_minutes is named, and the run ends with 70. Settings that have changed since the
checkpoint are said; another order of the data is refused (launch.train.changed_data). With

    --set launch.train.upload.address=s3://bucket/prefix

checkpoints are also copied there while training goes on, and the same command on another machine
goes on from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.loading.loader_config import LoaderConfig
from data_pipeline.storage.interface import StorageConfig
from launch.backbones import (
    BackboneSections,
    build_backbone,
    build_text_encoder,
    check_fits,
    count_parameters,
    num_reference_captions,
)
from launch.config import StageConfig, stage_section
from launch.environment import check_environment, check_own_devices
from launch.resuming import (
    changes_since,
    describe_changes,
    go_back_together,
    set_aside_snapshots,
)
from launch.samples import build_samples, check_samples, check_swaps
from launch.uploads import RemoteCheckpoints, uploading
from t2i.config import (
    ConfigError,
    add_config_arguments,
    config_from_args,
    describe_config,
    dump_config,
    section,
)
from t2i.console import command_parser, run_command
from t2i.encoders.vae_config import VAEConfig
from t2i.training.monitoring.profiling import ProfileSteps, parse_profile_steps
from t2i.training.training_config import TrainingConfig, largest_divisor

if TYPE_CHECKING:
    import torch

    from t2i.batch import TrainingBatch
    from t2i.training.run import Run, Start

EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command goes on


class Config(BackboneSections):
    """What training reads."""

    training: TrainingConfig = section("t2i.training")
    loader: LoaderConfig = section("data_pipeline.loader")
    storage: StorageConfig = section("data_pipeline.storage")
    vae: VAEConfig = section("t2i.encoders.vae")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("deepspeed launch/train_t2i.py", __doc__)
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True, help="which stage")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--check",
        action="store_true",
        help="check machines, folder, disk and data as every start does; exit with 0 or 2",
    )
    instead.add_argument(
        "--from-step",
        type=int,
        metavar="N",
        help="do not train, but set aside what the stage saved after step N (checkpoints, copies of "
        "them, snapshots; nothing is deleted), so that every later start goes on from step N",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed adds it
    parser.add_argument(
        "--profile",
        metavar="START:STOP",
        help="trace the steps after START until STOP on rank 0 (torch.profiler; default: none)",
    )
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train one stage to its end; returns the exit code."""
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    profile = parse_profile_steps(args.profile) if args.profile else None
    stage = config.launch.stage(args.stage)
    key = f"launch.train.stage{args.stage}"
    training = stage_section(config.training, stage.training, f"{key}.training")
    loader = stage_section(config.loader, stage.loader, f"{key}.loader")
    check_fits(config, training, loader)
    check_samples(config, training)
    check_swaps(config.launch)
    if config.launch.upload is not None:
        config.launch.upload.check_fits(training.timeout_minutes)

    from t2i.training.engine import start_processes, stop_processes

    check_own_devices()
    device = start_processes(training.timeout_minutes)
    try:
        _say(describe_config(args))
        if args.from_step is not None:
            return go_back(args.stage, stage, args.from_step, config)
        checked = check_environment(
            settings=stage_settings(args.stage, training, loader, config),
            folder=Path(stage.folder),
            num_parameters=count_parameters(config),
            training=training,
            loader=loader,
            storage=config.storage,
            launch=config.launch,
        )
        for warning in checked.warnings:
            _say(f"warning: {warning}")
        if args.check:
            _say(f"stage {args.stage} can start in {stage.folder}")
            return 0
        return train_stage(
            args.stage, stage, training, loader, config, device, profile, checked.data
        )
    finally:
        stop_processes()


def go_back(number: int, stage: StageConfig, step: int, config: Config) -> int:
    """Set aside what a stage saved after a step; returns the exit code."""
    upload = config.launch.upload
    copies = RemoteCheckpoints(upload, number, config.storage) if upload is not None else None
    for path in go_back_together(Path(stage.folder), step, copies):
        _say(f"set aside: {path}")
    _say(f"stage {number} goes on from step {step}: start it without --from-step")
    return 0


def stage_settings(
    number: int, training: TrainingConfig, loader: LoaderConfig, config: Config
) -> str:
    """YAML of what a stage really runs with: the number, and the config with its differences."""
    merged = config.model_copy(update={"training": training, "loader": loader})
    return f"stage: {number}\n{dump_config(merged)}"


def train_stage(
    number: int,
    stage: StageConfig,
    training: TrainingConfig,
    loader: LoaderConfig,
    config: Config,
    device: torch.device,
    profile: ProfileSteps | None = None,
    data: Sequence[str] = (),
) -> int:
    """Build the run and train, on every process; returns the exit code. ``data``: as of `Run`."""
    from torch import distributed

    from t2i.training.run import find_checkpoint, resume
    from t2i.training.trainer import train

    wanted, training = training, training.fitted(distributed.get_world_size())
    if training.micro_batch < wanted.micro_batch:
        _say(
            f"micro-batches of {training.micro_batch} samples: t2i.training.micro_batch "
            f"{wanted.micro_batch} does not divide a process's share of {training.global_batch}"
        )
    upload, folder = config.launch.upload, Path(stage.folder)
    copies = None
    if upload is not None:
        copies = RemoteCheckpoints(upload, number, config.storage, training.keep_at)
    saved = find_checkpoint(folder, copies.fetch_newer if copies is not None else None)
    with uploading(copies, folder, saved) if copies is not None else nullcontext() as on_checkpoint:
        if saved is not None and saved.state.step >= training.steps:
            _say(f"stage {number} is finished: {saved.path}")
            return 0
        if saved is not None:
            changes = changes_since(saved, stage_settings(number, training, loader, config), data)
            for line in describe_changes(saved, changes, number, config.launch.changed_data):
                _say(line)
            start = resume(saved, training.power_averages)
        else:
            start = fresh_start(number, stage, copies_to_start_from(config, stage))
        for path in set_aside_snapshots(folder, start.step):
            _say(f"set aside, of a branch of the run that was left: {path}")
        run = build_run(number, stage, training, loader, config, start, device)
        if train(replace(run, on_checkpoint=on_checkpoint, profile=profile, data=data)):
            _say(f"stage {number} is finished: checkpoints and metrics.jsonl in {stage.folder}")
            return 0
        _say(f"stage {number} was stopped by SIGTERM and has saved; the same command goes on")
        return EXIT_STOPPED


def copies_to_start_from(config: Config, stage: StageConfig) -> RemoteCheckpoints | None:
    """The copies of stage 1, if the stage starts from its run and there are copies."""
    upload, first = config.launch.upload, config.launch.stage1.folder
    if upload is None or stage.start_from_run != first:
        return None
    return RemoteCheckpoints(upload, 1, config.storage)


def fresh_start(number: int, stage: StageConfig, copies: RemoteCheckpoints | None = None) -> Start:
    """Where a stage without a checkpoint of its own starts from; says so in one line.

    ``copies`` of the run to start from are fetched when they are newer than what is here.

    Raises:
        ConfigError: the run to start from has no checkpoint and no transformer is named instead.
    """
    from safetensors.torch import load_file

    from t2i.models.storage import WEIGHTS_NAME
    from t2i.training.run import Start, find_checkpoint, start_new_run

    if stage.start_from_run is not None:
        fetch = copies.fetch_newer if copies is not None else None
        saved = find_checkpoint(Path(stage.start_from_run), fetch)
        if saved is not None:
            optimizer = "its optimizer" if stage.start_with_optimizer else "a new optimizer"
            _say(f"stage {number} starts from weights and EMA of {saved.path}, with {optimizer}")
            return start_new_run(saved, stage.start_with_optimizer)
    if stage.start_from_transformer is not None:
        path = Path(stage.start_from_transformer) / WEIGHTS_NAME
        if path.is_file():
            _say(f"stage {number} starts from the transformer {path.parent}")
            return Start(source=str(path), weights=load_file(path))
    if stage.start_from_run is None and stage.start_from_transformer is None:
        _say(f"stage {number} starts from random weights")
        return Start(source="random weights")
    raise ConfigError(
        f"stage {number} has nothing to start from: {stage.start_from_run} has no whole "
        f"checkpoint and start_from_transformer is {stage.start_from_transformer}; run "
        f"`deepspeed launch/train_t2i.py --stage 1` first, or set "
        f"launch.train.stage{number}.start_from_transformer to a transformer folder"
    )


def build_run(
    number: int,
    stage: StageConfig,
    training: TrainingConfig,
    loader: LoaderConfig,
    config: Config,
    start: Start,
    device: torch.device,
) -> Run:
    """Backbone and data of a stage, as the trainer wants them."""
    from data_pipeline.loader import read_captions
    from t2i.encoders.text_alikeness import measure_alikeness
    from t2i.training.run import Run, lacks_scale_input, with_new_scale_input

    encoder = build_text_encoder(config, training, device)
    if encoder is not None and (alikeness := measure_alikeness(encoder)).too_alike:
        _say(f"warning: {config.text.path}: {alikeness.verdict()}")
    num_captions = num_reference_captions(config, training)
    captions: tuple[str, ...] = ()
    if num_captions:
        captions = read_captions(loader, training.seed, num_captions, config.storage)
    backbone = build_backbone(config, training, device, encoder, captions)
    if lacks_scale_input(start, backbone.model):
        _say(f"{start.source} has no scale input: a new one is added, without effect at first")
        start = with_new_scale_input(start, backbone.model)
    return Run(
        name=f"stage {number}",
        folder=Path(stage.folder),
        config=training,
        backbone=backbone,
        batches=make_batches(loader, training, config.storage, Path(stage.folder)),
        validation=make_validation(loader, training, config, Path(stage.folder)),
        start=start,
        settings=stage_settings(number, training, loader, config),
        device=device,
        samples=build_samples(
            config.launch, stage, training, config.vae, backbone.patch_size, encoder
        ),
        swapped_words=config.launch.validation_swaps or {},
    )


def make_batches(
    loader: LoaderConfig, training: TrainingConfig, storage: StorageConfig, folder: Path
) -> Callable[[int], Iterator[TrainingBatch]]:
    """This rank's micro-batches from a step on; bad shards are accounted for in ``folder``."""
    from torch import distributed

    from data_pipeline.loader import make_loader

    rank, world_size = distributed.get_rank(), distributed.get_world_size()

    def from_step(step: int) -> Iterator[TrainingBatch]:
        return iter(
            make_loader(
                loader,
                seed=training.seed,
                rank=rank,
                world_size=world_size,
                global_batch=training.global_batch,
                micro_batch=training.micro_batch,
                start_step=step,
                storage=storage,
                account=folder,
            )
        )

    return from_step


def make_validation(
    loader: LoaderConfig, training: TrainingConfig, config: Config, folder: Path
) -> list[TrainingBatch]:
    """This rank's held-out batches: the first global batch that the validation loader deals out.

    Raises:
        ValueError: validation_samples cannot be divided among the processes.
    """
    from torch import distributed

    num_samples, world_size = config.launch.validation_samples, distributed.get_world_size()
    if num_samples == 0:
        return []
    if num_samples % world_size:
        raise ValueError(
            f"launch.train.validation_samples {num_samples} cannot be divided among "
            f"{world_size} processes"
        )
    held_out = loader.model_copy(update={"part": "held_out"})
    size = largest_divisor(num_samples // world_size, training.micro_batch)
    sizes = {"global_batch": num_samples, "micro_batch": size}
    batches = make_batches(held_out, training.model_copy(update=sizes), config.storage, folder)(0)
    return list(islice(batches, num_samples // world_size // size))


def _say(line: str) -> None:
    from torch import distributed

    if distributed.get_rank() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
