"""A tiny training run on synthetic batches, started by the tests; see `start_ranks`.

    deepspeed --num_gpus 2 tests/t2i/training/tiny_run.py FOLDER NAME:STEPS:STOP_AT:ZERO:PRECISION:KIND...

Each plan trains the run FOLDER/NAME until STEPS, or until the last rank sends itself SIGTERM in
the step before STOP_AT (0 = never). KIND, one of `KINDS`, is a model with an objective. A plan may
end with :ACCIDENT@STEP, one of `ACCIDENTS`, which befalls the last rank's first batch of that step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from t2i.batch import DROPPED, TrainingBatch
from t2i.encoders.text import TextStates
from t2i.models.mask_dit import MaskDiT
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.backbone import Backbone, label_backbone, text_backbone
from t2i.training.engine import start_processes, stop_processes
from t2i.training.run import Run, Start, find_checkpoint, resume
from t2i.training.trainer import train
from t2i.training.training_config import TrainingConfig

NUM_CLASSES = 3
TR_DIT = TRDiTConfig(
    num_layers=3,
    width=16,
    num_heads=2,
    text_width=8,
    num_refiner_layers=1,
    adaln_rank=4,
    routes=((1, 1),),
)
SIT = SiTConfig(num_layers=3, width=16, num_heads=2, num_classes=NUM_CLASSES, routes=((1, 1),))
MASK_DIT = MaskDiTConfig(
    num_layers=2,
    width=16,
    num_heads=2,
    num_classes=NUM_CLASSES,
    decoder_layers=1,
    decoder_width=8,
    decoder_heads=2,
)
GUIDED = {"name": "model_guidance", "scale": 1.5}
SCALED = {"name": "model_guidance", "scale": {"low": 1.0, "high": 2.0}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tr_dit": ("tr_dit", {"name": "flow_matching"}),
    "tr_dit-guided": ("tr_dit", GUIDED),
    "tr_dit-strong": ("tr_dit", {**GUIDED, "scale": 30.0}),  # does not learn, but shows the teacher
    "tr_dit-references": ("tr_dit", {**GUIDED, "num_references": 2}),
    "tr_dit-scaled": ("tr_dit", SCALED),
    "sit": ("sit", {"name": "flow_matching"}),
    "sit-scaled": ("sit", SCALED),
    "sit-guided": ("sit", GUIDED),
    "sit-references": ("sit", {**GUIDED, "num_references": 2}),
    "sit-auto": ("sit", {**GUIDED, "scale": {"highest": 2.0, "decay": 0.5}}),
    "tr_dit-sprint": ("tr_dit", {"name": "flow_matching"}),
    "sit-sprint": ("sit", {"name": "flow_matching"}),
    "tr_dit-internal": ("tr_dit", {"name": "internal"}),
    "sit-internal": ("sit", {"name": "internal"}),
    "mask_dit-masked": (
        "mask_dit",
        {"name": "masked", "weight": {"every": 2, "decay": 0.5}, "masked_target": "velocity"},
    ),
    "mask_dit-fixed": ("mask_dit", {"name": "masked", "weight": 0.1}),
}
# what a kind needs of its model and of training
MODEL_FIELDS: dict[str, dict[str, Any]] = {
    "tr_dit-scaled": {"scale_input": True},
    "sit-scaled": {"scale_input": True},
    "tr_dit-sprint": {"after_route": "fuse"},
    "sit-sprint": {"after_route": "fuse"},
    "tr_dit-internal": {"internal_after": 0},
    "sit-internal": {"internal_after": 0},
}
TRAINING_FIELDS = {kind: {"deep_path_dropout": 0.3} for kind in ("tr_dit-sprint", "sit-sprint")}
GLOBAL_BATCH = 8


def hang(batch: TrainingBatch) -> TrainingBatch:
    time.sleep(600)
    return batch


ACCIDENTS: dict[str, Callable[[TrainingBatch], TrainingBatch]] = {
    "nan": lambda batch: replace(batch, moments=batch.moments * float("nan")),
    "huge": lambda batch: replace(batch, moments=batch.moments * 1e4),
    "hang": hang,
}
# that accidents are seen soon, and what they leave behind
CLOSELY_WATCHED = {
    "gradient_norm_window": 3,
    "timeout_minutes": 0.1,
    "checkpoint_every": 1,
    "keep_checkpoints": 4,
    "snapshot_every": 0,
    "communication_every": 0,  # on a busy machine a trace takes as long as a hang
}


def encode(captions: Sequence[str]) -> TextStates:
    """States that depend on the caption alone, and not only in size: that is normalised away."""
    numbers = torch.tensor([float(len(caption)) for caption in captions])
    states = torch.cos(numbers.reshape(-1, 1, 1) * torch.arange(8)).expand(-1, 4, 8)
    return TextStates(states, torch.ones(len(captions), 4, dtype=torch.bool))


def micro_batch(step: int, first: int, size: int) -> TrainingBatch:
    """Samples first..first+size-1 of a step's global batch: a wave for each of three classes.

    The last sample of a global batch has lost its condition.
    """
    ids = torch.arange(first, first + size) + step * GLOBAL_BATCH
    classes = ids % NUM_CLASSES
    means = torch.sin(2 * classes[:, None, None, None] + torch.arange(4 * 64).reshape(4, 8, 8))
    moments = torch.cat([means, torch.full_like(means, 0.1)], dim=1).half()
    labels = classes.masked_fill(ids % GLOBAL_BATCH == GLOBAL_BATCH - 1, DROPPED)
    captions = tuple("a" * (int(label) + 1) for label in labels)
    return TrainingBatch(moments, captions, tuple(str(int(i)) for i in ids), ids, step, labels)


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


def with_accident(
    batches: Callable[[int], Iterator[TrainingBatch]], accident: str, at: int
) -> Callable[[int], Iterator[TrainingBatch]]:
    def from_step(step: int) -> Iterator[TrainingBatch]:
        is_due = True
        for batch in batches(step):
            happens = is_due and batch.step == at
            is_due = is_due and not happens
            yield ACCIDENTS[accident](batch) if happens else batch

    return from_step


def make_backbone(model: str, **fields: Any) -> Backbone:
    """One of the three models with the weights of seed 0, its config changed by ``fields``."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    match model:
        case "sit":
            return label_backbone(SiT(SIT.model_copy(update=fields)), device)
        case "mask_dit":
            return label_backbone(MaskDiT(MASK_DIT), device)
        case _:
            model_config = TR_DIT.model_copy(update=fields)
            return text_backbone(TRDiT(model_config), encode, device, ("a", "aa", "aaa"))


