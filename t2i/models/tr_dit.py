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
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.models.compilation import compile_each
from t2i.models.fusion import Fusion, leave_route
from t2i.models.layers import Linear, TimeEmbedding, add_scale
from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.positions import absolute_positions
from t2i.models.recompute import call_block
from t2i.models.rope import Rotation, axial_rotation
from t2i.models.routes import first_routed
from t2i.models.routing import Kept, blocks_left, gather_tokens, segments
from t2i.models.storage import load_model
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.models.tr_dit_layers import Block, Head, TextRefiner


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
    """The state between two blocks: image tokens, time embedding (B, D), rotation of the grid.

    `middle_BTD`: the tokens that an internal head reads, once the blocks before it have run.
    """

    tokens_BTD: Tensor
    time_BD: Tensor
    rotation: Rotation
    grid: tuple[int, int]
    middle_BTD: Tensor | None = None

    def select(self, ids: Tensor) -> Hidden:
        """The samples `ids` (int64, may repeat), in that order; before any token is dropped."""
        middle_BTD = None if self.middle_BTD is None else self.middle_BTD[ids]
        return replace(
            self,
            tokens_BTD=self.tokens_BTD[ids],
            time_BD=self.time_BD[ids],
            middle_BTD=middle_BTD,
        )


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
        # drawn last, so that a seed gives all other weights with and without these
        self.scale = TimeEmbedding(config.width, zero=True) if config.scale_input else None
        is_fused, has_internal = config.after_route == "fuse", config.internal_after is not None
        self.fusion = Fusion(Linear(2 * config.width, config.width)) if is_fused else None
        self.internal_head = Head(config) if has_internal else None

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
        perturbation: Perturbation = UNPERTURBED,
        guidance_scale_B: Tensor | None = None,
        drop_deep_B: Tensor | None = None,
        internal: bool = False,
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
            perturbation: what the blocks do differently, for the whole batch (weak branches).
            guidance_scale_B: (B,) float32, w of model-guidance (1 = plain, 0 with the null
                condition), for a model with a scale input and only there.
            drop_deep_B: (B,) bool, samples of which no token comes out of a route (SPRINT's
                training); None = of none.
            internal: the internal head's velocity too.

        Returns:
            the shape and dtype of `latents_BCHW`; with `internal` (2, B, C, H, W), the velocity and
            that of the internal head.

        Raises:
            ValueError: sizes that do not divide, kept tokens for a model without routes, a missing
                or unwanted scale.
        """
        hidden = self.embed(latents_BCHW, timestep_B, guidance_scale_B)
        hidden = self.before_route(hidden, text, perturbation)
        velocity = self.from_route(
            hidden, text, keep_ids_BK, keep_mask_BK, perturbation, drop_deep_B
        )
        if internal:
            velocity = torch.stack((velocity, self.internal_velocity(hidden, text)))
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
        self, hidden: Hidden, text: TextContext, perturbation: Perturbation = UNPERTURBED
    ) -> Hidden:
        """The blocks before the first route (all of them when there is none)."""
        start, stop = 0, first_routed(self.config.resolved_routes, self.config.num_layers)
        if self.config.internal_after is not None:
            start = self.config.internal_after + 1
            blocks = blocks_left(0, start, perturbation.skip_blocks)
            tokens_BTD = self._run(hidden, text, blocks, None, perturbation)
            hidden = replace(hidden, tokens_BTD=tokens_BTD, middle_BTD=tokens_BTD)
        blocks = blocks_left(start, stop, perturbation.skip_blocks)
        tokens_BTD = self._run(hidden, text, blocks, None, perturbation)
        return replace(hidden, tokens_BTD=tokens_BTD)

    def from_route(
        self,
        hidden: Hidden,
        text: TextContext,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        perturbation: Perturbation = UNPERTURBED,
        drop_deep_B: Tensor | None = None,
    ) -> Tensor:
        """The routed blocks, those after, and the head; arguments as in `forward`."""
        routes, num_layers = self.config.resolved_routes, self.config.num_layers
        skipped = perturbation.skip_blocks, perturbation.skip_deep_path
        for part in segments(routes, num_layers, keep_ids_BK, keep_mask_BK, *skipped):
            tokens_BTD = self._run(hidden, text, part.blocks, part.kept, perturbation)
            if part.is_route:
                tokens_BTD = leave_route(
                    hidden.tokens_BTD,
                    None if perturbation.skip_deep_path else tokens_BTD,
                    part.kept,
                    drop_deep_B,
                    self.fusion,
                )
            hidden = replace(hidden, tokens_BTD=tokens_BTD)
        return self._velocity(self.head, hidden.tokens_BTD, hidden)

    def internal_velocity(self, hidden: Hidden, text: TextContext) -> Tensor:
        """The internal head's velocity (Internal Guidance), from `before_route`'s state."""
        assert self.internal_head is not None
        assert hidden.middle_BTD is not None
        return self._velocity(self.internal_head, hidden.middle_BTD, hidden)

    def _velocity(self, head: Head, tokens_BTD: Tensor, hidden: Hidden) -> Tensor:
        """What a head makes of some tokens, (B, C, H, W)."""
        patches_BTP = head(tokens_BTD, hidden.time_BD)
        grid_BPhw = patches_BTP.transpose(1, 2).unflatten(-1, hidden.grid)
        return F.pixel_shuffle(grid_BPhw, self.config.patch_size)

    def _run(
        self,
        hidden: Hidden,
        text: TextContext,
        blocks: Sequence[int],
        kept: Kept | None,
        perturbation: Perturbation,
    ) -> Tensor:
        """All tokens, or the kept ones, after some blocks in order: (B, T, D) or (B, K, D)."""
        x_BTD, rotation, mask_B11T = hidden.tokens_BTD, hidden.rotation, None
        if kept is not None:
            x_BTD, rotation = gather_tokens(x_BTD, kept.ids_BK), rotation.rows(kept.ids_BK)
            mask_B11T = None if kept.mask_BK is None else kept.mask_BK[:, None, None, :]
        for i in blocks:
            others = (
                hidden.time_BD,
                rotation,
                text.keys_values[i],
                text.mask_B11L,
                mask_B11T,
                i in perturbation.identity_attention,
            )
            recompute = self.config.gradient_checkpointing
            block = partial(call_block, self.blocks[i], recompute, others)
            x_BTD = perturbation.run(i, x_BTD, block)
        return x_BTD


def load_transformer(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> TRDiT:
    """The TR-DiT that `save_transformer` wrote; see `t2i.models.storage.load_model`."""
    return load_model(TRDiT, TRDiTConfig, folder, device, dtype)
