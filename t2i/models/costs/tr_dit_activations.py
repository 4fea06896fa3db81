"""Bytes of activations that TR-DiT keeps for its backward pass, by formula from its structure.

What each operation saves is written down part by part, as in `t2i.models.tr_dit` and
`t2i.models.layers`. A tensor that two operations save counts once. Free of torch. All functions give
bytes of one sample, unless they say otherwise.
"""

from __future__ import annotations

from t2i.models.costs.kernels import (
    FLOAT,
    Activations,
    Kernels,
    attention_output,
    meets_block,
    routing_bytes,
)
from t2i.models.costs.macs import TIME_SINUSOIDS
from t2i.models.routes import num_kept
from t2i.models.tr_dit_config import TRDiTConfig


def tr_dit_activations(
    config: TRDiTConfig,
    micro_batch: int,
    num_tokens: int,
    text_tokens: int,
    gamma: float,
    kernels: Kernels,
) -> Activations:
    """See `t2i.models.costs.activations.activations`."""
    kept = num_kept(num_tokens, gamma)
    routes = config.resolved_routes if gamma > 0 else ()
    num_routed = sum(last - first + 1 for first, last in routes)
    num_dense = config.num_layers - num_routed
    bytes_dense = block_bytes(config, num_tokens, text_tokens, kernels)
    bytes_routed = block_bytes(config, kept, text_tokens, kernels)
    recomputed = 0
    if config.gradient_checkpointing:
        recomputed = micro_batch * bytes_dense
        bytes_dense, bytes_routed = (
            tokens * config.width * kernels.element for tokens in (num_tokens, kept)
        )
    sample = num_dense * bytes_dense + num_routed * bytes_routed
    sample += text_bytes(config, text_tokens, kernels)
    sample += ends_bytes(config, num_tokens, kernels, is_routed=gamma > 0)
    sample += len(routes) * routing_bytes(config.width, kept, kernels)
    rotations = rotation_bytes(
        config, micro_batch, num_tokens, kept, num_dense, num_routed, kernels
    )
    return Activations(micro_batch * sample + rotations, recomputed)


def block_bytes(config: TRDiTConfig, num_tokens: int, text_tokens: int, kernels: Kernels) -> int:
    """One block on `num_tokens` image tokens."""
    width, element = config.width, kernels.element
    modulated = norm(width, 1, kernels, weighted=False) + 2 * width * element  # normed, shifted
    gated = width * element  # what a gate is multiplied with
    token = 2 * modulated + 2 * gated
    token += self_attention(config, num_tokens, kernels) + swiglu(config, kernels)
    token += (
        norm(width, 1, kernels, weighted=True) + width * element
    )  # cross_norm, the query's input
    token += norm(width, config.num_heads, kernels, weighted=False)  # of queries
    token += 2 * width * element  # normed queries, and scaled ones
    token += attention_output(width, config.num_heads, text_tokens, kernels)
    # low rank, six vectors, 1 + scale twice
    modulation = (config.adaln_rank + 8 * width) * element
    copies = 2 * text_tokens * width * element if kernels.has_scores else 0  # of keys and values
    return num_tokens * token + modulation + copies


def norm(width: int, rows: int, kernels: Kernels, weighted: bool) -> int:
    """Input, a number per row, and, if it is written out, the result that the weight multiplies."""
    inputs = 2 if weighted and kernels.norm_output else 1
    return inputs * width * kernels.norm_input + rows * FLOAT


def self_attention(config: TRDiTConfig, num_keys: int, kernels: Kernels) -> int:
    """Per token: values, queries and keys (given, normed, turned), the mixed values."""
    width, element = config.width, kernels.element
    token = width * element + norm(2 * width, 2 * config.num_heads, kernels, weighted=False)
    return (
        token + 4 * width * element + attention_output(width, config.num_heads, num_keys, kernels)
    )


def swiglu(config: TRDiTConfig, kernels: Kernels) -> int:
    """Per token: gate and value, silu of the gate, their product."""
    return 4 * config.ffn_width * kernels.element


def text_bytes(config: TRDiTConfig, text_tokens: int, kernels: Kernels) -> int:
    """Refiner, and all blocks' keys and values (the keys: given, normed, scaled)."""
    width, element = config.width, kernels.element
    token = norm(config.text_width, 1, kernels, weighted=True) + config.text_width * element
    layer = 2 * (norm(width, 1, kernels, weighted=True) + width * element)
    layer += self_attention(config, text_tokens, kernels) + swiglu(config, kernels)
    token += config.num_refiner_layers * layer
    token += norm(width, 1, kernels, weighted=True) + width * element
    key = norm(width, config.num_heads, kernels, weighted=False) + width * element
    # where attention is written out, it keeps copies instead of scaled keys and of values
    if not kernels.has_scores or config.gradient_checkpointing:
        key += 2 * width * element
    token += config.num_layers * key
    return text_tokens * token


def ends_bytes(config: TRDiTConfig, num_tokens: int, kernels: Kernels, is_routed: bool) -> int:
    """Patches, time embedding, heads, and what SPRINT's fusion joins."""
    width, element = config.width, kernels.element
    patch = config.in_channels * config.patch_size**2 * element
    head = norm(width, 1, kernels, weighted=False) + 2 * width * element
    time = (TIME_SINUSOIDS + 4 * width) * element
    token, vectors = patch + head, 3 * width * element
    if config.internal_after is not None:
        is_shared = meets_block(config, is_routed) and kernels.norm_input == element
        token, vectors = token + head - width * element * is_shared, 2 * vectors
    if config.after_route == "fuse":
        token += 2 * width * element
    return num_tokens * token + time + vectors


def rotation_bytes(
    config: TRDiTConfig,
    micro_batch: int,
    num_tokens: int,
    kept: int,
    num_dense: int,
    num_routed: int,
    kernels: Kernels,
) -> int:
    """Of a micro-batch: cosines and sines of a quarter of the width, per sample for kept tokens.

    Each block casts them to its precision; in fp32, or when blocks are recomputed, the ones in
    fp32 are all there is.
    """
    dense = 2 * num_tokens * config.width // 4
    routed = 2 * micro_batch * kept * config.width // 4
    if kernels.element == FLOAT or config.gradient_checkpointing:
        return FLOAT * (dense + (routed if num_routed else 0))
    return kernels.element * (num_dense * dense + num_routed * routed)
