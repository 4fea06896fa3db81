"""Traces by torch.profiler: of the steps of `--profile START:STOP`, and of what communication takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.config import ConfigError
from t2i.console import get_logger

if TYPE_CHECKING:
    import torch
    from torch.autograd.profiler_util import FunctionEvent

NUM_ROWS = 20

logger = get_logger("train")


@dataclass(frozen=True)
class ProfileSteps:
    """Which steps are traced: those after ``start`` done ones, until ``stop`` are done."""

    start: int
    stop: int


def parse_profile_steps(text: str) -> ProfileSteps:
    """``"10:12"`` -> the two steps after ten.

    Raises:
        ConfigError: not START:STOP with 0 <= START < STOP.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ConfigError(f"--profile {text}: must be START:STOP, such as 10:12 for two steps")
    return ProfileSteps(int(first), int(last))


def check_profile_steps(steps: ProfileSteps, last_step: int) -> None:
    """Raises ValueError: a run that ends with ``last_step`` does not go through the steps."""
    if steps.stop > last_step:
        raise ValueError(
            f"--profile {steps.start}:{steps.stop}: this run ends with step {last_step}; choose "
            "steps before that"
        )


class Profile:
    """Traces the steps on this process; writes ``profile/steps-START-STOP.json`` and a table beside it.

    The first step of a trace holds the profiler's own warm-up.
    """

    def __init__(self, steps: ProfileSteps, folder: Path, first_step: int) -> None:
        """A run in ``folder`` from ``first_step`` done steps.

        When that is past the start, the command goes on with a run, and nothing is traced.
        """
        if first_step > steps.start:
            logger.warning(
                "--profile %d:%d: nothing to trace, the run goes on from step %d",
                *(steps.start, steps.stop, first_step),
            )
        self.steps = steps
        self.path = folder / "profile" / f"steps-{steps.start}-{steps.stop}.json"
        self._profiler: Any = None

    def at(self, step: int) -> None:
        """To be called with the number of steps done, before the first step and after each."""
        if step == self.steps.start:
            from torch.profiler import profile

            self._profiler = profile()  # of the CPU and of every accelerator there is
            self._profiler.start()
        if step == self.steps.stop and self._profiler is not None:
            self._profiler.stop()
            self._write()
            self._profiler = None

    @property
    def is_tracing(self) -> bool:
        """Whether the step at hand is traced."""
        return self._profiler is not None

    def label(self, phase: str) -> AbstractContextManager[object]:
        """Shows a phase of a step in the trace."""
        from torch.profiler import record_function

        return record_function(phase)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.path))
        averages = self._profiler.key_averages()
        on_device = any(event.self_device_time_total > 0 for event in averages)
        key = "self_device_time_total" if on_device else "self_cpu_time_total"
        table = averages.table(sort_by=key, row_limit=NUM_ROWS, max_name_column_width=60)
        share = communication_share(self._profiler.events())
        text = (
            f"{table}\ncommunication: {100 * share:.1f} % of the trace's time, overlapped or not\n"
        )
        self.path.with_suffix(".txt").write_text(text)
        logger.info("trace of steps %d to %d: %s\n%s", *self._bounds(), self.path, text)

    def _bounds(self) -> tuple[int, int]:
        return self.steps.start + 1, self.steps.stop


@contextmanager
def communication_traced(device: torch.device) -> Iterator[Callable[[], float]]:
    """Traces the block; what it gives tells afterwards the `communication_share` of it.

    On CUDA kernels alone are traced, which hardly slows the block. Traces cannot be nested.
    """
    from torch.profiler import ProfilerActivity, profile

    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as trace:
        yield lambda: communication_share(trace.events())


def communication_share(events: Sequence[FunctionEvent]) -> float:
    """Share of a trace's time in which a collective ran: NCCL's kernels, or gloo's work on a CPU."""
    spans = [(e.time_range.start, e.time_range.end, e.name) for e in events]
    if not spans:
        return 0.0
    kernel = "ncclDevKernel"  # "nccl:..." spans are the calls that put kernels into the queue
    prefix = kernel if any(name.startswith(kernel) for _, _, name in spans) else "gloo:"
    collectives = sorted((start, end) for start, end, name in spans if name.startswith(prefix))
    total, reached = 0.0, float("-inf")
    for start, end in collectives:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = max(end for _, end, _ in spans) - min(start for start, _, _ in spans)
    return total / whole
