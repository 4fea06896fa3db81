"""A whole copy of a network with averaged weights that takes memory only while it is used."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from t2i.training.backbone import Backbone


class AveragedCopy:
    """An empty copy of a backbone's network, `filled` for a while with averaged weights.

    The engine and its (perhaps sharded) weights are not touched, so nothing has to be put back.

    Attributes:
        network: a `flow_matching.Network`, as `Backbone.network`.
        model: the part of it that checkpoints hold, as `Backbone.model`.
    """

    def __init__(self, backbone: Backbone) -> None:
        """The backbone's network must not be wrapped yet: an engine may shard its weights."""
        empty = {
            id(parameter): nn.Parameter(
                torch.empty_like(parameter, device="meta"), requires_grad=False
            )
            for parameter in backbone.network.parameters()
        }
        # both in one call, so that the copied model is the one inside the copied network
        self.network, self.model = copy.deepcopy((backbone.network, backbone.model), empty)
        self.network.eval()

    @contextmanager
    def filled(
        self, averages: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: torch.device
    ) -> Iterator[None]:
        """Within the context the copy has its weights: ``dtype`` x parameters bytes on ``device``.

        Args:
            averages: (name, whole tensor) of each of the model's parameters; iterated to the end.
        """
        weights = {name: average.to(device, dtype) for name, average in averages}
        self.model.load_state_dict(weights, assign=True)
        del weights
        try:
            yield
        finally:
            self.network.to("meta")
