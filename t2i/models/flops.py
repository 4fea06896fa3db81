"""Parameters and FLOPs of TR-DiT: `python -m t2i.models.flops --config configs/tr_dit_2b5.yaml`.

Everything is counted in multiply-accumulates (MACs) of matrix products by formula; one MAC is two
FLOPs. Element-wise work (norms, softmax, rotations) is left out. Text keys and values are computed
once per prompt and are not part of a forward pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from t2i.config import Section, add_config_arguments, config_from_args, section
from t2i.console import run_command
from t2i.models.tr_dit_config import TRDiTConfig

LATENT_DOWNSAMPLE = 8
TIME_SINUSOIDS = 256


class Config(Section):
    """What this command reads."""

    tr_dit: TRDiTConfig = section("t2i.models.tr_dit")


def block_macs(
    config: TRDiTConfig, num_tokens: int, text_tokens: int, attention_products: bool = True
) -> int:
    """MACs of one block for one sample.

    Args:
        num_tokens: image tokens that run the block.
        text_tokens: cached text tokens that they attend to.
        attention_products: count the products of queries with keys and of scores with values.
    """
    width = config.width
    self_attention, cross_attention = 4 * width**2, 2 * width**2
    ffn = 3 * width * config.ffn_width
    modulation = config.adaln_rank * (width + 6 * width)
    macs = num_tokens * (self_attention + cross_attention + ffn) + modulation
    if attention_products:
        macs += 2 * num_tokens * (num_tokens + text_tokens) * width
    return macs


def ends_macs(config: TRDiTConfig, num_tokens: int) -> tuple[int, int]:
    """MACs for one sample of (patch embedding and time embedding, head)."""
    width, patch_width = config.width, config.in_channels * config.patch_size**2
    embed = num_tokens * patch_width * width + TIME_SINUSOIDS * width + width**2
    head = num_tokens * patch_width * width + 2 * width**2
    return embed, head


def forward_macs(
    config: TRDiTConfig,
    num_tokens: int,
    text_tokens: int,
    gamma: float = 0.0,
    attention_products: bool = True,
) -> int:
    """MACs of a forward pass for one sample at sparsity gamma."""
    shared = shared_macs(config, num_tokens, text_tokens, attention_products)
    return shared + from_route_macs(config, num_tokens, text_tokens, gamma, attention_products)


def shared_macs(
    config: TRDiTConfig, num_tokens: int, text_tokens: int, attention_products: bool = True
) -> int:
    """MACs of what branches with the same condition can share: embedding, blocks before a route."""
    routes = config.resolved_routes
    num_blocks = routes[0][0] if routes else config.num_layers
    block = block_macs(config, num_tokens, text_tokens, attention_products)
    return ends_macs(config, num_tokens)[0] + num_blocks * block


def from_route_macs(
    config: TRDiTConfig,
    num_tokens: int,
    text_tokens: int,
    gamma: float = 0.0,
    attention_products: bool = True,
) -> int:
    """MACs of a forward pass from the first routed block on."""
    from t2i.models.routing import num_kept

    routes = config.resolved_routes
    num_routed = sum(last - first + 1 for first, last in routes)
    num_dense = config.num_layers - num_routed - (routes[0][0] if routes else config.num_layers)
    kept = num_kept(num_tokens, gamma)
    dense = block_macs(config, num_tokens, text_tokens, attention_products)
    routed = block_macs(config, kept, text_tokens, attention_products)
    return num_dense * dense + num_routed * routed + ends_macs(config, num_tokens)[1]


def parameter_counts(config: TRDiTConfig) -> dict[str, int]:
    """Parameters by part of the model; all blocks together are "blocks.<part>"."""
    import torch

    from t2i.models.tr_dit import TRDiT

    with torch.device("meta"):
        model = TRDiT.from_config(config)
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        group = f"blocks.{parts[2]}" if parts[0] == "blocks" else parts[0]
        counts[group] = counts.get(group, 0) + parameter.numel()
    return counts


def report(
    config: TRDiTConfig, size: int, text_tokens: int, gamma_strong: float, gamma_weak: float
) -> str:
    """The table that the command prints."""
    pixels = LATENT_DOWNSAMPLE * config.patch_size
    if size % pixels:
        raise ValueError(f"--size {size} must be a multiple of {pixels}")
    num_tokens = (size // pixels) ** 2
    counts = parameter_counts(config)
    lines = [f"{'parameters':<44}{'millions':>12}"]
    lines += [f"  {group:<42}{count / 1e6:>12.3f}" for group, count in counts.items()]
    lines += [f"  {'total':<42}{sum(counts.values()) / 1e6:>12.3f}", ""]
    title = f"one {size}x{size} image: {num_tokens} tokens, {text_tokens} text tokens"
    lines += [f"{title:<44}{'GFLOPs':>12}{'GMACs, no QK, AV':>20}"]
    for name, with_products, without in _rows(
        config, num_tokens, text_tokens, gamma_strong, gamma_weak
    ):
        lines.append(f"  {name:<42}{2 * with_products / 1e9:>12.4g}{without / 1e9:>20.4g}")
    return "\n".join(lines)


def _rows(
    config: TRDiTConfig, num_tokens: int, text_tokens: int, strong: float, weak: float
) -> list[tuple[str, int, int]]:
    """(name, MACs with attention products, MACs without) of each row of the report."""

    def both(name: str, gammas: Sequence[float], shares: bool = False) -> tuple[str, int, int]:
        macs = [0, 0]
        for i, products in enumerate((True, False)):
            arguments = (config, num_tokens, text_tokens)
            shared = shared_macs(*arguments, products)
            branches = [from_route_macs(*arguments, gamma, products) for gamma in gammas]
            macs[i] = sum(branches) + shared * (1 if shares else len(gammas))
        return name, macs[0], macs[1]

    block = (
        "one block, dense",
        block_macs(config, num_tokens, text_tokens),
        block_macs(config, num_tokens, text_tokens, attention_products=False),
    )
    rows = [block, both("forward, dense", [0.0])]
    if config.routes:
        rows.append(both("forward, gamma 0.5", [0.5]))
    rows.append(both("guided step, CFG (two dense branches)", [0.0, 0.0]))
    if config.routes:
        name = f"guided step, SG({strong:g}, {weak:g})"
        rows.append(both(name, [strong, weak]))
        rows.append(both(f"{name}, shared prefix", [strong, weak], shares=True))
    return rows


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m t2i.models.flops",
        description="Print parameters and FLOPs of TR-DiT: per block, forward and guided step.",
        epilog="example: python -m t2i.models.flops --config configs/tr_dit_2b5.yaml --size 512",
    )
    parser.add_argument("--size", type=int, default=512, help="image side in pixels (default 512)")
    parser.add_argument("--text-tokens", type=int, default=256, help="text tokens (default 256)")
    parser.add_argument("--gamma-strong", type=float, default=0.1, help="SG strong branch (0.1)")
    parser.add_argument("--gamma-weak", type=float, default=0.8, help="SG weak branch (0.8)")
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report."""
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config).tr_dit
    print(report(config, args.size, args.text_tokens, args.gamma_strong, args.gamma_weak))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
