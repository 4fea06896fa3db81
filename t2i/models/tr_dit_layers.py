"""Parts of TR-DiT: its block, the refiner of text, the head. No linear has a bias.

Shape suffixes: B samples, T image tokens, L text tokens, D width, E width of the text encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t2i.models.layers import (
    CrossAttention,
    Linear,
    LowRankModulation,
    RMSNorm,
    SelfAttention,
    SwiGLU,
    modulate,
    rms_norm,
)
from t2i.models.rope import Rotation, text_rotation
from t2i.models.tr_dit_config import TRDiTConfig


class Block(nn.Module):
    """Self-attention, cross-attention to text, SwiGLU; adaLN on the first and the last.

    With its gates and the output of its cross-attention at zero, a new block is the identity.
    """

    def __init__(self, config: TRDiTConfig) -> None:
        super().__init__()
        self.modulation = LowRankModulation(config.width, config.adaln_rank, count=6)
        self.self_attention = SelfAttention(config.width, config.num_heads)
        self.cross_norm = RMSNorm(config.width)
        self.cross_attention = CrossAttention(config.width, config.num_heads)
        self.ffn = SwiGLU(config.width, config.ffn_width)

    def forward(
        self,
        x_BTD: Tensor,
        time_BD: Tensor,
        rotation: Rotation,
        key_value: tuple[Tensor, Tensor],
        mask_B11L: Tensor,
        mask_B11T: Tensor | None = None,
        identity_attention: bool = False,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); T may be the kept tokens with their own rows of `rotation`.

        `identity_attention`: each image token attends to itself alone (and to the text).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time_BD)
        attended = self.self_attention(
            modulate(rms_norm(x_BTD), shift1, scale1), rotation, mask_B11T, identity_attention
        )
        x_BTD = torch.addcmul(x_BTD, gate1, attended)
        x_BTD = x_BTD + self.cross_attention(self.cross_norm(x_BTD), key_value, mask_B11L)
        fed = self.ffn(modulate(rms_norm(x_BTD), shift2, scale2))
        return torch.addcmul(x_BTD, gate2, fed)

    def project_text(self, text_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of refined text, each (B, heads, L, head width)."""
        return self.cross_attention.project_text(text_BLD)


class RefinerBlock(nn.Module):
    """A bidirectional transformer layer over text: RMSNorm, attention with RoPE, SwiGLU."""

    def __init__(self, config: TRDiTConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = SelfAttention(config.width, config.num_heads)
        self.ffn_norm = RMSNorm(config.width)
        self.ffn = SwiGLU(config.width, config.ffn_width)

    def forward(self, x_BLD: Tensor, rotation: Rotation, mask_B11L: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotation, mask_B11L)
        return x_BLD + self.ffn(self.ffn_norm(x_BLD))


class TextRefiner(nn.Module):
    """The trained layers over the frozen text encoder's states, at the width of the model.

    Positions are one-dimensional RoPE from 0 at the caption's first token: the encoder's states
    know their order, but the attention between them should not have to read it from there.
    """

    def __init__(self, config: TRDiTConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.input_norm = RMSNorm(config.text_width)
        self.input = Linear(config.text_width, config.width)
        self.blocks = nn.ModuleList(RefinerBlock(config) for _ in range(config.num_refiner_layers))
        self.norm = RMSNorm(config.width)

    def forward(self, text_BLE: Tensor, mask_B11L: Tensor) -> Tensor:
        """(B, L, text width) to (B, L, D)."""
        x_BLD = self.input(self.input_norm(text_BLE.to(self.input.weight.dtype)))
        rotation = text_rotation(x_BLD.shape[1], self.head_width, x_BLD.device)
        for block in self.blocks:
            x_BLD = block(x_BLD, rotation, mask_B11L)
        return self.norm(x_BLD)


class Head(nn.Module):
    """adaLN, then a linear from the width to a patch, zero at the start."""

    def __init__(self, config: TRDiTConfig) -> None:
        super().__init__()
        self.modulation = Linear(config.width, 2 * config.width, zero=True)
        self.out = Linear(config.width, config.in_channels * config.patch_size**2, zero=True)

    def forward(self, x_BTD: Tensor, time_BD: Tensor) -> Tensor:
        """(B, T, in_channels * patch_size^2)."""
        shift, scale = self.modulation(time_BD).unsqueeze(1).chunk(2, dim=-1)
        return self.out(modulate(rms_norm(x_BTD), shift, scale))
