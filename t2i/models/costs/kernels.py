"""What kernels keep for a backward pass, and the bytes that a network's formula adds up to.

Kernels run one by one here (torch.compile keeps less). Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t2i.models.routes import first_routed
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig

FLOAT = 4
INDEX = 8


@dataclass(frozen=True)
class Kernels:
    """What the kernels of a device save.

    Attributes:
        element: bytes of an activation: 2 in bf16, 4 in fp32.
        norm_input: bytes of an element of an RMSNorm's input. A GPU's RMSNorm saves it as it is; on
            a CPU torch writes the norm out, in fp32.
        norm_output: whether the norm saves its result before the weight, too (written out).
        has_scores: whether attention saves its probabilities (written out) instead of a logarithm
            of a sum for each query.
    """

    element: int
    norm_input: int
    norm_output: bool
    has_scores: bool

    @classmethod
    def of(cls, precision: Literal["bf16", "fp32"], on_gpu: bool) -> Kernels:
        """Those of a GPU, or of a CPU as torch 2.13 and `t2i.models.layers.attend` have them."""
        element = 2 if precision == "bf16" else FLOAT
        if on_gpu:
            return cls(element, element, norm_output=False, has_scores=False)
        return cls(element, FLOAT, norm_output=True, has_scores=precision == "bf16")


@dataclass(frozen=True)
class Activations:
    """Bytes of a micro-batch.

    Attributes:
        saved: held between forward and backward.
        recomputed: of one block, made again in the backward pass (gradient checkpointing).
    """

    saved: int
    recomputed: int

    @property
    def peak(self) -> int:
        """When the backward pass starts, without its own gradients."""
        return self.saved + self.recomputed


def attention_output(width: int, num_heads: int, num_keys: int, kernels: Kernels) -> int:
    """Per query: the mixed values, and the probabilities or the logarithm of their sum."""
    scores = num_keys * kernels.element if kernels.has_scores else FLOAT
    return width * kernels.element + num_heads * scores


def routing_bytes(width: int, kept: int, kernels: Kernels) -> int:
    """Of one gather and scatter: the indices of both, and the tokens that come back."""
    return kept * (2 * INDEX + width * kernels.element)


def meets_block(config: TRDiTConfig | SiTConfig, is_routed: bool) -> bool:
    """Whether a block reads the very tokens that the internal head reads: then both save one input.

    Where tokens leave for the route, it reads those that were gathered.
    """
    assert config.internal_after is not None
    first = first_routed(config.resolved_routes, config.num_layers)
    return not is_routed or config.internal_after + 1 < first
