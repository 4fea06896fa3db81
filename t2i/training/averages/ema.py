"""Moving averages of the fp32 master weights, on each rank's own flat partition.

The partitions are the ones that the optimizer updates, so averaging needs no communication and
no second copy of the model per rank: it costs one fp32 partition each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def decay_at(updates: int, limit: float) -> float:
    """Decay of the next update after ``updates``: min(limit, (1 + updates) / (10 + updates)).

    The ramp keeps the average from remembering its random start (the default of common EMA code).
    """
    return min(limit, (1 + updates) / (10 + updates))


class EMA:
    """Average of flat fp32 partitions: ``average <- decay * average + (1 - decay) * master``."""

    def __init__(
        self, masters: Sequence[Tensor], decay: Callable[[int], float], updates: int = 0
    ) -> None:
        """Starts at the masters' present values.

        Args:
            masters: flat fp32 tensors, kept by reference.
            decay: updates -> decay of the next one; such as `decay_at` of a limit, for an
                exponential average, or `power_functions.power_decay` of a power.
            updates: updates that the average (to be filled in by the caller) has seen.
        """
        self.masters = list(masters)
        self.averages = [master.detach().clone() for master in masters]
        self.decay = decay
        self.updates = updates

    @torch.no_grad()
    def update(self) -> None:
        """One update after an optimizer step that was applied."""
        decay = self.decay(self.updates)
        for average, master in zip(self.averages, self.masters, strict=True):
            average.lerp_(master, 1.0 - decay)
        self.updates += 1


def averaged_network(network: nn.Module, averages: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """The network with averaged weights, without gradients; its own weights stay as they are.

    Args:
        network: whose forward is run; not sharded (so not under ZeRO 3).
        averages: a tensor for each parameter, by the network's own names and in the dtype to
            compute in; kept by reference, so what is written into them takes effect.

    Raises:
        RuntimeError: names that are missing or unknown (when the result is called).
    """

    @torch.no_grad()
    def teacher(*inputs: object, **named: object) -> Tensor:
        return torch.func.functional_call(network, dict(averages), inputs, named, strict=True)

    return teacher
