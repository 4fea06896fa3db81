"""Holds the shipped configs against the papers: each row is a value and where it stands.

SG: Guiding Token-Sparse Diffusion Models. MG: Model-guidance. SiT, TREAD, MaskDiT: papers and code.
A choice of ours, where all of them are silent, is not a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.filter import FilterConfig
from data_pipeline.latents import LatentsConfig
from launch.backbones import check_fits
from launch.config import stage_section
from launch.samples import check_samples
from launch.train_t2i import Config as TrainingRun
from t2i.config import flatten, load_config, section, section_names
from t2i.generation import Config as SampleRun
from t2i.guidance.guidance_config import GuidanceConfig
from t2i.sample import build_parser, merge_flags
from t2i.sampling.presets import PRESETS
from t2i.sampling.sampling_config import RANDOM_PROMPTS, SamplingConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TR_DIT, TREAD, MASK_DIT, MG = (
    "tr_dit_2b5",
    "imagenet_sit_xl2_tread",
    "imagenet_sit_xl2_maskdit",
    "imagenet_sit_xl2_mg",
)
IMAGENET = (TREAD, MASK_DIT, MG)
BOTH = (1, 2)

# (configs, stages, key, value, source)
ROWS: list[tuple[tuple[str, ...], tuple[int, ...], str, Any, str]] = [
    ((TR_DIT,), BOTH, "t2i.models.tr_dit.num_layers", 34, "SG table A1"),
    ((TR_DIT,), BOTH, "t2i.models.tr_dit.width", 2048, "SG table A1"),
    ((TR_DIT,), BOTH, "t2i.models.tr_dit.num_heads", 16, "SG table A1"),
    ((TR_DIT,), BOTH, "t2i.models.tr_dit.routes", [[2, 30]], "SG table A1"),
    ((TR_DIT,), BOTH, "t2i.models.tr_dit.ffn_expansion", 8 / 3, "SG A.1"),
    ((TR_DIT,), BOTH, "t2i.models.tr_dit.num_refiner_layers", 2, "SG A.1"),
    (
        (TR_DIT,),
        BOTH,
        "t2i.encoders.text.prefix",
        "Describe the image by detailing the color, shape, size, texture, quantity, text, and "
        "spatial relationships of the objects.",
        "SG A.1",
    ),
    ((TR_DIT,), BOTH, "t2i.encoders.text.path", "OpenGVLab/InternVL3-2B-hf", "SG 4.1"),
    ((TR_DIT,), BOTH, "t2i.training.learning_rate", 5e-5, "SG table A1"),
    ((TR_DIT,), BOTH, "t2i.training.betas", [0.9, 0.95], "SG table A1"),
    ((TR_DIT,), BOTH, "t2i.training.global_batch", 3072, "SG table A1"),
    ((TR_DIT,), BOTH, "t2i.training.gamma", 0.5, "SG table A1"),
    ((TR_DIT,), BOTH, "t2i.training.objective.name", "flow_matching", "SG C: no auxiliary loss"),
    ((TR_DIT,), BOTH, "t2i.training.timestep.distribution", "logit_normal", "TREAD's code"),
    ((TR_DIT,), BOTH, "data_pipeline.filter.min_aesthetic", 5.0, "SG 4.1"),
    ((TR_DIT,), BOTH, "launch.train.stage2.validation_size", [512, 512], "SG 4.1"),
    (IMAGENET, BOTH, "t2i.models.sit.num_layers", 28, "SG table A2"),
    (IMAGENET, BOTH, "t2i.models.sit.width", 1152, "SG table A2"),
    (IMAGENET, BOTH, "t2i.models.sit.num_heads", 16, "SG table A2"),
    (IMAGENET, BOTH, "t2i.models.sit.routes", [[2, 24]], "SG table A2"),
    ((MASK_DIT,), BOTH, "t2i.models.mask_dit.num_layers", 28, "SG table A2"),
    ((MASK_DIT,), BOTH, "t2i.models.mask_dit.width", 1152, "SG table A2"),
    ((MASK_DIT,), BOTH, "t2i.models.mask_dit.decoder_layers", 8, "SG table A2"),
    ((MASK_DIT,), BOTH, "t2i.models.mask_dit.decoder_width", 512, "SG table A2"),
    ((MASK_DIT,), BOTH, "t2i.models.mask_dit.decoder_heads", 16, "SG table A2"),
    (IMAGENET, BOTH, "t2i.encoders.vae.path", "stabilityai/sd-vae-ft-ema", "SG A.2"),
    (IMAGENET, BOTH, "t2i.training.betas", [0.9, 0.999], "SG A.2"),
    (IMAGENET, BOTH, "t2i.training.global_batch", 256, "SG table A2"),
    (IMAGENET, BOTH, "t2i.training.warmup_steps", 0, "SG A.2: a fixed rate"),
    (IMAGENET, BOTH, "t2i.training.precision", "bf16", "SG A.2"),
    (IMAGENET, BOTH, "t2i.training.gradient_clipping", None, "SiT and TREAD have none"),
    (IMAGENET, BOTH, "t2i.training.timestep.distribution", "uniform", "SiT; MG algorithm 1"),
    (IMAGENET, BOTH, "t2i.training.timestep.shift", 1.0, "SiT"),
    (IMAGENET, BOTH, "t2i.training.weight_decay", 0.0, "DiT"),
    (IMAGENET, BOTH, "t2i.training.ema_decay", 0.9999, "DiT"),
    (IMAGENET, BOTH, "data_pipeline.loader.horizontal_flips", True, "SiT"),
    (IMAGENET, BOTH, "data_pipeline.loader.caption_dropout", 0.1, "DiT; MG: ratio lambda"),
    (IMAGENET, (1,), "t2i.training.learning_rate", 1e-4, "SG A.2"),
    (IMAGENET, (2,), "t2i.training.learning_rate", 1e-5, "SG A.2: fine-tuning"),
    (IMAGENET, (1,), "t2i.training.steps", 2_000_000, "SG table 2: 400 epochs"),
    ((TREAD, MASK_DIT), (1,), "t2i.training.gamma", 0.5, "SG table A2"),
    ((TREAD, MASK_DIT), (1,), "t2i.training.keep_at", [50_000], "SG B.1: SG_FID's network"),
    (IMAGENET, (2,), "t2i.training.gamma", 0.0, "MaskDiT, TREAD: dense fine-tuning"),
    ((MASK_DIT,), (1,), "t2i.training.objective.name", "masked", "SG eq. A4"),
    ((MASK_DIT,), (1,), "t2i.training.objective.masked_target", "zero", "SG eq. A4 as printed"),
    ((MASK_DIT,), (2,), "t2i.training.objective.name", "flow_matching", "MaskDiT: unmasked tuning"),
    ((MG,), BOTH, "t2i.training.objective.name", "model_guidance", "MG eq. 17"),
    ((MG,), (1,), "t2i.training.gamma", 0.0, "MG trains dense"),
    ((MG,), BOTH, "t2i.training.objective.scale", 1.5, "MG: the best one"),
]
CASES = [
    pytest.param(config, stage, key, value, id=f"{config}-{stage}-{key} ({source})")
    for configs, stages, key, value, source in ROWS
    for config in configs
    for stage in stages
]


class Settings(TrainingRun):
    """What training reads, and the steps before and after it."""

    filter: FilterConfig = section("data_pipeline.filter")
    latents: LatentsConfig = section("data_pipeline.latents")
    sampling: SamplingConfig = section("t2i.sampling")
    guidance: GuidanceConfig = section("t2i.guidance")


def stage_values(name: str, number: int) -> dict[str, Any]:
    """All settings that a stage runs with, by their keys."""
    config = load_config(CONFIGS / f"{name}.yaml", [], Settings)
    stage = config.launch.stage1 if number == 1 else config.launch.stage2
    changes = {
        "training": stage_section(config.training, stage.training, "training"),
        "loader": stage_section(config.loader, stage.loader, "loader"),
    }
    config = config.model_copy(update=changes)
    check_fits(config, config.training, config.loader)
    check_samples(config, config.training)
    names = section_names(Settings)
    return flatten({names[field]: value for field, value in config.model_dump(mode="json").items()})


@pytest.mark.parametrize(("config", "stage", "key", "value"), CASES)
def test_the_config_has_the_value_of_the_papers(
    config: str, stage: int, key: str, value: object
) -> None:
    assert stage_values(config, stage)[key] == value


@pytest.mark.parametrize("config", [TREAD, MASK_DIT])
def test_flips_have_mirrored_latents(config: str) -> None:
    assert stage_values(config, 1)["data_pipeline.latents.mirrored"] is True


# config -> preset -> guidance, steps, pixels: SG B.1, B.2, 4.1 and the settings of its tables
PRESET_ROWS = {
    TR_DIT: {
        "hpsv3": ("sg omega=1.8 gamma_strong=0.1 gamma_weak=0.8", 50, (512, 512)),
        "geneval": ("cfg+sg omega=2.5 gamma_strong=0.2 gamma_weak=0.7", 50, (512, 512)),
    },
    TREAD: {
        "sg_flops": ("sg omega=2.5 gamma_strong=0.5 gamma_weak=0.9", 40, (256, 256)),
        "sg_fid": (
            "ag+sg omega=2.5 gamma_strong=cosine:0=0:1=0.6 gamma_weak=cosine:0=0.6:1=0",
            40,
            (256, 256),
        ),
    },
}


@pytest.mark.parametrize(
    ("config", "preset"),
    [(config, preset) for config, presets in PRESET_ROWS.items() for preset in presets],
)
def test_a_preset_samples_as_the_papers_do(config: str, preset: str) -> None:
    path = CONFIGS / f"{config}.yaml"
    args = build_parser().parse_args(["--config", str(path), "--preset", preset])
    merged = merge_flags(load_config(path, [], SampleRun), args)
    guidance, steps, size = PRESET_ROWS[config][preset]
    assert str(merged.guidance.build()) == guidance
    sampling = merged.sampling
    assert (sampling.steps, sampling.size, sampling.solver) == (steps, size, "euler")
    assert preset in PRESETS
    assert f"--preset {preset}: " in build_parser().format_help()


def test_every_preset_is_held_against_the_papers() -> None:
    assert {name for presets in PRESET_ROWS.values() for name in presets} == set(PRESETS)


def test_configs_sample_as_their_first_preset_without_flags() -> None:
    for config, preset, steps in ((TR_DIT, "hpsv3", 50), (TREAD, "sg_flops", 40)):
        run = load_config(CONFIGS / f"{config}.yaml", [], SampleRun)
        assert str(run.guidance.build()) == str(PRESETS[preset].build())
        assert run.sampling.steps == steps
    assert load_config(CONFIGS / f"{MG}.yaml", [], SampleRun).guidance.name == "none"


def test_random_prompts_of_the_big_model_are_not_of_the_shapes_world() -> None:
    own = load_config(CONFIGS / f"{TR_DIT}.yaml", [], SampleRun).sampling.random_prompts
    assert len(set(own)) >= 16
    assert not set(own) & set(RANDOM_PROMPTS)
