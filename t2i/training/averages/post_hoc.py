"""The average of any width out of a run's snapshots, after training (post-hoc EMA).

Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from t2i.training.averages.power_functions import coefficients
from t2i.training.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    power_kind,
    step_of,
    whole_checkpoints,
)

# Of the profile, as `power_functions.coefficients` tells it; ten snapshots of the widths 0.05 and
# 0.1 have 0.8 % at 0.075 and 2 % at 0.15.
LARGEST_ERROR = 0.1


def find_snapshots(run: Path, step: int | None = None) -> list[Checkpoint]:
    """The snapshots of a run that verify, oldest first; damaged ones are reported and left out.

    Args:
        run: the run's folder.
        step: of the last one; None = all.

    Raises:
        FileNotFoundError: there is none.
        ValueError: none of ``step``, or of other widths than the others.
    """
    folder = run / "snapshots"
    steps = [step_of(path.name) for path in checkpoint_paths(folder)][::-1]
    if steps and step is not None and step not in steps:
        raise ValueError(f"{folder}: no snapshot of step {step}; there are {steps}")
    whole = list(whole_checkpoints(folder, until=step))
    if steps and step is not None and (not whole or whole[0].state.step != step):
        raise ValueError(f"{folder}: the snapshot of step {step} is damaged; choose among {steps}")
    found = [snapshot for snapshot in whole if snapshot.state.power_updates > 0]
    if not found:
        raise FileNotFoundError(
            f"{folder}: no whole snapshot; train with t2i.training.power_averages (say [0.05, 0.1]) "
            "and t2i.training.snapshot_every"
        )
    for snapshot in found:
        if snapshot.power_widths != found[0].power_widths:
            raise ValueError(
                f"{snapshot.path} has the widths {list(snapshot.power_widths)}, but {found[0].path} "
                f"{list(found[0].power_widths)}: of another run? move the wrong ones elsewhere"
            )
    return found[::-1]


class Reconstruction(Mapping[str, Tensor]):
    """The average of a width at the last snapshot, by parameter name; each is made when asked for.

    Attributes:
        snapshots: that it is made of, oldest first.
        width: its relative width.
        error: of its profile: norm of the difference / norm of the profile.
    """

    def __init__(self, snapshots: Sequence[Checkpoint], width: float) -> None:
        """``snapshots``: see `find_snapshots`.

        Raises:
            ValueError: a width too far from what these snapshots can give, or tensors that differ.
        """
        # one for each number of updates: none was applied between two that have the same
        self.snapshots = list({s.state.power_updates: s for s in snapshots}.values())
        self.width, last = width, self.snapshots[-1]
        stored = [
            (snapshot, tracked) for snapshot in self.snapshots for tracked in snapshot.power_widths
        ]
        factors, self.error = coefficients(
            [(snapshot.state.power_updates, tracked) for snapshot, tracked in stored],
            last.state.power_updates,
            width,
        )
        if self.error > LARGEST_ERROR:
            raise ValueError(
                f"width {width} cannot be made of {len(self.snapshots)} snapshot(s) of the widths "
                f"{list(last.power_widths)}: the profile differs by {self.error:.0%}, at most "
                f"{LARGEST_ERROR:.0%} is allowed; choose a width nearer to these"
            )
        self._terms = [
            (factor, snapshot.tensors(power_kind(tracked)))
            for factor, (snapshot, tracked) in zip(factors, stored, strict=True)
        ]
        self._names = list(self._terms[0][1])
        for _, tensors in self._terms:
            if set(tensors) != set(self._names):
                raise ValueError(
                    f"{tensors.path} has other tensors than {self._terms[0][1].path}; move the "
                    "snapshots of another model elsewhere"
                )

    def __getitem__(self, name: str) -> Tensor:
        """The fp32 tensor, added up in float64."""
        total = torch.zeros((), dtype=torch.float64)
        for factor, tensors in self._terms:
            total = total + factor * tensors[name].double()
        return total.float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
