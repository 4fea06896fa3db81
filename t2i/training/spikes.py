"""Updates that are not made: which gradients are refused, and the record of the steps skipped.

A gradient that is not finite never reaches the weights. One that is finite but far larger than the
run's own recent ones (a broken sample, a numerical accident) would be clipped to a harmless length,
yet in a direction that has nothing to do with the data, and would stay in Adam's second moment for
hundreds of steps. So it is refused as well. (PaLM's authors left out the batches around their loss
spikes by hand; Chowdhery et al. 2022, section 5.1.)
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from t2i.console import MetricsFile, get_logger
from t2i.training.monitoring.reporter import drop_lines_after

logger = get_logger("train")


class SpikeGuard:
    """Refuses gradients whose norm exceeds ``ratio`` times the median of the last applied ones.

    The median of ``window`` norms is moved by neither a few large steps nor by the noise of one; until
    so many updates have been applied, none is refused. A refused norm does not enter the median, so
    what a guard says is a function of the applied norms alone, the same on all processes.

    The default ratio is far from what healthy runs do: the largest norm in runs of nano models is
    about twice the median, in toys with batches of 8 and a learning rate of 1e-2 about 16 times.

    Attributes:
        limit: the largest norm that is let through now; None = any.
    """

    def __init__(self, ratio: float | None, window: int, norms: Sequence[float] = ()) -> None:
        """``ratio`` None refuses nothing. ``norms``: of a checkpoint's `norms`."""
        self.ratio = ratio
        self._norms = deque(norms, maxlen=window)
        self.limit = self._limit()

    @property
    def norms(self) -> list[float]:
        """The norms that the median is taken of, oldest first; for checkpoints."""
        return list(self._norms)

    def refuses(self, norm: float) -> bool:
        """Whether a gradient of this norm is a spike."""
        return self.limit is not None and norm > self.limit

    def add(self, norm: float) -> None:
        """Take in the norm of an update that was applied."""
        self._norms.append(norm)
        self.limit = self._limit()

    def _limit(self) -> float | None:
        if self.ratio is None or len(self._norms) < (self._norms.maxlen or 0):
            return None
        return self.ratio * statistics.median(self._norms)


class SkippedSteps:
    """The record of a run's steps without an update: a count, and a file of their samples.

    ``skipped-rankN.jsonl`` of the run's folder holds a line for each: step, reason, norm of the
    gradient (null = not finite), the limit that it exceeded, and the keys of this rank's samples.

    Attributes:
        count: of the whole run.
        in_a_row: of them, since the last step that was applied.
    """

    def __init__(
        self, folder: Path, rank: int, step: int, count: int, most_in_a_row: int, in_a_row: int = 0
    ) -> None:
        """``step``: steps done, of which ``count`` were skipped, and the last ``in_a_row`` together.

        The record of later ones, which are run again, is removed.
        """
        self.file = folder / f"skipped-rank{rank}.jsonl"
        drop_lines_after(self.file, step - 1)  # a line's step is counted from 0
        self.rank, self.count, self.most_in_a_row = rank, count, most_in_a_row
        self.in_a_row = in_a_row

    def end_row(self) -> None:
        """A step was applied."""
        self.in_a_row = 0

    def add(self, step: int, keys: Sequence[str], norm: float, limit: float | None) -> None:
        """Write down a skipped step.

        Raises:
            ValueError: too many in a row.
        """
        self.count += 1
        self.in_a_row += 1
        is_finite = math.isfinite(norm)
        line = {
            "step": step,
            "reason": "spike" if is_finite else "not finite",
            "gradient_norm": norm if is_finite else None,
            "limit": limit if is_finite else None,
            "keys": list(keys),
        }
        MetricsFile(self.file).write(line)
        problem = f"its norm {norm:.4g} exceeds {limit:.4g}" if is_finite else "it is not finite"
        if self.rank == 0:
            logger.warning("step %d: gradient refused, %s; keys in %s", step, problem, self.file)
        if self.in_a_row >= self.most_in_a_row:
            raise ValueError(
                f"{self.in_a_row} steps in a row had gradients that were refused (the last one: "
                f"{problem}); look at the samples in {self.file}, go back to a checkpoint (the same "
                "command with --from-step N) and go on with a lower learning_rate, or raise max_gradient_norm_ratio if the norms are right"
            )
