"""The power averages of a run beside its EMA, and their snapshots.

``snapshots/step-00001000/`` is a folder like a checkpoint, complete or absent by the same manifest,
which holds the power averages alone, a file for each width. They are in float16, as in the paper:
what `post_hoc.Reconstruction` makes of ten snapshots of 0.05 and 0.1 was 2e-4 of its norm off at 0.075
and 0.15 in a nano run (in fp32 1e-5), where the nearest tracked average was 2e-3 to 4e-3 off; on random
walks ten snapshots cost 2e-4 to 5e-4 in either. An export in bfloat16 rounds by more than 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from t2i.training.averages.ema import EMA
from t2i.training.averages.power_functions import gamma_of, power_decay
from t2i.training.checkpoint import power_kind
from t2i.training.engine import Engine
from t2i.training.run import Run, Start
from t2i.training.saving import Saver


def start_power_averages(engine: Engine, widths: Sequence[float], start: Start) -> dict[str, EMA]:
    """The averages by `power_kind`, where ``start`` left them, or to begin with the next update."""
    averages = {}
    for width in widths:
        decay = partial(power_decay, gamma=gamma_of(width))
        average = EMA(engine.masters, decay, start.power_updates)
        if width in start.power_averages:
            engine.scatter(average.averages, start.power_averages[width])
        averages[power_kind(width)] = average
    return averages


def snapshot_saver(run: Run, engine: Engine, averages: Mapping[str, EMA]) -> Saver:
    """Writes the averages into the run's folder of snapshots; none is ever removed."""
    return Saver(
        run.folder / "snapshots",
        engine,
        lambda: {kind: average.averages for kind, average in averages.items()},
        run.settings,
        keep=None,
        dtype=torch.float16,
        what="snapshot",
    )
