"""The weights that a run has to give: of its newest checkpoint, or averaged out of its snapshots."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from t2i.training.checkpoint import (
    MANIFEST,
    Checkpoint,
    checkpoint_at,
    manifest_files,
    newest_checkpoint,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Trained:
    """Weights with their place in a run.

    Attributes:
        checkpoint: whose step and settings they have; of a power average its last snapshot.
        tensors: by parameter name, each read or made when it is asked for.
        description: which weights these are, for people.
        sha256: changes with the files that they are made of.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, Tensor]
    description: str
    sha256: str

    @property
    def settings(self) -> dict[str, Any]:
        """Of the run, as a tree of sections."""
        tree: dict[str, Any] = yaml.safe_load((self.checkpoint.path / "config.yaml").read_text())
        return tree


def find_trained(run: Path, kind: str, step: int | None = None) -> Trained:
    """One kind of tensors ("weights" or "ema") of a run's checkpoint of a step.

    ``step`` None: of the newest one that verifies.

    Raises:
        FileNotFoundError: there is none.
        ValueError: that of the step is damaged.
    """
    folder = run / "checkpoints"
    checkpoint = newest_checkpoint(folder) if step is None else checkpoint_at(folder, step)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{run}: no checkpoint that verifies; train first: deepspeed launch/train_t2i.py --stage 2"
        )
    sha256 = manifest_files(checkpoint.path)[f"{kind}.safetensors"].sha256
    return Trained(checkpoint, checkpoint.tensors(kind), kind, sha256)


def find_average(run: Path, width: float, step: int | None = None) -> Trained:
    """The power average of any relative width at the snapshot of a step (None: the newest one).

    Raises:
        FileNotFoundError: no snapshot that verifies.
        ValueError: none of this step; snapshots that do not fit together, or do not give the width.
    """
    from t2i.training.averages.post_hoc import Reconstruction, find_snapshots

    average = Reconstruction(find_snapshots(run, step), width)
    last = average.snapshots[-1]
    manifests = b"".join((s.path / MANIFEST).read_bytes() for s in average.snapshots)
    description = (
        f"average of relative width {width} out of {len(average.snapshots)} snapshot(s) of "
        f"{', '.join(map(str, last.power_widths))}, profile error {average.error:.2%}"
    )
    return Trained(last, average, description, hashlib.sha256(manifests).hexdigest())
