"""TR-DiT: a text-conditioned diffusion transformer with token routing (Sparse Guidance, A.1).

`TRDiT.forward` draws nothing and branches on no tensor. It reads: embed -> blocks before the first
route -> routed blocks -> blocks after -> head; a guidance plan may run the first two once for
several branches (`embed`, `before_route`, then `from_route` per branch).

Shape suffixes: B samples, C latent channels, H x W latents, T = H W / patch_size^2 image tokens,
K kept tokens, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2i.models.compilation import compile_each
from t2i.models.layers import (
    CrossAttention,
    Linear,
    LowRankModulation,
    RMSNorm,
    SelfAttention,
    SwiGLU,
    TimeEmbedding,
    add_scale,
    modulate,
    rms_norm,
)
from t2i.models.positions import absolute_positions
from t2i.models.rope import Rotation, axial_rotation, text_rotation
from t2i.models.routes import first_routed
from t2i.models.routing import Kept, blocks_left, gather_tokens, scatter_tokens, segments
from t2i.models.storage import load_model
from t2i.models.tr_dit_config import TRDiTConfig


@dataclass(frozen=True)
class TextContext:
    """What the blocks read of a prompt: computed once, used at every step and by every branch.

    Attributes:
        keys_values: per block, keys and values (B, heads, L, head width).
        mask_B11L: bool, False = padding.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    mask_B11L: Tensor

    def select(self, ids: Tensor) -> TextContext:
        """The samples `ids` (int64, may repeat), in that order."""
        keys_values = tuple((key[ids], value[ids]) for key, value in self.keys_values)
        return TextContext(keys_values, self.mask_B11L[ids])

    def pad_to(self, length: int) -> TextContext:
        """The same context with masked padding up to `length` text tokens."""
        extra = length - self.mask_B11L.shape[-1]
        if extra == 0:
            return self
        keys_values = tuple(
            (F.pad(key, (0, 0, 0, extra)), F.pad(value, (0, 0, 0, extra)))
            for key, value in self.keys_values
        )
        return TextContext(keys_values, F.pad(self.mask_B11L, (0, extra)))


def concatenate_text(contexts: Sequence[TextContext]) -> TextContext:
    """One batch out of several (say, the branches of a guidance method), padded to one length."""
    length = max(context.mask_B11L.shape[-1] for context in contexts)
    padded = [context.pad_to(length) for context in contexts]
    keys_values = tuple(
        (torch.cat([key for key, _ in layer]), torch.cat([value for _, value in layer]))
        for layer in zip(*(context.keys_values for context in padded), strict=True)
    )
    return TextContext(keys_values, torch.cat([context.mask_B11L for context in padded]))


