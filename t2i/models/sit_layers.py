"""Layers of SiT, DiT and MaskDiT: adaLN-Zero transformer blocks with biases, fixed positions.

Weights start as in DiT (Peebles & Xie, arXiv 2212.09748): linears Xavier uniform, embeddings of
time and label N(0, 0.02^2), modulations and the head zero, biases zero.

Shape suffixes: B samples, T tokens, D width, E width of the condition, P numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.models.layers import NUM_TIME_FREQUENCIES, attend, modulate, time_sinusoids
from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.recompute import call_block

NORM_EPSILON = 1e-6
EMBEDDING_STD = 0.02
MLP_EXPANSION = 4
POSITION_BASE = 10_000


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without weights over the last dimension, in the dtype of `x`, also in autocast."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON).to(x.dtype)


def sincos_positions(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions of a grid, row-major: (height * width, dim) float32.

    Sines then cosines of x = 0, 1, ... at dim / 4 frequencies from 1 towards 1/10,000, then the
    same of y (MAE and DiT). Recomputed at each forward, never stored: any grid is as good.
    """
    exponent = torch.arange(dim // 4, device=device, dtype=torch.float64) / (dim // 4)
    y_h, x_w = (torch.arange(side, device=device, dtype=torch.float64) for side in (height, width))
    y_hw, x_hw = torch.meshgrid(y_h, x_w, indexing="ij")
    angles_2TF = torch.stack((x_hw, y_hw)).flatten(1).unsqueeze(-1) * POSITION_BASE**-exponent
    waves_2TD = torch.cat((angles_2TF.sin(), angles_2TF.cos()), dim=-1)
    return torch.cat(waves_2TD.unbind(0), dim=-1).float()


class Linear(nn.Linear):
    """Linear with bias; the bias starts at zero, the weight Xavier uniform, N(0, std^2) or zero."""

    def __init__(self, in_features: int, out_features: int, std: float | None = None) -> None:
        self.std = std
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Called by the constructor."""
        nn.init.zeros_(self.bias)
        if self.std is None:
            nn.init.xavier_uniform_(self.weight)
        else:
            nn.init.normal_(self.weight, std=self.std)


class PatchEmbedding(Linear):
    """Patches of latents to tokens with their positions."""

    def __init__(self, in_channels: int, patch_size: int, width: int) -> None:
        super().__init__(in_channels * patch_size**2, width)
        self.patch_size = patch_size

    def grid(self, latents_BCHW: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens.

        Raises:
            ValueError: height or width is not a multiple of the patch size.
        """
        patch_size, (height, width) = self.patch_size, latents_BCHW.shape[-2:]
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"latents of {height}x{width}: both sides must be multiples of {patch_size}"
            )
        return height // patch_size, width // patch_size

    def forward(self, latents_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) of any float dtype to (B, T, D) in the weights' dtype."""
        patches_BPhw = F.pixel_unshuffle(latents_BCHW.to(self.weight.dtype), self.patch_size)
        tokens_BTD = super().forward(patches_BPhw.flatten(2).transpose(1, 2))
        grid = self.grid(latents_BCHW)
        positions_TD = sincos_positions(*grid, self.out_features, latents_BCHW.device)
        return tokens_BTD + positions_TD.to(tokens_BTD.dtype)


def unpatchify(patches_BTP: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """(B, T, channels * patch_size^2) to (B, channels, H, W)."""
    return F.pixel_shuffle(patches_BTP.transpose(1, 2).unflatten(-1, grid), patch_size)


class TimeEmbedding(nn.Module):
    """Time -> sinusoids -> MLP, (B, E); `zero`: zero at the start.

    Time is taken as it is: t in [0, 1], a diffusion step, or a guidance scale in its place.
    """

    def __init__(self, width: int, zero: bool = False) -> None:
        super().__init__()
        self.hidden = Linear(2 * NUM_TIME_FREQUENCIES, width, EMBEDDING_STD)
        self.out = Linear(width, width, 0.0 if zero else EMBEDDING_STD)

    def forward(self, timestep_B: Tensor) -> Tensor:
        """timestep_B in float32; sinusoids are computed there, the rest in the weights' dtype."""
        sinusoids = time_sinusoids(timestep_B, scale=1.0).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(sinusoids)))


