"""Bytes of activations that SiT and MaskDiT keep for their backward pass, by formula.

What each operation saves is written down part by part, as in `t2i.models.sit_layers`. A tensor that
two operations save counts once. Free of torch. All functions give bytes of one sample, unless they
say otherwise.
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
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.routes import num_kept
from t2i.models.sit_config import SiTConfig

MLP_EXPANSION = 4


def sit_activations(
    config: SiTConfig, micro_batch: int, num_tokens: int, gamma: float, kernels: Kernels
) -> Activations:
    """See `t2i.models.costs.activations.activations`."""
    kept = num_kept(num_tokens, gamma)
    routes = config.resolved_routes if gamma > 0 else ()
    num_routed = sum(last - first + 1 for first, last in routes)
    width, heads = config.width, config.num_heads
    dense, routed = (block_bytes(width, heads, tokens, kernels) for tokens in (num_tokens, kept))
    recomputed = 0
    if config.gradient_checkpointing:
        recomputed = dense
        dense, routed = (tokens * width * kernels.element for tokens in (num_tokens, kept))
    sample = (config.num_layers - num_routed) * dense + num_routed * routed
    sample += len(routes) * routing_bytes(width, kept, kernels)
    # the condition is made before and after the first route begins, and for each head inside
    num_heads = 1 + (config.internal_after is not None)
    sample += embedding_bytes(config, num_tokens, kernels, num_conditions=1 + num_heads)
    sample += num_heads * head_bytes(width, num_tokens, kernels)
    if config.internal_after is not None and meets_block(config, gamma > 0):
        sample -= num_tokens * width * kernels.element
    if config.after_route == "fuse":
        sample += 2 * num_tokens * width * kernels.element
    return Activations(micro_batch * sample, micro_batch * recomputed)


def mask_dit_activations(
    config: MaskDiTConfig, micro_batch: int, num_tokens: int, gamma: float, kernels: Kernels
) -> Activations:
    """See `t2i.models.costs.activations.activations`."""
    visible = num_kept(num_tokens, gamma)
    width, decoder_width = config.width, config.decoder_width
    encoder = block_bytes(width, config.num_heads, visible, kernels)
    decoder = block_bytes(decoder_width, config.decoder_heads, num_tokens, kernels)
    recomputed = 0
    if config.gradient_checkpointing:
        recomputed = max(encoder, decoder)
        encoder = visible * width * kernels.element
        decoder = num_tokens * decoder_width * kernels.element
    sample = config.num_layers * encoder + config.decoder_layers * decoder
    if gamma > 0:
        sample += routing_bytes(decoder_width, visible, kernels)
    sample += embedding_bytes(config, num_tokens, kernels, num_conditions=1)
    sample += head_bytes(width, visible, kernels)  # the bridge to the decoder
    sample += head_bytes(decoder_width, num_tokens, kernels)
    return Activations(micro_batch * sample, micro_batch * recomputed)


def block_bytes(width: int, num_heads: int, num_tokens: int, kernels: Kernels) -> int:
    """One block on `num_tokens` tokens."""
    element = kernels.element
    # two norms, what modulates each, what each gate is multiplied with
    token = 2 * (norm_bytes(width, kernels) + width * element) + 2 * width * element
    token += 3 * width * element + attention_output(width, num_heads, num_tokens, kernels)
    token += 2 * MLP_EXPANSION * width * element  # of the GELU: its input, its output
    modulation = (6 + 2) * width * element  # six vectors, 1 + scale twice
    return num_tokens * token + modulation


def norm_bytes(width: int, kernels: Kernels) -> int:
    """Per token: input, mean and deviation, and the result, which is multiplied with 1 + scale."""
    return 2 * width * kernels.element + 2 * FLOAT


def head_bytes(width: int, num_tokens: int, kernels: Kernels) -> int:
    """Norm, modulated tokens; shift, scale, 1 + scale."""
    token = norm_bytes(width, kernels) + width * kernels.element
    return num_tokens * token + 3 * width * kernels.element


def embedding_bytes(
    config: SiTConfig | MaskDiTConfig, num_tokens: int, kernels: Kernels, num_conditions: int
) -> int:
    """Patches, time; the condition before and after its SiLU."""
    patches = num_tokens * config.in_channels * config.patch_size**2
    time = TIME_SINUSOIDS + 2 * config.width
    return (patches + time + num_conditions * 2 * config.width) * kernels.element
