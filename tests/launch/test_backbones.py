"""Proves what goes together: settings that a model or an objective would ignore or cannot use are
one-line errors that name the key, and everything that fits is let through and built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.backbones import build_backbone, check_fits
from launch.train_t2i import Config, main
from t2i.config import ConfigError, load_config
from t2i.console import run_command

REPO = Path(__file__).resolve().parents[2]
LABELLED = ("data_pipeline.loader.labels=true",)
SIT = ("launch.train.model=sit", *LABELLED)
MASK_DIT = ("launch.train.model=mask_dit", *LABELLED)
MASKED = ("t2i.training.objective.name=masked",)
GUIDED = ("t2i.training.objective.name=model_guidance",)
INTERNAL = ("t2i.training.objective.name=internal",)
NO_DROPOUT = ("data_pipeline.loader.caption_dropout=0",)
INTERVAL = (*GUIDED, "t2i.training.objective.scale={low: 1.0, high: 2.0}")


def load(*overrides: str, path: str = "nano") -> Config:
    return load_config(REPO / "configs" / f"{path}.yaml", overrides, Config)


def check(config: Config) -> None:
    check_fits(config, config.training, config.loader)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        GUIDED,
        SIT,
        (*SIT, *GUIDED),
        (*GUIDED, "t2i.training.objective.num_references=4", *NO_DROPOUT),
        (*SIT, *GUIDED, "t2i.training.objective.num_references=4", *NO_DROPOUT),
        ("t2i.training.routing_draw=bernoulli",),
        (*MASK_DIT, *MASKED, "t2i.training.routing_draw=bernoulli"),
        (
            *SIT,
            *GUIDED,
            "t2i.training.objective.scale={decay: 0.8}",
            "launch.train.validation_samples=8",
            "data_pipeline.loader.held_out=8",
        ),
        (*MASK_DIT, *MASKED),
        (*MASK_DIT, "t2i.training.gamma=0"),
        (*MASK_DIT, *GUIDED, "t2i.training.gamma=0"),
        (*INTERVAL, "t2i.models.tr_dit.scale_input=true"),
        (*SIT, *INTERVAL, "t2i.models.sit.scale_input=true"),
        (*SIT, "t2i.models.tr_dit.scale_input=true"),
        (*INTERNAL, "t2i.models.tr_dit.internal_after=1"),
        (*SIT, *INTERNAL, "t2i.models.sit.internal_after=0"),
        ("t2i.models.tr_dit.after_route=fuse", "t2i.training.deep_path_dropout=0.1"),
        (*SIT, "t2i.models.sit.after_route=fuse", "t2i.training.gamma=0.75"),
    ],
)
def test_what_fits_is_let_through(overrides: tuple[str, ...]) -> None:
    check(load(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (LABELLED, "data_pipeline.loader.labels: tr_dit .* would ignore them"),
        (("launch.train.model=sit",), "sit is conditioned on classes; set data_pipeline.loader.l"),
        (MASKED, "masked needs a model that can mask; set launch.train.model to mask_dit"),
        ((*SIT, *MASKED), "masked needs a model that can mask"),
        ((*MASK_DIT, *MASKED, "t2i.training.gamma=0"), "masked needs t2i.training.gamma above 0"),
        (MASK_DIT, "only objective masked has a loss for them"),
        ((*MASK_DIT, *GUIDED), "only objective masked has a loss for them"),
        ((*SIT, "t2i.models.sit.prediction=epsilon"), "t2i.models.sit.prediction: .* velocity"),
        ((*SIT, "t2i.models.sit.routes=[]"), "gamma 0.5 skips tokens, but t2i.models.sit.routes"),
        (("t2i.models.tr_dit.routes=[]",), "t2i.models.tr_dit.routes is empty"),
        (
            ("launch.train.validation_samples=9", "data_pipeline.loader.held_out=8"),
            "validation_samples 9: only 8 samples are held out; set data_pipeline.loader.held_out",
        ),
        (
            (*SIT, *INTERVAL, "t2i.models.tr_dit.scale_input=true"),
            "t2i.training.objective: scale is an interval, but the network has no scale input; .*"
            "set scale_input of the model to true",
        ),
        (
            (*SIT, *GUIDED, "t2i.models.sit.scale_input=true"),
            "t2i.training.objective: the network has a scale input, so scale must be an interval",
        ),
        (
            ("t2i.models.tr_dit.scale_input=true",),
            "t2i.models.tr_dit.scale_input: objective flow_matching feeds no scale; set it to false",
        ),
        (
            INTERNAL,
            "internal trains a head inside the network, and tr_dit has none; set internal_af",
        ),
        ((*MASK_DIT, *INTERNAL, "t2i.training.gamma=0"), "a head inside .*, and mask_dit has none"),
        (
            ("t2i.models.tr_dit.internal_after=1",),
            "tr_dit.internal_after 1: objective flow_matching does not train an internal head; set it",
        ),
        (
            (*MASK_DIT, *MASKED, "t2i.training.deep_path_dropout=0.1"),
            "deep_path_dropout 0.1 leaves out routed layers, and mask_dit has none here",
        ),
        (
            (
                "t2i.models.tr_dit.routes=[]",
                "t2i.training.gamma=0",
                "t2i.training.deep_path_dropout=0.1",
            ),
            "deep_path_dropout 0.1 leaves out routed layers, and tr_dit has none here; set it to 0",
        ),
        (
            (*MASK_DIT, *MASKED, "t2i.models.mask_dit.scale_input=true"),
            "t2i.models.mask_dit.scale_input: objective masked feeds no scale; set it to false",
        ),
        (
            (*GUIDED, "t2i.training.objective.scale={decay: 0.8}"),
            "an automatic scale follows the validation loss; set launch.train.validation_samples",
        ),
        (
            (*GUIDED, "data_pipeline.loader.caption_dropout=0"),
            "the null condition is never trained",
        ),
        (
            (
                *GUIDED,
                "t2i.training.objective.num_references=4",
                "t2i.training.objective.num_reference_captions=3",
            ),
            "num_references 4: they are drawn from num_reference_captions 3; set at most that many",
        ),
        (
            (*GUIDED, "t2i.training.objective.num_reference_captions=3"),
            "num_reference_captions 3: only tr_dit with num_references above 0 draws captions",
        ),
        (
            (
                *SIT,
                *GUIDED,
                "t2i.training.objective.num_references=4",
                "t2i.training.objective.num_reference_captions=5",
            ),
            r"num_reference_captions 5: .* \(the model is sit, num_references 4\); leave it out",
        ),
        (
            (*SIT, *GUIDED, "t2i.training.objective.num_references=4"),
            r"num_references 4 puts .* empty one, which data_pipeline.loader.caption_dropout 0.1 trains",
        ),
        (
            (*SIT, *GUIDED, "t2i.training.objective.num_references=25"),
            "num_references 25: the model has 24 classes",
        ),
        (
            (
                "data_pipeline.loader.datasets=[{path: s3://bucket/latents}]",
                "t2i.training.timeout_minutes=20",
            ),
            "retry_minutes 20 must be below t2i.training.timeout_minutes 20, which ends a run",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(load(*overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("t2i.training.objective.name=mask",), "t2i.training.objective.*'masked'.*got"),
        (
            (*MASKED, "t2i.training.objective.wieght=1"),
            "unknown key 't2i.training.objective.wieght'; did you mean 'weight'",
        ),
        (("t2i.training.objective.scale=1.5",), "objective: the key 'name' is missing"),
        ((*MASKED, "t2i.training.zero_stage=3"), "zero_stage 3 does not keep; set zero_stage to 2"),
        (("launch.train.model=dit",), "launch.train.model: .*'tr_dit', 'sit' or 'mask_dit'"),
    ],
)
def test_bad_values_of_an_objective_are_named(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*overrides)


def test_the_command_refuses_before_it_builds_anything(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--stage", "1", "--set", "t2i.training.objective={name: masked}"]
    assert run_command(main, arguments) != 0
    output = capsys.readouterr()
    assert "masked needs a model that can mask" in output.out + output.err
    assert "Traceback" not in output.out + output.err


@pytest.mark.parametrize(
    ("path", "model", "millions"),
    [("tread", "SiT", 675), ("maskdit", "MaskDiT", 730), ("mg", "SiT", 675)],
)
def test_the_imagenet_configs_fit_and_have_their_size(path: str, model: str, millions: int) -> None:
    config = load(path=f"imagenet_sit_xl2_{path}")
    check(config)
    with torch.device("meta"):
        backbone = build_backbone(config, config.training, torch.device("cpu"))
    assert type(backbone.model).__name__ == model
    number = sum(parameter.numel() for parameter in backbone.model.parameters()) / 1e6
    assert number == pytest.approx(millions, rel=0.02)
    training = config.training
    assert (training.learning_rate, training.betas) == (1e-4, (0.9, 0.999))
    assert (training.global_batch, training.gamma) == (256, 0.0 if path == "mg" else 0.5)


def test_a_seed_gives_the_same_weights() -> None:
    config = load(*SIT)
    first, second = (build_backbone(config, config.training, torch.device("cpu")) for _ in "ab")
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
