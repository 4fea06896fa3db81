"""Layers of TR-DiT: attention, SwiGLU, modulation. No linear has a bias; norms reduce in float32.

Shape suffixes: B samples, T or N query tokens, L text tokens, D width, H heads, C head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.models.rope import Rotation, rotate

NORM_EPSILON = 1e-6
NUM_TIME_FREQUENCIES = 128
TIME_SCALE = 1000.0


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) over the last dimension, in the dtype of `x`."""
    return F.rms_norm(x, x.shape[-1:], None, NORM_EPSILON)


def modulate(x_BTD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """adaLN: x (1 + scale) + shift."""
    return torch.addcmul(shift_B1D, x_BTD, 1 + scale_B1D)


def attend(query_BHTC: Tensor, key_BHLC: Tensor, value_BHLC: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention; `mask` is bool, True = attend, broadcast to (B, H, T, L).

    On a CPU in bf16 it is written out: torch's fused kernel runs its backward pass 4 to 10 times
    slower there at head widths of 32 and 64 (torch 2.13, AMX).
    """
    if query_BHTC.device.type != "cpu" or query_BHTC.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query_BHTC, key_BHLC, value_BHLC, attn_mask=mask)
    scaled_BHTC = query_BHTC * query_BHTC.shape[-1] ** -0.5
    scores_BHTL = scaled_BHTC @ key_BHLC.transpose(-1, -2)
    if mask is not None:
        scores_BHTL = scores_BHTL.masked_fill(~mask, -math.inf)
    return scores_BHTL.softmax(dim=-1) @ value_BHLC


class Linear(nn.Linear):
    """Linear without bias, weights drawn from N(0, 1 / fan in) or zero."""

    def __init__(self, in_features: int, out_features: int, zero: bool = False) -> None:
        self.zero = zero
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Called by the constructor."""
        nn.init.normal_(self.weight, std=0.0 if self.zero else self.in_features**-0.5)


class RMSNorm(nn.Module):
    """RMSNorm with a learned weight (D,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """The shape and dtype of `x`, also under autocast."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPSILON)


class SelfAttention(nn.Module):
    """Self-attention with RMSNorm on queries and keys, then rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        # row 0 scales queries, row 1 keys
        self.qk_scale = nn.Parameter(torch.ones(2, width // num_heads))
        self.out = Linear(width, width)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        mask: Tensor | None = None,
        is_identity: bool = False,
    ) -> Tensor:
        """Attend among the tokens of `x_BTD`; rows of `rotation` belong to the same tokens.

        `is_identity`: each token attends to itself alone, whatever the queries and keys.
        """
        qkv_BT3HC = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, -1))
        qk_BT2HC, value_BTHC = qkv_BT3HC[:, :, :2], qkv_BT3HC[:, :, 2]
        if is_identity:
            return self.out(value_BTHC.flatten(2))
        qk_BT2HC = rms_norm(qk_BT2HC) * self.qk_scale.to(qk_BT2HC.dtype).unsqueeze(1)
        # queries and keys turn together: the new dimension is theirs
        together = Rotation(rotation.cos.unsqueeze(-3), rotation.sin.unsqueeze(-3))
        query_BTHC, key_BTHC = rotate(qk_BT2HC, together).unbind(2)
        mixed_BHTC = attend(
            query_BTHC.transpose(1, 2), key_BTHC.transpose(1, 2), value_BTHC.transpose(1, 2), mask
        )
        return self.out(mixed_BHTC.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of image tokens to text; keys and values are computed once per prompt.

    The output projection starts at zero, so that a new block adds nothing.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.query_scale = nn.Parameter(torch.ones(width // num_heads))
        self.key_scale = nn.Parameter(torch.ones(width // num_heads))
        self.out = Linear(width, width, zero=True)

    def project_text(self, text_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (B, H, L, C)."""
        kv_BL2HC = self.key_value(text_BLD).unflatten(-1, (2, self.num_heads, -1))
        key_BLHC, value_BLHC = kv_BL2HC.unbind(2)
        key_BLHC = rms_norm(key_BLHC) * self.key_scale.to(key_BLHC.dtype)
        return key_BLHC.transpose(1, 2), value_BLHC.transpose(1, 2)

    def forward(self, x_BTD: Tensor, key_value: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Attend to the text; mask (B, 1, 1, L) bool, False = padding."""
        query_BTHC = self.query(x_BTD).unflatten(-1, (self.num_heads, -1))
        query_BTHC = rms_norm(query_BTHC) * self.query_scale.to(query_BTHC.dtype)
        mixed_BHTC = attend(query_BTHC.transpose(1, 2), *key_value, mask)
        return self.out(mixed_BHTC.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Feed-forward network w2(silu(w1 x) * w3 x), with w1 and w3 in one linear."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.w1_w3 = Linear(width, 2 * hidden_width)
        self.w2 = Linear(hidden_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Token by token, (B, T, D)."""
        gate, value = self.w1_w3(x_BTD).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * value)


class LowRankModulation(nn.Module):
    """adaLN-LoRA: time embedding -> rank -> `count` vectors of the width, zero at the start."""

    def __init__(self, width: int, rank: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.down = Linear(width, rank)
        self.up = Linear(rank, count * width, zero=True)

    def forward(self, time_BD: Tensor) -> tuple[Tensor, ...]:
        """`count` tensors (B, 1, D)."""
        return self.up(self.down(time_BD)).unsqueeze(1).chunk(self.count, dim=-1)


class TimeEmbedding(nn.Module):
    """t in [0, 1] (or a guidance scale) -> sinusoids -> MLP, (B, D); `zero`: zero at the start."""

    def __init__(self, width: int, zero: bool = False) -> None:
        super().__init__()
        self.hidden = Linear(2 * NUM_TIME_FREQUENCIES, width)
        self.out = Linear(width, width, zero)

    def forward(self, timestep_B: Tensor) -> Tensor:
        """timestep_B in float32; sinusoids are computed there, the rest in the weights' dtype."""
        sinusoids = time_sinusoids(timestep_B).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(sinusoids)))


def add_scale(
    time_BD: Tensor, embedding: nn.Module | None, guidance_scale_B: Tensor | None
) -> Tensor:
    """The embedding of time plus that of the guidance scale, where a network has that input.

    Raises:
        ValueError: a scale for a network without the input, or none for one with it.
    """
    if embedding is None and guidance_scale_B is not None:
        raise ValueError(
            "this model has no scale input: leave the guidance scale out (config key: scale_input)"
        )
    if embedding is not None and guidance_scale_B is None:
        raise ValueError("this model has a scale input (config key: scale_input): give a scale")
    return time_BD if embedding is None else time_BD + embedding(guidance_scale_B)


def time_sinusoids(timestep_B: Tensor, scale: float = TIME_SCALE) -> Tensor:
    """(B, 256) float32: cos and sin of scale t at frequencies from 1 down to 1/10,000 (as DiT)."""
    exponent = torch.arange(NUM_TIME_FREQUENCIES, device=timestep_B.device, dtype=torch.float32)
    frequencies = 10_000 ** (-exponent / NUM_TIME_FREQUENCIES)
    angles = scale * timestep_B.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
