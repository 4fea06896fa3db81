"""What a run reports: sums over ranks and micro-batches, then one JSON line and one progress line."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.console import MetricsFile

NUM_TIME_BINS = 8


class LossSums:
    """Loss sums and counts over eight equal bins of t, on one rank, as one small tensor."""

    def __init__(self, device: torch.device) -> None:
        self.sums_2T = torch.zeros(2, NUM_TIME_BINS, dtype=torch.float64, device=device)

    def add(self, loss_B: Tensor, timestep_B: Tensor) -> None:
        """Count a micro-batch; no synchronisation with the host."""
        bins_B = (timestep_B * NUM_TIME_BINS).long().clamp(0, NUM_TIME_BINS - 1)
        self.sums_2T[0].index_add_(0, bins_B, loss_B.detach().double())
        self.sums_2T[1].index_add_(0, bins_B, torch.ones_like(loss_B, dtype=torch.float64))


def mean_losses(sums_2T: Tensor) -> tuple[float, list[float | None]]:
    """(mean loss, mean loss per bin of t; None for an empty bin) from summed `LossSums`."""
    sums, counts = sums_2T.tolist()
    by_bin = [s / c if c else None for s, c in zip(sums, counts, strict=True)]
    return sum(sums) / max(sum(counts), 1.0), by_bin


class Window:
    """What has happened since the last line of metrics, on this process."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.steps = 0
        self.sums_2T = torch.zeros(2, NUM_TIME_BINS, dtype=torch.float64)
        self.gradient_norm: float | None = None
        self.seconds = {"data": 0.0, "text": 0.0}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the host's time in the block as spent on ``part``."""
        started = time.monotonic()
        yield
        self.seconds[part] += time.monotonic() - started

    def fields(self, global_batch: int) -> dict[str, Any]:
        """What a line of metrics says of the window."""
        seconds = time.monotonic() - self.started
        loss, by_time = mean_losses(self.sums_2T)
        return {
            "loss": loss,
            "loss_by_time": by_time,
            "gradient_norm": self.gradient_norm,
            "images_per_second": self.steps * global_batch / seconds,
            **{f"{part}_share": spent / seconds for part, spent in self.seconds.items()},
        }


def memory_gb(device: torch.device) -> float:
    """Peak memory of this process so far: of the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024 / 1e9


def drop_lines_after(path: Path, step: int) -> None:
    """Remove a metrics file's lines of steps after ``step``, which are about to be run again."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(kept))
        replacement.replace(path)


class Reporter:
    """Writes metrics.jsonl and, if asked, Weights & Biases; used on rank 0 only."""

    def __init__(
        self, folder: Path, step: int, wandb_mode: str, name: str, config: Mapping[str, Any]
    ) -> None:
        """``step``: steps done; later lines of an interrupted run are removed.

        Raises:
            ValueError: W&B is asked for but not installed.
        """
        drop_lines_after(folder / "metrics.jsonl", step)
        self.file = MetricsFile(folder / "metrics.jsonl")
        self.wandb: Any = None
        if wandb_mode != "off":
            self.wandb = _start_wandb(folder, wandb_mode, name, config)

    def write(self, fields: Mapping[str, Any]) -> None:
        """One line of metrics; ``step`` is among the fields."""
        self.file.write(fields)
        if self.wandb is not None:
            self.wandb.log(dict(fields), step=fields["step"])

    def close(self) -> None:
        """Finish the W&B run, if there is one."""
        if self.wandb is not None:
            self.wandb.finish()


def _start_wandb(folder: Path, mode: str, name: str, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "t2i.training.wandb needs the wandb package: pip install wandb, or set it to off"
        ) from None
    return wandb.init(
        dir=folder, mode=mode, name=name, id=name, resume="allow", config=dict(config)
    )
