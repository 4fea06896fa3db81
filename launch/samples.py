"""What a run samples and swaps on its way to see what it has learned, from the config. Torch comes late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.backbones import BackboneSections
from launch.config import LaunchConfig, StageConfig
from t2i.config import ConfigError, Section
from t2i.encoders.vae_config import VAEConfig
from t2i.evaluation.metric import Metric
from t2i.evaluation.registry import all_metrics
from t2i.guidance.methods import METHODS
from t2i.sampling.flags import validated
from t2i.sampling.presets import PRESETS, named_guidance
from t2i.sampling.prompts import read_prompts
from t2i.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i.encoders.text import TextEncoder
    from t2i.training.monitoring.validation_samples import ValidationSamples

BATCH_SIZE = 32  # pictures that a metric of samples gets at a time


def check_samples(sections: BackboneSections, training: TrainingConfig) -> None:
    """Refuse prompts and methods that the model cannot sample; nothing when it samples nothing.

    Raises:
        ConfigError: names the key and the ways out.
        FileNotFoundError: the file of prompts is not there.
    """
    launch, name = sections.launch, sections.launch.model
    if training.sample_every == 0:
        if launch.samples_metric is not None:
            raise ConfigError(
                "launch.train.samples_metric is measured on samples: set t2i.training.sample_every "
                "above 0, or samples_metric to null"
            )
        return
    if launch.samples_metric is not None:
        _chosen_metric(launch)
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
        quality=_quality(launch) if launch.samples_metric is not None else None,
    )


def _chosen_metric(launch: LaunchConfig) -> tuple[Metric, Section]:
    """The metric of the samples and its settings.

    Raises:
        ConfigError: there is none of that name, its settings do not fit, or it needs prompts and the
            model has classes.
    """
    given = dict(launch.samples_metric or {})
    name, known = given.pop("name", None), all_metrics()
    key = "launch.train.samples_metric"
    if name not in known:
        raise ConfigError(f"{key}: name is {name!r}; known metrics: {', '.join(known)}")
    metric = known[name]
    if metric.needs_prompts and launch.model != "tr_dit":
        raise ConfigError(f"{key}: {name} needs prompts, and {launch.model} has classes")
    try:
        return metric, validated(metric.settings, given)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def _quality(launch: LaunchConfig) -> Callable[[Sequence[Image]], float]:
    """What measures samples: the metric's main score, turned so that higher is better."""
    import numpy as np
    import torch

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

    metric, settings = _chosen_metric(launch)
    prompts = prompts_of(launch)
    context = Context(torch.device("cpu"), BATCH_SIZE, 2, "refuse", None)
    try:
        scorer = metric.prepare(settings, context)
    except ValueError as error:
        raise ConfigError(f"launch.train.samples_metric: {error}") from None

    def measure(images: Sequence[Image]) -> float:
        pictures = [
            Picture(number, f"sample {number}", np.asarray(image), prompt)
            for number, (image, prompt) in enumerate(zip(images, prompts, strict=True))
        ]
        batches = [pictures[i : i + BATCH_SIZE] for i in range(0, len(pictures), BATCH_SIZE)]
        with torch.inference_mode():
            parts = [scorer.rows(batch) for batch in batches]
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        scores = scorer.score(rows, prompts if launch.model == "tr_dit" else None).scores
        wanted = metric.main_score or scores[0].name
        score = next(score for score in scores if score.name == wanted)
        assert score.value is not None
        return score.value if score.better == "higher" else -score.value

    return measure


def prompts_of(launch: LaunchConfig) -> list[str]:
    """The prompts of the config, or of the file that it names."""
    given = launch.validation_prompts
    return read_prompts([], Path(given)) if isinstance(given, str) else [str(p) for p in given]
