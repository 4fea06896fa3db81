"""Parameters and FLOPs of TR-DiT, SiT and MaskDiT.

    python -m t2i.models.flops --config configs/tr_dit_2b5.yaml --size 512
    python -m t2i.models.flops --config configs/imagenet_sit_xl2_tread.yaml
    python -m t2i.models.flops --model SiT-XL/2
    python -m t2i.models.flops --model MaskDiT-XL/2 --gamma-strong 0 --gamma-weak 0.7

Counted is the model that the config trains: launch.train.model says which section of t2i.models
(--set launch.train.model=sit for another). --model counts a published size without a config.

Two conventions side by side: GFLOPs (two per multiply-accumulate, attention products included), and
GMACs without the products of queries with keys and of scores with values, which is what the papers
on ImageNet call GFLOPs. The formulas are in `t2i.models.costs.macs`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from t2i.config import DEFAULT_CONFIG, Section, add_config_arguments, config_from_args, section
from t2i.console import command_parser, run_command
from t2i.models.costs.macs import (
    TRAINING_PASSES,
    Backbone,
    block_macs,
    can_drop_tokens,
    from_route_macs,
    shared_macs,
    text_macs,
)
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.models.trained_family import TrainedFamily

if TYPE_CHECKING:
    from torch import nn

LATENT_DOWNSAMPLE = 8
TRAINING_GAMMA = 0.5
# Sparse Guidance, B.1: mean sparsity of both branches under its cosine schedules
SCHEDULED_GAMMA = 0.3


class Config(Section):
    """What this command reads."""

    tr_dit: TRDiTConfig = section("t2i.models.tr_dit")
    sit: SiTConfig = section("t2i.models.sit")
    mask_dit: MaskDiTConfig = section("t2i.models.mask_dit")
    launch: TrainedFamily = section("launch.train")

    @property
    def trained_model(self) -> Backbone:
        """The section that ``launch.train.model`` names."""
        config: Backbone = getattr(self, self.launch.model)
        return config


@dataclass(frozen=True)
class Setting:
    """What is counted besides the model: image, text, guidance, solver.

    Attributes:
        size: image side in pixels, at least 1.
        text_tokens: 0 for class-conditional models.
        gamma_strong, gamma_weak: of Sparse Guidance, 0 <= strong < weak < 1.
        steps: of the solver, at least 1.

    Raises:
        ValueError: a value outside these ranges.
    """

    size: int
    text_tokens: int
    gamma_strong: float
    gamma_weak: float
    steps: int

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("text_tokens", 0), ("steps", 1)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} {getattr(self, name)} must be at least {least}")
        if not 0 <= self.gamma_strong < self.gamma_weak < 1:
            raise ValueError(
                f"--gamma-strong {self.gamma_strong:g} and --gamma-weak {self.gamma_weak:g} must be "
                "0 <= strong < weak < 1: the strong branch drops fewer tokens"
            )


@dataclass(frozen=True)
class Macs:
    """One amount of work in both conventions: with and without attention products."""

    full: int
    linear: int

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.full + other.full, self.linear + other.linear)

    def __mul__(self, times: int) -> Macs:
        return Macs(self.full * times, self.linear * times)


# text-to-image at 512 pixels, and SG_FLOPS on ImageNet-256 (Sparse Guidance, table 2)
TEXT_SETTING = Setting(size=512, text_tokens=256, gamma_strong=0.1, gamma_weak=0.8, steps=50)
CLASS_SETTING = Setting(size=256, text_tokens=0, gamma_strong=0.5, gamma_weak=0.9, steps=40)


def build_model(config: Backbone) -> nn.Module:
    """The model of a config, its weights on the meta device."""
    import torch

    from t2i.models.mask_dit import MaskDiT
    from t2i.models.sit import SiT
    from t2i.models.tr_dit import TRDiT

    with torch.device("meta"):
        if isinstance(config, TRDiTConfig):
            return TRDiT.from_config(config)
        if isinstance(config, SiTConfig):
            return SiT.from_config(config)
        return MaskDiT.from_config(config)


def parameter_counts(config: Backbone) -> dict[str, int]:
    """Parameters by part of the model; all blocks together are "blocks.<part>"."""
    counts: dict[str, int] = {}
    for name, parameter in build_model(config).named_parameters():
        parts = name.split(".")
        is_block = parts[0] in ("blocks", "decoder")
        group = f"{parts[0]}.{parts[2]}" if is_block else parts[0]
        counts[group] = counts.get(group, 0) + parameter.numel()
    return counts


def report(config: Backbone, setting: Setting) -> str:
    """The table that the command prints.

    Raises:
        ValueError: an image side that does not divide.
    """
    pixels = LATENT_DOWNSAMPLE * config.patch_size
    if setting.size % pixels:
        raise ValueError(f"--size {setting.size} must be a multiple of {pixels}")
    num_tokens = (setting.size // pixels) ** 2
    counts = parameter_counts(config)
    lines = [f"{'parameters':<48}{'millions':>14}"]
    lines += [f"  {group:<46}{count / 1e6:>14.3f}" for group, count in counts.items()]
    lines += [f"  {'total':<46}{sum(counts.values()) / 1e6:>14.3f}", ""]
    title = f"one {setting.size}x{setting.size} image: {num_tokens} tokens"
    if setting.text_tokens:
        title += f", {setting.text_tokens} text tokens"
    lines += [f"{title:<48}{'GFLOPs':>14}{'GMACs, no QK, AV':>20}"]
    for name, macs in rows(config, num_tokens, setting):
        lines.append(f"  {name:<46}{2 * macs.full / 1e9:>14.2f}{macs.linear / 1e9:>20.2f}")
    return "\n".join(lines)


def rows(config: Backbone, num_tokens: int, setting: Setting) -> list[tuple[str, Macs]]:
    """Name and work of each row of the report: block, forward, guided steps, image, training."""
    block = in_both_conventions(block_macs, config, num_tokens, setting.text_tokens)

    def branches(*gammas: float, shares: bool = False) -> Macs:
        return branches_macs(config, num_tokens, setting.text_tokens, gammas, shares)

    forwards = {"dense": branches(0.0)}
    guided = {"CFG (two dense branches)": branches(0.0, 0.0)}
    if can_drop_tokens(config):
        forwards[f"gamma {TRAINING_GAMMA:g}"] = branches(TRAINING_GAMMA)
        gammas = (setting.gamma_strong, setting.gamma_weak)
        name = f"SG({gammas[0]:g}, {gammas[1]:g})"
        guided[name] = branches(*gammas)
        guided[f"{name}, shared prefix"] = branches(*gammas, shares=True)
        scheduled = branches(SCHEDULED_GAMMA, SCHEDULED_GAMMA)
        guided[f"AG+SG of mean gamma {SCHEDULED_GAMMA:g}"] = scheduled
    text = Macs(0, 0)
    if isinstance(config, TRDiTConfig):
        text = in_both_conventions(text_macs, config, setting.text_tokens)
    steps, images = setting.steps, {"no guidance": forwards["dense"], **guided}
    return [
        ("one block, dense", block),
        *((f"forward, {name}", macs) for name, macs in forwards.items()),
        *((f"guided step, {name}", macs) for name, macs in guided.items()),
        *((f"image, {steps} steps, {name}", macs * steps) for name, macs in images.items()),
        *(
            (f"training sample, {name}", (macs + text) * TRAINING_PASSES)
            for name, macs in forwards.items()
        ),
    ]


def branches_macs(
    config: Backbone,
    num_tokens: int,
    text_tokens: int,
    gammas: Sequence[float],
    shares: bool = False,
) -> Macs:
    """One evaluation per gamma; `shares`: they have the same condition and share the prefix."""
    prefix = in_both_conventions(shared_macs, config, num_tokens, text_tokens)
    total = prefix * (1 if shares else len(gammas))
    for gamma in gammas:
        total += in_both_conventions(from_route_macs, config, num_tokens, text_tokens, gamma)
    return total


def in_both_conventions(function: Callable[..., int], *arguments: Any) -> Macs:
    """What a function of `t2i.models.costs.macs` gives with attention products and without."""
    return Macs(function(*arguments, True), function(*arguments, False))


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_parser("python -m t2i.models.flops", __doc__)
    parser.add_argument("--model", help="SiT-XL/2, MaskDiT-B/4, ... instead of the config's model")
    parser.add_argument("--size", type=int, help="image side in pixels (512; of classes 256)")
    parser.add_argument("--text-tokens", type=int, help="text tokens of TR-DiT (256)")
    parser.add_argument("--gamma-strong", type=float, help="SG strong branch (0.1; of classes 0.5)")
    parser.add_argument("--gamma-weak", type=float, help="SG weak branch (0.8; of classes 0.9)")
    parser.add_argument("--steps", type=int, help="steps of the solver (50; of classes 40)")
    add_config_arguments(parser)
    return parser


def chosen_config(args: argparse.Namespace) -> Backbone:
    """The settings that --model names, such as "SiT-XL/2", or those of the model a config trains.

    Raises:
        ValueError: no such size, or a flag that has no meaning beside --model.
        ConfigError: a config that cannot be used.
    """
    if args.model:
        refuse_config_flags(args)
        config_class = MaskDiTConfig if args.model.startswith("Mask") else SiTConfig
        return config_class.from_size(args.model)
    return config_from_args(args, Config).trained_model


def refuse_config_flags(args: argparse.Namespace) -> None:
    """Refuse the flags of configs beside --model, which takes no config.

    Raises:
        ValueError: names the flag.
    """
    ignored = {
        "--config": args.config != DEFAULT_CONFIG,
        "--set": bool(args.overrides),
        "--print-config": args.print_config,
    }
    for flag, is_given in ignored.items():
        if is_given:
            raise ValueError(
                f"{flag} is for the config's model; leave it out, or leave out --model"
            )


def chosen_setting(args: argparse.Namespace, config: Backbone) -> Setting:
    """The flags, and for those that are not given the values of the model's kind.

    Raises:
        ValueError: a value out of range, or text tokens of a model of classes.
    """
    has_text = isinstance(config, TRDiTConfig)
    if args.text_tokens is not None and not has_text:
        raise ValueError("--text-tokens is for TR-DiT; models of classes have none: leave it out")
    names = ("size", "text_tokens", "gamma_strong", "gamma_weak", "steps")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return replace(TEXT_SETTING if has_text else CLASS_SETTING, **given)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report."""
    args = build_parser().parse_args(argv)
    config = chosen_config(args)
    print(report(config, chosen_setting(args, config)))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