def make_run(
    folder: Path,
    steps: int,
    stop_at: int,
    zero_stage: int,
    precision: str,
    kind: str = "tr_dit",
    size: int = 2,
    **settings: Any,
) -> Run:
    """A run of this process group; goes on when ``folder`` has a checkpoint."""
    model, objective = KINDS[kind]
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    saved = find_checkpoint(folder)
    config = TrainingConfig.model_validate(
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
            "communication_every": 4,
            "power_averages": (0.05, 0.1),
            "snapshot_every": 2,
            "objective": objective,
            **TRAINING_FIELDS.get(kind, {}),
            **settings,
        }
    )
    return Run(
        name=folder.name,
        folder=folder,
        config=config,
        backbone=make_backbone(model, **MODEL_FIELDS.get(kind, {})),
        batches=make_batches(rank, world_size, size, stop_at),
        validation=[micro_batch(1000, 2 * rank, 2)],
        start=resume(saved, config.power_averages) if saved else Start(source="random weights"),
        settings="",
        device=torch.device("cpu"),
    )


if __name__ == "__main__":
    start_processes(timeout_minutes=1)
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    for plan in arguments[1:]:
        name, steps, stop_at, zero_stage, precision, kind, *accidents = plan.split(":")
        numbers = (int(steps), int(stop_at), int(zero_stage))
        settings = CLOSELY_WATCHED if accidents else {}
        run = make_run(Path(arguments[0]) / name, *numbers, precision, kind, **settings)
        if accidents and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            accident, at = accidents[0].split("@")
            run = replace(run, batches=with_accident(run.batches, accident, int(at)))
        finished = train(run)
        assert finished == (stop_at == "0"), f"{plan}: finished is {finished}"
    stop_processes()
