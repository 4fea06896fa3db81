"""Randomness by name: (seed, stream, step, sample) -> generator or draws. Nobody else seeds.

A draw belongs to its sample: it does not depend on the batch, rank or world size that the sample
is computed in. The four coordinates are hashed to a 63-bit seed of a CPU generator, so that
draws are the same on every device.
"""

from __future__ import annotations

import hashlib
import struct

import torch
from torch import Tensor


def generator(seed: int, stream: str, step: int, sample: int) -> torch.Generator:
    """A CPU generator of its own for one sample of one stream at one step."""
    key = struct.pack("<qqq", seed, step, sample) + stream.encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(seed: int, stream: str, step: int, sample_ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal draws, float32 (B, *shape), one generator per entry of ``sample_ids`` (B,)."""
    return torch.stack(
        [
            torch.randn(shape, generator=generator(seed, stream, step, s))
            for s in sample_ids.tolist()
        ]
    )


def uniform(
    seed: int, stream: str, step: int, sample_ids: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Uniform draws in [0, 1), float32 (B, *shape), one generator per entry of ``sample_ids``."""
    return torch.stack(
        [torch.rand(shape, generator=generator(seed, stream, step, s)) for s in sample_ids.tolist()]
    )
