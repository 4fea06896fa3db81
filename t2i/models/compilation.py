"""torch.compile of a model's blocks, in place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

# Torch gives up after eight shapes. In training there are the image buckets, routed and dense, times
# the lengths of captions (`TextEncoderConfig.bucket`); in sampling the tokens that a branch keeps,
# which a schedule changes at every step, times the batches (the last one is smaller).
MOST_SHAPES = 256


def compile_each(
    blocks: Iterable[nn.Module], backend: str = "inductor", whole: bool = True
) -> None:
    """Compile blocks for static shapes; equal blocks share one compilation for each set of shapes.

    On a CPU in bf16 a nano training step takes a quarter less CPU time (600 against 800 ms),
    after a compilation of a minute or more. ``whole``: refuse blocks that cannot be one graph, as those
    of transformers, whose hooks break it.
    """
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    for block in blocks:
        block.compile(fullgraph=whole, dynamic=False, backend=backend)
