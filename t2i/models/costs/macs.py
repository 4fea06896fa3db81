"""Multiply-accumulates of TR-DiT, SiT and MaskDiT for one sample, by formula.

Matrix products only: element-wise work (norms, softmax, rotations) is left out. Text keys and values
are computed once per prompt (in training at each step) and are not part of a forward pass: see
`text_macs`. One MAC is two FLOPs.

A forward pass is in two parts, as in the models: what branches of equal condition share, and the
rest. Every function takes `attention_products`: whether to count the products of queries with keys
and of scores with values.
"""

from __future__ import annotations

from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.routes import first_routed, num_kept
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig

Backbone = TRDiTConfig | SiTConfig | MaskDiTConfig
TIME_SINUSOIDS = 256
# a backward pass multiplies twice what its forward pass does: for the weights and for the inputs
TRAINING_PASSES = 3


def forward_macs(
    config: Backbone,
    num_tokens: int,
    text_tokens: int = 0,
    gamma: float = 0.0,
    attention_products: bool = True,
) -> int:
    """MACs of a forward pass at sparsity gamma; `text_tokens` is for TR-DiT only."""
    shared = shared_macs(config, num_tokens, text_tokens, attention_products)
    return shared + from_route_macs(config, num_tokens, text_tokens, gamma, attention_products)


def training_flops(
    config: Backbone,
    num_tokens: int,
    text_tokens: int = 0,
    gamma: float = 0.0,
    attention_products: bool = True,
) -> int:
    """FLOPs that training on one sample executes: forward and backward, after routing or masking.

    Twice (a multiply and an add) three times (forward, backward for inputs and for weights) the MACs
    of the network, an internal head and TR-DiT's text refiner, keys and values included. Not counted: the frozen text
    encoder, what gradient checkpointing computes again, teachers of model-guidance, the optimizer.

    Args:
        num_tokens: image tokens of the sample, before routing.
        text_tokens: that TR-DiT is given for the sample, padding included; 0 for the others.
        gamma: in [0, 1), share of tokens that skip the routed layers or are masked.
    """
    macs = forward_macs(config, num_tokens, text_tokens, gamma, attention_products)
    if isinstance(config, TRDiTConfig):
        macs += text_macs(config, text_tokens, attention_products)
    if config.internal_after is not None:
        macs += ends_macs(config, num_tokens)[1]
    return 2 * TRAINING_PASSES * macs


def text_macs(config: TRDiTConfig, text_tokens: int, attention_products: bool = True) -> int:
    """MACs of TR-DiT's refiner and of all blocks' text keys and values."""
    width = config.width
    layer = 4 * width**2 + 3 * width * config.ffn_width
    keys_values = config.num_layers * 2 * width**2
    macs = text_tokens * (
        config.text_width * width + config.num_refiner_layers * layer + keys_values
    )
    if attention_products:
        macs += config.num_refiner_layers * 2 * text_tokens**2 * width
    return macs


def shared_macs(
    config: Backbone, num_tokens: int, text_tokens: int = 0, attention_products: bool = True
) -> int:
    """MACs of what branches with the same condition can share: embedding, blocks before a route."""
    block = block_macs(config, num_tokens, text_tokens, attention_products)
    return ends_macs(config, num_tokens)[0] + _num_shared_blocks(config) * block


def from_route_macs(
    config: Backbone,
    num_tokens: int,
    text_tokens: int = 0,
    gamma: float = 0.0,
    attention_products: bool = True,
) -> int:
    """MACs of a forward pass from the first routed (or masked) block on."""
    num_sparse = num_sparse_blocks(config)
    num_dense = config.num_layers - num_sparse - _num_shared_blocks(config)
    kept = num_kept(num_tokens, gamma)
    dense = block_macs(config, num_tokens, text_tokens, attention_products)
    sparse = block_macs(config, kept, text_tokens, attention_products)
    macs = num_dense * dense + num_sparse * sparse + ends_macs(config, num_tokens)[1]
    if isinstance(config, MaskDiTConfig):
        macs += decoder_macs(config, num_tokens, kept, attention_products)
    elif config.after_route == "fuse":
        macs += num_tokens * 2 * config.width**2
    return macs


def block_macs(
    config: Backbone, num_tokens: int, text_tokens: int = 0, attention_products: bool = True
) -> int:
    """MACs of one block (of MaskDiT: of its encoder).

    Args:
        num_tokens: image tokens that run the block.
        text_tokens: cached text tokens that TR-DiT's attend to; 0 for the others.
    """
    if not isinstance(config, TRDiTConfig):
        assert text_tokens == 0, "only TR-DiT has text tokens"
        return class_block_macs(config.width, config.width, num_tokens, attention_products)
    width = config.width
    self_attention, cross_attention = 4 * width**2, 2 * width**2
    ffn = 3 * width * config.ffn_width
    modulation = config.adaln_rank * (width + 6 * width)
    macs = num_tokens * (self_attention + cross_attention + ffn) + modulation
    if attention_products:
        macs += attention_macs(config, num_tokens) + 2 * num_tokens * text_tokens * width
    return macs


def attention_macs(config: Backbone, num_tokens: int) -> int:
    """MACs of the products of queries with keys and of scores with values in a block's self-attention."""
    return 2 * num_tokens**2 * config.width


def class_block_macs(
    width: int, condition_width: int, num_tokens: int, attention_products: bool = True
) -> int:
    """MACs of one adaLN-Zero block of SiT: attention 4 D^2, MLP 8 D^2 per token; modulation once."""
    macs = num_tokens * 12 * width**2 + 6 * condition_width * width
    if attention_products:
        macs += 2 * num_tokens**2 * width
    return macs


def decoder_macs(
    config: MaskDiTConfig, num_tokens: int, num_visible: int, attention_products: bool = True
) -> int:
    """MACs of MaskDiT's decoder: the bridge for visible tokens, its blocks for all."""
    width, decoder_width = config.width, config.decoder_width
    bridge = num_visible * width * decoder_width + 2 * width**2
    block = class_block_macs(decoder_width, width, num_tokens, attention_products)
    return bridge + config.decoder_layers * block


def ends_macs(config: Backbone, num_tokens: int) -> tuple[int, int]:
    """MACs of (embeddings of patches, of time and perhaps of the guidance scale, head)."""
    width, patch_area = config.width, config.patch_size**2
    embed = num_tokens * config.in_channels * patch_area * width
    embed += (1 + config.scale_input) * (TIME_SINUSOIDS * width + width**2)
    head_width, head_channels = width, config.in_channels
    if isinstance(config, SiTConfig):
        head_channels = config.head_channels
    elif isinstance(config, MaskDiTConfig):
        head_width = config.decoder_width
    head = num_tokens * head_channels * patch_area * head_width + 2 * width * head_width
    return embed, head


def can_drop_tokens(config: Backbone) -> bool:
    """Whether gamma > 0 has a meaning."""
    return num_sparse_blocks(config) > 0


def _num_shared_blocks(config: Backbone) -> int:
    if isinstance(config, MaskDiTConfig):
        return 0
    return first_routed(config.resolved_routes, config.num_layers)


def num_sparse_blocks(config: Backbone) -> int:
    """How many blocks tokens can skip."""
    if isinstance(config, MaskDiTConfig):
        return config.num_layers
    return sum(last - first + 1 for first, last in config.resolved_routes)
