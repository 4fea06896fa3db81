"""What a training run is made of, and where it starts from. `launch` fills it in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.training import checkpoint
from t2i.training.backbone import Backbone
from t2i.training.checkpoint import Checkpoint, power_kind
from t2i.training.engine import MOMENTS
from t2i.training.monitoring.profiling import ProfileSteps
from t2i.training.monitoring.validation_samples import ValidationSamples
from t2i.training.training_config import TrainingConfig


@dataclass(frozen=True)
class Start:
    """Where a process starts from: fp32 tensors by parameter name, and its place in the run.

    Attributes:
        source: where the tensors come from, for messages.
        weights: None = the model's own random weights.
        ema: None = a copy of the weights.
        power_averages: by relative width; {} = begun anew by the first update.
        moments: Adam's ``exp_avg`` and ``exp_avg_sq``, or None for a new optimizer.
        optimizer_steps: updates that the moments have seen.
        ema_updates: updates that the EMA has seen.
        power_updates: updates that the power averages have seen.
        skipped_in_a_row: steps without an update since the last one.
        step: steps that this run has done.
        skipped: those of them without an update.
        objective: where the objective's state stands; {} = at its start.
        gradient_norms: of the last updates, for `spikes.SpikeGuard`.
    """

    source: str
    weights: Mapping[str, Tensor] | None = None
    ema: Mapping[str, Tensor] | None = None
    power_averages: Mapping[float, Mapping[str, Tensor]] = field(default_factory=dict)
    moments: Mapping[str, Mapping[str, Tensor]] | None = None
    optimizer_steps: int = 0
    ema_updates: int = 0
    power_updates: int = 0
    skipped_in_a_row: int = 0
    step: int = 0
    skipped: int = 0
    objective: Mapping[str, float | None] = field(default_factory=dict)
    gradient_norms: Sequence[float] = ()


@dataclass(frozen=True)
class Run:
    """Everything that a training run needs; `launch` puts it together.

    Attributes:
        folder: receives config.yaml, metrics.jsonl, checkpoints/, snapshots/ and samples/.
        backbone: the model, and where its conditions come from.
        batches: step -> this rank's micro-batches from that step on, in order.
        validation: this rank's held-out batches, equally many on each rank; may be empty.
        start: from `resume` when ``folder`` has a checkpoint.
        swapped_words: by name, words that are swapped for one another in held-out captions, see
            `monitoring.swapped_words`; {} for models of classes.
        samples: what to sample every ``config.sample_every`` steps; None = nothing.
        settings: the resolved config of this stage, stored beside each checkpoint (YAML).
        on_checkpoint: called by rank 0 with each new checkpoint's folder, say to copy it elsewhere;
            must return soon and raise nothing.
        profile: steps to trace; None = none.
        data: tells each dataset's shards by their sizes, stored in each checkpoint; () = not known.
    """

    name: str
    folder: Path
    config: TrainingConfig
    backbone: Backbone
    batches: Callable[[int], Iterator[TrainingBatch]]
    validation: Sequence[TrainingBatch]
    start: Start
    settings: str
    device: torch.device
    samples: ValidationSamples | None = None
    swapped_words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    on_checkpoint: Callable[[Path], None] | None = None
    profile: ProfileSteps | None = None
    data: Sequence[str] = ()


# (folder of checkpoints, its newest or None) -> a newer one, copied there from elsewhere, or the same
FetchNewer = Callable[[Path, Checkpoint | None], Checkpoint | None]


def find_checkpoint(run_folder: Path, fetch_newer: FetchNewer | None = None) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies; rank 0 looks, all ranks take its choice."""
    chosen: list[Path | None] = [None]
    if dist.get_rank() == 0:
        folder = run_folder / "checkpoints"
        found = checkpoint.newest_checkpoint(folder)
        if fetch_newer is not None:
            found = fetch_newer(folder, found)
        chosen = [found.path if found else None]
    dist.broadcast_object_list(chosen, src=0)
    return checkpoint.open_checkpoint(chosen[0]) if chosen[0] else None


def resume(saved: Checkpoint, power_widths: Sequence[float]) -> Start:
    """Go on with the run that wrote ``saved``; ``power_widths``: the config's power_averages.

    Raises:
        ValueError: the run has power averages of other widths.
    """
    state = saved.state
    if saved.power_widths != tuple(power_widths):
        raise ValueError(
            f"t2i.training.power_averages is {list(power_widths)}, but {saved.path} has "
            f"{list(saved.power_widths)}, and such an average cannot start in the middle of a run; "
            f"set it to {list(saved.power_widths)}, or start a new run in another folder"
        )
    start = start_new_run(saved, with_moments=True)
    return replace(
        start,
        power_averages={width: saved.tensors(power_kind(width)) for width in power_widths},
        power_updates=state.power_updates,
        skipped_in_a_row=state.skipped_in_a_row,
        step=state.step,
        skipped=state.skipped,
        objective=state.objective,
        gradient_norms=state.gradient_norms,
    )


def start_new_run(saved: Checkpoint, with_moments: bool) -> Start:
    """Start another run with the weights, the EMA and perhaps the optimizer of ``saved``.

    Its power averages begin anew.
    """
    return Start(
        source=str(saved.path),
        weights=saved.tensors("weights"),
        ema=saved.tensors("ema"),
        moments={kind: saved.tensors(kind) for kind in MOMENTS} if with_moments else None,
        optimizer_steps=saved.state.optimizer_steps if with_moments else 0,
        ema_updates=saved.state.ema_updates,
    )


def lacks_scale_input(start: Start, model: nn.Module) -> bool:
    """Whether the weights are of a network without the scale input that ``model`` has."""
    new = _scale_input(model).keys()
    return start.weights is not None and len(new) > 0 and not new & start.weights.keys()


def with_new_scale_input(start: Start, model: nn.Module) -> Start:
    """A start that `lacks_scale_input` with that of ``model``, which changes nothing yet."""
    new = _scale_input(model)
    assert start.weights is not None
    moments = start.moments and {
        kind: {**tensors, **{name: torch.zeros_like(p) for name, p in new.items()}}
        for kind, tensors in start.moments.items()
    }
    ema = None if start.ema is None else {**start.ema, **new}
    powers = {width: {**tensors, **new} for width, tensors in start.power_averages.items()}
    weights = {**start.weights, **new}
    return replace(start, weights=weights, ema=ema, power_averages=powers, moments=moments)


def _scale_input(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if name.startswith("scale.")
    }