class LabelEmbedding(nn.Embedding):
    """Classes 0 ... num_classes - 1, and the null class num_classes, to (B, E)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__(num_classes + 1, width)

    def reset_parameters(self) -> None:
        """Called by the constructor."""
        nn.init.normal_(self.weight, std=EMBEDDING_STD)


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(
        self, x_BTD: Tensor, mask_B11T: Tensor | None = None, is_identity: bool = False
    ) -> Tensor:
        """Attend among the tokens of `x_BTD`, those whose mask is False left out.

        `is_identity`: each token attends to itself alone, whatever the queries and keys.
        """
        qkv_BT3HC = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, -1))
        if is_identity:
            return self.out(qkv_BT3HC[:, :, 2].flatten(2))
        query_BHTC, key_BHTC, value_BHTC = qkv_BT3HC.transpose(1, 3).unbind(2)
        mixed_BHTC = attend(query_BHTC, key_BHTC, value_BHTC, mask_B11T)
        return self.out(mixed_BHTC.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU (tanh form), linear; hidden width 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = Linear(width, MLP_EXPANSION * width)
        self.out = Linear(MLP_EXPANSION * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Token by token, (B, T, D)."""
        return self.out(F.gelu(self.hidden(x_BTD), approximate="tanh"))


class Block(nn.Module):
    """Self-attention and MLP with adaLN-Zero: a new block is the identity."""

    def __init__(self, width: int, num_heads: int, condition_width: int) -> None:
        super().__init__()
        self.modulation = Linear(condition_width, 6 * width, std=0.0)
        self.attention = SelfAttention(width, num_heads)
        self.mlp = MLP(width)

    def forward(
        self,
        x_BTD: Tensor,
        condition_BE: Tensor,
        mask_B11T: Tensor | None = None,
        identity_attention: bool = False,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); the condition has been through its SiLU."""
        shifts = self.modulation(condition_BE).unsqueeze(1).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = shifts
        attended = self.attention(
            modulate(layer_norm(x_BTD), shift1, scale1), mask_B11T, identity_attention
        )
        x_BTD = torch.addcmul(x_BTD, gate1, attended)
        fed = self.mlp(modulate(layer_norm(x_BTD), shift2, scale2))
        return torch.addcmul(x_BTD, gate2, fed)


class Head(nn.Module):
    """adaLN, then a linear: to patches (zero at the start), or to a decoder's width."""

    def __init__(
        self, width: int, condition_width: int, out_width: int, std: float | None = 0.0
    ) -> None:
        super().__init__()
        self.modulation = Linear(condition_width, 2 * width, std=0.0)
        self.out = Linear(width, out_width, std)

    def forward(self, x_BTD: Tensor, condition_BE: Tensor) -> Tensor:
        """(B, T, D) to (B, T, out_width)."""
        shift, scale = self.modulation(condition_BE).unsqueeze(1).chunk(2, dim=-1)
        return self.out(modulate(layer_norm(x_BTD), shift, scale))


def run_blocks(
    blocks: nn.ModuleList,
    numbers: Iterable[int],
    x_BTD: Tensor,
    condition_BE: Tensor,
    gradient_checkpointing: bool,
    token_mask_BT: Tensor | None = None,
    perturbation: Perturbation = UNPERTURBED,
) -> Tensor:
    """The blocks of some numbers, one after the other; no token attends to those of mask False."""
    mask_B11T = None if token_mask_BT is None else token_mask_BT[:, None, None, :]
    for number in numbers:
        others = condition_BE, mask_B11T, number in perturbation.identity_attention
        block = partial(call_block, blocks[number], gradient_checkpointing, others)
        x_BTD = perturbation.run(number, x_BTD, block)
    return x_BTD
