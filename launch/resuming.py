"""Whether a run that goes on is still the run that its checkpoint is of, and how it goes back.

settings  what has changed since the checkpoint is said; what would change the order of the data,
          the settings that make it or the shards themselves, is refused
back      what a run has saved after a step is set aside: renamed, so that nothing reads it
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from launch.environment import stop_if
from launch.uploads import RemoteCheckpoints
from t2i.config import ConfigError, flatten
from t2i.training import checkpoint
from t2i.training.checkpoint import Checkpoint

# What the weights depend on; of these sections all but IRRELEVANT.
RELEVANT = ("t2i.models.", "t2i.encoders.text.", "t2i.training.", "data_pipeline.loader.")
IRRELEVANT = (
    *("t2i.training.steps", "t2i.training.micro_batch", "t2i.training.zero_stage"),
    *("t2i.training.timeout_minutes", "t2i.training.peak_tflops", "t2i.training.wandb"),
    *("t2i.training.checkpoint_every", "t2i.training.checkpoint_minutes"),
    *("t2i.training.keep_checkpoints", "t2i.training.keep_at", "t2i.training.snapshot_every"),
    *("t2i.training.log_every", "t2i.training.communication_every"),
    *("t2i.training.validate_every", "t2i.training.sample_every"),
    *("data_pipeline.loader.num_workers", "data_pipeline.loader.prefetch"),
)
# What the order of the data depends on, see `data_pipeline.loading.order`.
DATA_ORDER = (
    *("t2i.training.seed", "t2i.training.global_batch", "data_pipeline.loader.datasets"),
    *("data_pipeline.loader.window_shards", "data_pipeline.loader.held_out"),
)


class Change(NamedTuple):
    """A setting, or a dataset's shards, before and now."""

    name: str
    old: str
    new: str
    is_of_data: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


def changes_since(saved: Checkpoint, settings: str, data: Sequence[str]) -> list[Change]:
    """What has changed since ``saved`` was written, as far as results depend on it.

    ``settings``: YAML as in `t2i.training.run.Run`; ``data`` likewise. A checkpoint whose settings
    do not say their stage (of older code) is not compared, nor are shards that either does not tell.
    """
    tree = yaml.safe_load(settings)
    old_tree = yaml.safe_load((saved.path / "config.yaml").read_text()) or {}
    if "stage" not in old_tree:
        return []
    old, new = _relevant(old_tree), _relevant(tree)
    changes = [
        Change(name, old.get(name, "not set"), new.get(name, "not set"), name in DATA_ORDER)
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    shards = zip(tree["data_pipeline"]["loader"]["datasets"], saved.state.data, data, strict=False)
    changes += [
        Change(f"the shards of {dataset['path']}", before, now, is_of_data=True)
        for dataset, before, now in shards
        if before != now
    ]
    return changes


def describe_changes(
    saved: Checkpoint,
    changes: Sequence[Change],
    stage: int,
    changed_data: Literal["refuse", "accept"],
) -> list[str]:
    """Lines for the user, [] when nothing has changed; called by all processes together.

    Raises:
        ConfigError: on the first process, when the order of the data has changed and
            ``changed_data`` refuses that.
        SystemExit: then on the other processes.
    """
    of_data = "; ".join(str(change) for change in changes if change.is_of_data)
    if of_data and changed_data == "refuse":
        key = f"launch.train.stage{stage}"
        line = (
            f"the order of the data has changed since {saved.path}: {of_data}; change it "
            f"back, start a new run (--set {key}.folder=..., and {key}.start_from_run for these "
            "weights), or --set launch.train.changed_data=accept: then samples may be seen twice or "
            "not at all"
        )
        stop_if([line])
    lines = []
    if changes:
        lines.append(f"changed since {saved.path}: {'; '.join(map(str, changes))}")
    if of_data:
        lines.append(
            "warning: the order of the data has changed; samples may be seen twice or never"
        )
    return lines


def go_back(folder: Path, step: int, copies: RemoteCheckpoints | None) -> list[str]:
    """Set aside what a run has saved after ``step``: checkpoints, their copies, snapshots.

    A checkpoint of ``step`` that only ``copies`` has is fetched. Returns what was set aside.

    Raises:
        ConfigError: there is no whole checkpoint of this step; names those that there are.
        OSError: the copies cannot be reached; what is set aside then stays so.
    """
    checkpoints = folder / "checkpoints"
    wanted = checkpoints / checkpoint.folder_name(step)
    problem = checkpoint.find_damage(wanted) if wanted.exists() else "it is not there"
    names = {path.name for path in checkpoint.checkpoint_paths(checkpoints)}
    if copies is not None:
        with copies.errors_named():
            names |= {*copies.names()}
            if problem is not None and wanted.name in copies.names():
                problem = copies.fetch(wanted.name, checkpoints)
    if problem is not None:
        there = ", ".join(str(checkpoint.step_of(name)) for name in sorted(names)) or "none"
        raise ConfigError(
            f"--from-step {step}: {wanted} cannot be gone on from ({problem}); there are: {there}"
        )
    moved = [] if copies is None else copies.set_aside(after=wanted.name)
    for place in (checkpoints, folder / "snapshots"):
        moved += [str(path) for path in checkpoint.set_aside(place, step, int(time.time()))]
    return moved


def go_back_together(folder: Path, step: int, copies: RemoteCheckpoints | None) -> list[str]:
    """`go_back` by the first process while the others wait; raises on it, ends the others."""
    from torch import distributed

    moved, problems = list[str](), list[str]()
    if distributed.get_rank() == 0:
        try:
            moved = go_back(folder, step, copies)
        except (ValueError, OSError) as error:
            problems = [str(error)]
    outcome = [problems]
    distributed.broadcast_object_list(outcome, src=0)
    stop_if(outcome[0])
    return moved


def set_aside_snapshots(folder: Path, step: int) -> list[Path]:
    """Set aside the snapshots of a run after ``step``, which it goes on from: of a branch left."""
    from torch import distributed

    if distributed.get_rank() > 0:
        return []
    return checkpoint.set_aside(folder / "snapshots", step, int(time.time()))


def _relevant(tree: dict[str, Any]) -> dict[str, str]:
    """Name -> value of the settings that results depend on."""
    model = tree["launch"]["train"]["model"]
    values = {"launch.train.model": repr(model)}
    for name, value in flatten(tree).items():
        is_of_other_model = name.startswith("t2i.models.") and not name.startswith(
            f"t2i.models.{model}."
        )
        if name.startswith(RELEVANT) and name not in IRRELEVANT and not is_of_other_model:
            values[name] = repr(value)
    return values
