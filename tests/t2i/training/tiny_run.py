"""A tiny training run on synthetic batches, started by the tests under the deepspeed launcher.

    deepspeed --num_gpus 2 tests/t2i/training/tiny_run.py FOLDER NAME:STEPS:STOP_AT:ZERO:PRECISION...

Each plan trains the run FOLDER/NAME until STEPS, or until the last rank sends itself SIGTERM in
the step before STOP_AT (0 = never).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from t2i.batch import TrainingBatch
from t2i.encoders.text import TextStates
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.backbone import text_backbone
from t2i.training.engine import start_processes, stop_processes
from t2i.training.run import Run, Start, find_checkpoint, resume
from t2i.training.trainer import train
from t2i.training.training_config import TrainingConfig

MODEL = TRDiTConfig(
    num_layers=3,
    width=16,
    num_heads=2,
    text_width=8,
    num_refiner_layers=1,
    adaln_rank=4,
    routes=((1, 1),),
)
GLOBAL_BATCH = 8


def encode(captions: Sequence[str]) -> TextStates:
    """States that depend on the caption alone."""
    states = torch.stack([torch.full((4, 8), (len(caption) % 7) / 7) for caption in captions])
    return TextStates(states, torch.ones(len(captions), 4, dtype=torch.bool))


def micro_batch(step: int, first: int, size: int) -> TrainingBatch:
    """Samples first..first+size-1 of a step's global batch."""
    ids = torch.arange(first, first + size) + step * GLOBAL_BATCH
    moments = torch.sin(ids[:, None, None, None] + torch.arange(8 * 64).reshape(8, 8, 8)).half()
    captions = tuple("a" * int(i) for i in ids)
    return TrainingBatch(moments, captions, tuple(str(int(i)) for i in ids), ids, step)


def make_batches(
    rank: int, world_size: int, size: int, stop_at: int = 0
) -> Callable[[int], Iterator[TrainingBatch]]:
    def from_step(step: int) -> Iterator[TrainingBatch]:
        while True:
            if stop_at and step == stop_at - 1 and rank == world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            share = GLOBAL_BATCH // world_size
            for first in range(rank * share, (rank + 1) * share, size):
                yield micro_batch(step, first, size)
            step += 1

    return from_step


def make_run(
    folder: Path, steps: int, stop_at: int, zero_stage: int, precision: str, size: int = 2
) -> Run:
    """A run of this process group; goes on when ``folder`` has a checkpoint."""
    torch.manual_seed(0)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    saved = find_checkpoint(folder)
    return Run(
        name=folder.name,
        folder=folder,
        config=TrainingConfig.model_validate(
            {
                "steps": steps,
                "learning_rate": 1e-2,
                "warmup_steps": 3,
                "global_batch": GLOBAL_BATCH,
                "micro_batch": size,
                "zero_stage": zero_stage,
                "precision": precision,
                "checkpoint_every": 100,
                "validate_every": 100,
                "log_every": 1,
            }
        ),
        backbone=text_backbone(TRDiT(MODEL), encode, torch.device("cpu")),
        batches=make_batches(rank, world_size, size, stop_at),
        validation=[micro_batch(1000, 2 * rank, 2)],
        start=resume(saved) if saved else Start(source="random weights"),
        settings="",
        device=torch.device("cpu"),
    )


if __name__ == "__main__":
    start_processes(timeout_minutes=1)
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    for plan in arguments[1:]:
        name, steps, stop_at, zero_stage, precision = plan.split(":")
        run = make_run(
            Path(arguments[0]) / name, int(steps), int(stop_at), int(zero_stage), precision
        )
        finished = train(run)
        assert finished == (stop_at == "0"), f"{plan}: finished is {finished}"
    stop_processes()