@dataclass(frozen=True)
class Hidden:
    """The state between two blocks: image tokens, time embedding (B, D), rotation of the grid."""

    tokens_BTD: Tensor
    time_BD: Tensor
    rotation: Rotation
    grid: tuple[int, int]

    def select(self, ids: Tensor) -> Hidden:
        """The samples `ids` (int64, may repeat), in that order; before any token is dropped."""
        return replace(self, tokens_BTD=self.tokens_BTD[ids], time_BD=self.time_BD[ids])


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
    ) -> Tensor:
        """(B, T, D) to (B, T, D); T may be the kept tokens with their own rows of `rotation`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time_BD)
        attended = self.self_attention(
            modulate(rms_norm(x_BTD), shift1, scale1), rotation, mask_B11T
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


class TRDiT(nn.Module):
    """Predicts the flow-matching velocity of latents, given time and text."""

    def __init__(self, config: TRDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = Linear(config.in_channels * config.patch_size**2, config.width)
        self.time = TimeEmbedding(config.width)
        self.refiner = TextRefiner(config)
        blocks = [Block(config) for _ in range(config.num_layers)]
        self.blocks: list[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.head = Head(config)
        # drawn last, so that a seed gives all other weights with and without it
        self.scale = TimeEmbedding(config.width, zero=True) if config.scale_input else None

    @classmethod
    def from_config(cls, config: TRDiTConfig) -> TRDiT:
        """A new model with random weights; `with torch.device("meta")` for sizes only."""
        return cls(config)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks and the refiner's in place, see `compile_each`."""
        compile_each([*self.blocks, *self.refiner.blocks], backend)

    def prepare_text(self, text_BLE: Tensor, mask_BL: Tensor) -> TextContext:
        """Refine the text and compute every block's keys and values.

        Args:
            text_BLE: (B, L, text_width) hidden states of the text encoder, any float dtype.
            mask_BL: (B, L) bool, False = padding; each row must have a True, or it yields NaN.
        """
        mask_B11L = mask_BL[:, None, None, :]
        text_BLD = self.refiner(text_BLE, mask_B11L)
        keys_values = tuple(block.project_text(text_BLD) for block in self.blocks)
        return TextContext(keys_values, mask_B11L)

    def forward(
        self,
        latents_BCHW: Tensor,
        timestep_B: Tensor,
        text: TextContext,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        skip_blocks: Sequence[int] = (),
        guidance_scale_B: Tensor | None = None,
    ) -> Tensor:
        """The velocity at (latents, t) for a text.

        Args:
            latents_BCHW: x_t; height and width are multiples of patch_size, any aspect ratio.
            timestep_B: (B,) float32 in [0, 1], 0 = noise, 1 = data.
            text: from `prepare_text`, of the same batch.
            keep_ids_BK: (B, K) int64 ascending tokens that run the routed blocks, the same in
                every route, or (routes, B, K) for a draw per route; None = dense.
            keep_mask_BK: bool of the same shape, False = a place that only fills up the row of a
                sample that keeps fewer than K tokens (`routing.draw_keep`); None = all kept.
            skip_blocks: blocks that are left out for the whole batch (S2 guidance).
            guidance_scale_B: (B,) float32, w of model-guidance (1 = plain, 0 with the null
                condition), for a model with a scale input and only there.

        Returns:
            the shape and dtype of `latents_BCHW`.

        Raises:
            ValueError: sizes that do not divide, kept tokens for a model without routes, a missing
                or unwanted scale.
        """
        hidden = self.embed(latents_BCHW, timestep_B, guidance_scale_B)
        hidden = self.before_route(hidden, text, skip_blocks)
        velocity = self.from_route(hidden, text, keep_ids_BK, keep_mask_BK, skip_blocks)
        return velocity.to(latents_BCHW.dtype)

    def embed(
        self, latents_BCHW: Tensor, timestep_B: Tensor, guidance_scale_B: Tensor | None = None
    ) -> Hidden:
        """Patches to tokens with their absolute positions if the config has any, time (and guidance
        scale) to an embedding, the grid to its rotation."""
        patch_size, (height, width) = self.config.patch_size, latents_BCHW.shape[-2:]
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"latents of {height}x{width}: both sides must be multiples of {patch_size}"
            )
        patches = F.pixel_unshuffle(latents_BCHW.to(self.patch.weight.dtype), patch_size)
        grid = (height // patch_size, width // patch_size)
        tokens_BTD = self.patch(patches.flatten(2).transpose(1, 2))
        if self.config.positions == "rope+absolute":
            assert self.config.smallest_grid is not None
            positions_TD = absolute_positions(
                *grid, self.config.width, self.config.smallest_grid, latents_BCHW.device
            )
            tokens_BTD = tokens_BTD + positions_TD.to(tokens_BTD.dtype)
        return Hidden(
            tokens_BTD=tokens_BTD,
            time_BD=F.silu(add_scale(self.time(timestep_B), self.scale, guidance_scale_B)),
            rotation=axial_rotation(
                *grid, self.config.num_heads, self.config.head_width, latents_BCHW.device
            ),
            grid=grid,
        )

    def before_route(
        self, hidden: Hidden, text: TextContext, skip_blocks: Sequence[int] = ()
    ) -> Hidden:
        """The blocks before the first route (all of them when there is none)."""
        stop = first_routed(self.config.resolved_routes, self.config.num_layers)
        return self._run(hidden, text, blocks_left(0, stop, skip_blocks))

    def from_route(
        self,
        hidden: Hidden,
        text: TextContext,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        skip_blocks: Sequence[int] = (),
    ) -> Tensor:
        """The routed blocks, those after, and the head; arguments as in `forward`."""
        routes, num_layers = self.config.resolved_routes, self.config.num_layers
        for blocks, kept in segments(routes, num_layers, keep_ids_BK, keep_mask_BK, skip_blocks):
            hidden = self._run(hidden, text, blocks, kept)
        patches_BTP = self.head(hidden.tokens_BTD, hidden.time_BD)
        grid_BPhw = patches_BTP.transpose(1, 2).unflatten(-1, hidden.grid)
        return F.pixel_shuffle(grid_BPhw, self.config.patch_size)

    def _run(
        self,
        hidden: Hidden,
        text: TextContext,
        blocks: Sequence[int],
        kept: Kept | None = None,
    ) -> Hidden:
        """Some blocks, in order, on all tokens or on the kept ones; the others stand aside."""
        x_BTD, rotation, mask_B11T = hidden.tokens_BTD, hidden.rotation, None
        if kept is not None:
            x_BTD, rotation = gather_tokens(x_BTD, kept.ids_BK), rotation.rows(kept.ids_BK)
            mask_B11T = None if kept.mask_BK is None else kept.mask_BK[:, None, None, :]
        for i in blocks:
            inputs = (
                x_BTD,
                hidden.time_BD,
                rotation,
                text.keys_values[i],
                text.mask_B11L,
                mask_B11T,
            )
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                # nothing inside draws random numbers, so there is no state to save
                x_BTD = checkpoint(
                    self.blocks[i], *inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_BTD = self.blocks[i](*inputs)
        if kept is not None:
            x_BTD = scatter_tokens(hidden.tokens_BTD, x_BTD, kept.ids_BK, kept.mask_BK)
        return replace(hidden, tokens_BTD=x_BTD)


def load_transformer(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> TRDiT:
    """The TR-DiT that `save_transformer` wrote; see `t2i.models.storage.load_model`."""
    return load_model(TRDiT, TRDiTConfig, folder, device, dtype)
