"""What a run samples and swaps on its way to see what it has learned, from the config. Torch comes late."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from launch.backbones import BackboneSections
from launch.config import LaunchConfig, StageConfig
from t2i.config import ConfigError
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.methods import METHODS
from t2i.sampling.presets import PRESETS, named_guidance
from t2i.sampling.prompts import read_prompts
from t2i.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from t2i.encoders.text import TextEncoder
    from t2i.training.monitoring.validation_samples import ValidationSamples


def check_samples(sections: BackboneSections, training: TrainingConfig) -> None:
    """Refuse prompts and methods that the model cannot sample; nothing when it samples nothing.

    Raises:
        ConfigError: names the key and the ways out.
        FileNotFoundError: the file of prompts is not there.
    """
    if training.sample_every == 0:
        return
    launch, name = sections.launch, sections.launch.model
    if name != "tr_dit":
        num_classes = getattr(sections, name).num_classes
        for prompt in prompts_of(launch):
            if not prompt.isdecimal() or int(prompt) >= num_classes:
                raise ConfigError(
                    f"launch.train.validation_prompts: {prompt!r} is not a class of {name}; give "
                    f"numbers from 0 to {num_classes - 1}, or set t2i.training.sample_every to 0"
                )
    routes = {"tr_dit": sections.tr_dit.routes, "sit": sections.sit.routes}
    names = (*METHODS, *PRESETS)
    for method in launch.validation_guidance:
        if method not in names or named_guidance(method).uses("aux"):
            able = " ".join(name for name in names if not named_guidance(name).uses("aux"))
            raise ConfigError(
                f"launch.train.validation_guidance: {method!r} cannot be sampled with one network; "
                f"choose among: {able}"
            )
        branches = named_guidance(method).branches
        drops_tokens = any(max(branch.gamma.values) > 0 for branch in branches)
        if drops_tokens and name in routes and not routes[name]:
            raise ConfigError(
                f"launch.train.validation_guidance: {method} drops tokens, but t2i.models.{name}."
                "routes is empty; leave it out, or name a route"
            )


def check_swaps(launch: LaunchConfig) -> None:
    """Refuse words to swap where there are no held-out captions.

    Raises:
        ConfigError: names the keys and the ways out.
    """
    if launch.validation_swaps and (launch.model != "tr_dit" or not launch.validation_samples):
        raise ConfigError(
            "launch.train.validation_swaps are words of held-out captions: they need model tr_dit and "
            f"validation_samples above 0, not {launch.model} and {launch.validation_samples}; set "
            "these, or validation_swaps to null"
        )


def build_samples(
    launch: LaunchConfig,
    stage: StageConfig,
    training: TrainingConfig,
    vae_config: VAEConfig,
    patch_size: int,
    encoder: TextEncoder | None,
) -> ValidationSamples | None:
    """Prompts, methods and the VAE, which is loaded to the CPU; None when nothing is sampled.

    Raises:
        ConfigError: a size that the model cannot make.
    """
    if training.sample_every == 0:
        return None
    from t2i.encoders.vae import load_vae
    from t2i.training.monitoring.validation_samples import ValidationSamples

    vae = load_vae(vae_config)
    height, width = stage.validation_size
    multiple = vae.downsample * patch_size
    if height % multiple or width % multiple:
        raise ConfigError(
            f"validation_size {height}x{width} of the stage: both sides must be multiples of "
            f"{multiple} pixels"
        )
    return ValidationSamples(
        prompts=tuple(prompts_of(launch)),
        methods={name: named_guidance(name) for name in launch.validation_guidance},
        size=stage.validation_size,
        num_steps=launch.validation_steps,
        vae=vae,
        text_encoder=encoder,
    )


def prompts_of(launch: LaunchConfig) -> list[str]:
    """The prompts of the config, or of the file that it names."""
    given = launch.validation_prompts
    return read_prompts([], Path(given)) if isinstance(given, str) else [str(p) for p in given]
