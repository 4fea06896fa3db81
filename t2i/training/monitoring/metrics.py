"""What a run measures of itself: sums over ranks and micro-batches, and where the time goes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NUM_TIME_BINS = 8
# What a process does, in the order of a step; all processes go through the same phases.
#   data        waiting for the next micro-batch
#   text        conditions: the frozen text encoder
#   forward     the objective's loss, a teacher's passes included; under ZeRO 3 also the gathering
#               of weights
#   backward    gradients, and their reduction among the processes (which it overlaps with)
#   update      norm, clipping, AdamW, the gathering of new weights, EMA, a teacher's new weights
#   agreement   summing the losses over the processes: mostly waiting for the slowest of them
#   validation, saving
# With one process there is no communication in any of them.
PHASES = ("data", "text", "forward", "backward", "update", "agreement", "validation", "saving")
OUTSIDE_TRAINING = ("validation", "saving")


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


class Stopwatch:
    """Seconds by phase.

    On CUDA the host runs ahead of the device, so its clock would tell where it queued work. There,
    events on the stream are counted instead: a phase's time is what the stream spent between them,
    computing or idle, so that "data" is the time for which the device had to wait for data.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = {phase: [] for phase in PHASES}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the block as ``phase``, one of `PHASES`."""
        begin = self._mark()
        yield
        self._spans[phase].append((begin, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Of each phase so far; waits for the device."""
        return {phase: sum(map(self._between, spans)) for phase, spans in self._spans.items()}

    def _mark(self) -> Any:
        if not self.on_cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, span: tuple[Any, Any]) -> float:
        begin, end = span
        if not self.on_cuda:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


class Window:
    """What has happened since the last line of metrics, on this process.

    Attributes:
        steps: made, skipped ones included.
        sums_2T: of `LossSums`, over the applied steps of all processes.
        flops: executed by all processes in the applied steps; see `throughput.batch_flops`.
        num_replaced: samples of all processes that stood in for others in bad shards.
        num_cut: captions of all processes that were longer than the text encoder reads.
        communication_share: of the time of one of the steps, in which it was measured; else None.
    """

    def __init__(self, device: torch.device) -> None:
        self.started = time.monotonic()
        self.stopwatch = Stopwatch(device)
        self.steps = 0
        self.sums_2T = torch.zeros(2, NUM_TIME_BINS, dtype=torch.float64)
        self.flops = 0.0
        self.num_replaced = 0
        self.num_cut = 0
        self.communication_share: float | None = None
        self.gradient_norms: list[float] = []

    def add_applied(self, sums_2T: Tensor, flops: float, gradient_norm: float) -> None:
        """Count what an applied step did."""
        self.sums_2T += sums_2T
        self.flops += flops
        self.gradient_norms.append(gradient_norm)

    def fields(
        self, global_batch: int, world_size: int, peak_tflops: float | None
    ) -> dict[str, Any]:
        """What a line of metrics says of the window.

        Rates are those of applied steps in the time without validation and saving; what a skipped
        step computed is not counted, but its time is. Shares are of the whole ``seconds`` and sum to
        one; ``communication_share`` is of one traced step, in whichever phase, and None where there
        was no such step. ``tflops`` (TFLOP/s) and ``mfu`` are per process; ``mfu`` is None without a known peak.
        """
        spent = self.stopwatch.seconds()  # waits for the device, so before the clock is read
        seconds = time.monotonic() - self.started
        training = seconds - sum(spent[phase] for phase in OUTSIDE_TRAINING)
        tflops = self.flops / training / world_size / 1e12
        return {
            **self._applied_fields(),
            "seconds": seconds,
            "replaced_samples": self.num_replaced,
            "cut_captions": self.num_cut,
            "images_per_second": len(self.gradient_norms) * global_batch / training,
            "tflops": tflops,
            "mfu": tflops / peak_tflops if peak_tflops else None,
            **{f"{phase}_share": part / seconds for phase, part in spent.items()},
            "other_share": 1 - sum(spent.values()) / seconds,
            "communication_share": self.communication_share,
        }

    def _applied_fields(self) -> dict[str, Any]:
        """Means over the applied steps; nothing when there are none."""
        if not self.gradient_norms:
            return {}
        loss, by_time = mean_losses(self.sums_2T)
        return {
            "loss": loss,
            "loss_by_time": by_time,
            "gradient_norm": sum(self.gradient_norms) / len(self.gradient_norms),
            "largest_gradient_norm": max(self.gradient_norms),
        }


def memory_gb(device: torch.device) -> float:
    """Peak memory of this process so far: of the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024 / 1e9
