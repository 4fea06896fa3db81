"""All randomness of the system: pure functions of (seed, stream, step, sample); nobody else seeds.

Numbers come from the counter-based generator Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011), written in integer tensor operations. So a sample's numbers
depend on its own id and never on its batch, rank or device, and a whole batch costs a few kernels.
(seed, stream) give the 64-bit key; (index, step, sample id) are the 128-bit counter, so two
different samples or steps can never share a counter.

Shape suffixes: B samples, N words or numbers per sample.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

WORD_MASK = 0xFFFFFFFF
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10


def words(seed: int, stream: str, step: int, sample_ids_B: Tensor, count: int) -> Tensor:
    """Uniform 32-bit words, the source of every other draw.

    Args:
        seed: the run's or the image's seed, any int.
        stream: what the numbers are for, e.g. "noise"; different streams are independent.
        step: training or sampling step, in [0, 2**32).
        sample_ids_B: (B,) int64, any device; the result lies on the same one.
        count: words per sample, in [1, 2**34).

    Returns:
        (B, count) int64 with values in [0, 2**32), the same bits on every device.
    """
    assert sample_ids_B.dtype == torch.int64, f"sample ids must be int64, not {sample_ids_B.dtype}"
    assert 0 <= step <= WORD_MASK, f"step {step} is outside [0, 2**32)"
    index_N = torch.arange(-(-count // 4), device=sample_ids_B.device)
    low_B1 = (sample_ids_B & WORD_MASK).unsqueeze(1)
    high_B1 = ((sample_ids_B >> 32) & WORD_MASK).unsqueeze(1)
    counter = (index_N, torch.full_like(index_N, step), low_B1, high_B1)
    blocks = torch.broadcast_tensors(*philox4x32(counter, stream_key(seed, stream)))
    return torch.stack(blocks, dim=-1).flatten(1)[:, :count]


def uniform(
    seed: int,
    stream: str,
    step: int,
    sample_ids_B: Tensor,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2**-24.

    Args:
        seed, stream, step, sample_ids_B: see `words`.
        shape: of one sample's numbers; () for one number per sample.
        device: where to draw; the values do not depend on it.

    Returns:
        (B, *shape) float32.
    """
    words_BN = words(seed, stream, step, sample_ids_B.to(device), math.prod(shape))
    return ((words_BN >> 8).float() * 2**-24).reshape(-1, *shape)


def normal(
    seed: int,
    stream: str,
    step: int,
    sample_ids_B: Tensor,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal numbers (Box-Muller); arguments as in `uniform`.

    Returns:
        (B, *shape) float32; equal on every device up to the rounding of log, cos and sin.
    """
    count = math.prod(shape)
    words_BN = words(seed, stream, step, sample_ids_B.to(device), count + count % 2)
    # 2 words -> 2 numbers; + 0.5 keeps the logarithm finite, so |number| <= 6.8
    radius_BM = ((words_BN[:, 0::2].float() + 0.5) * 2**-32).log().mul(-2).sqrt()
    angle_BM = words_BN[:, 1::2].float() * (2 * math.pi * 2**-32)
    numbers_BN = torch.stack((radius_BM * angle_BM.cos(), radius_BM * angle_BM.sin()), dim=-1)
    return numbers_BN.flatten(1)[:, :count].reshape(-1, *shape)


def generator(
    seed: int, stream: str, step: int, sample: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator for calls that want one; prefer `uniform`, `normal` and `words`.

    torch's CPU generator uses 32 bits of its seed and its CUDA generator draws other numbers, so
    unlike the functions above this one depends on the device.
    """
    first, second = words(seed, stream, step, torch.tensor([sample]), 2)[0].tolist()
    # manual_seed takes the range of int64
    return torch.Generator(device).manual_seed((first << 31) ^ second)


def stream_key(seed: int, stream: str) -> tuple[int, int]:
    """The two 32-bit words of the Philox key, from a 64-bit BLAKE2 hash of seed and stream."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One block of Philox4x32-10 per counter: four 32-bit words, held in int64, shapes broadcast."""
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for _ in range(PHILOX_ROUNDS):
        high0, low0 = _multiply(c0, PHILOX_MULTIPLIERS[0])
        high1, low1 = _multiply(c2, PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 = (key0 + PHILOX_KEY_STEPS[0]) & WORD_MASK
        key1 = (key1 + PHILOX_KEY_STEPS[1]) & WORD_MASK
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; int64 wraps around, so no bit is lost."""
    product = word * multiplier
    return (product >> 32) & WORD_MASK, product & WORD_MASK
