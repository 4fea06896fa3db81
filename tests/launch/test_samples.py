"""Proves that prompts and methods which a model cannot sample are refused before anything is built, and that
config alone makes a run sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.backbones import build_text_encoder
from launch.samples import build_samples, check_samples, check_swaps, prompts_of
from launch.train_t2i import Config
from t2i.config import ConfigError, load_config
from t2i.evaluation.shapes_ceiling import rendered
from t2i.sampling.prompts import builtin_prompts

REPO = Path(__file__).resolve().parents[2]
ON = "t2i.training.sample_every=10"
SIT = ("launch.train.model=sit", "data_pipeline.loader.labels=true")


def load(*overrides: str, path: str = "nano") -> Config:
    return load_config(REPO / "configs" / f"{path}.yaml", overrides, Config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*SIT, ON), "validation_prompts: 'A small red .*' is not a class of sit; give numbers"),
        ((*SIT, ON, "launch.train.validation_prompts=[24]"), "'24' is not a class.* 0 to 23"),
        ((ON, "launch.train.validation_guidance=[ag]"), "'ag' cannot be sampled with one network"),
        ((ON, "launch.train.validation_guidance=[best]"), "choose among: none cfg sg"),
        ((ON, "t2i.models.tr_dit.routes=[]"), "sg drops tokens, but t2i.models.tr_dit.routes"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(overrides: tuple[str, ...], message: str) -> None:
    config = load(*overrides)
    with pytest.raises(ConfigError, match=message):
        check_samples(config, config.training)
    off = config.training.model_copy(update={"sample_every": 0})
    check_samples(config, off)


METRIC = "launch.train.samples_metric"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((f"{METRIC}.name=shapes",), "set t2i.training.sample_every above 0"),
        ((ON, f"{METRIC}.name=beauty"), "name is 'beauty'; known metrics: adm, aesthetic"),
        ((ON, f"{METRIC}={{name: shapes, ceilings: 1}}"), "--ceilings Extra inputs"),
        (
            (ON, *SIT, "launch.train.validation_prompts=[1]", f"{METRIC}.name=shapes"),
            "shapes needs prompts, and sit has classes",
        ),
    ],
)
def test_a_metric_that_cannot_be_measured_is_refused(
    overrides: tuple[str, ...], message: str
) -> None:
    config = load(*overrides)
    with pytest.raises(ConfigError, match=message):
        check_samples(config, config.training)


def test_samples_are_measured_by_the_main_score_and_more_is_better(tmp_path: Path) -> None:
    prompts = builtin_prompts(4)
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    truth = list(rendered(prompts, 128))
    wrong = [truth[1], truth[0], *truth[2:]]
    reference = tmp_path / "reference"
    reference.mkdir()
    for number, image in enumerate(truth):
        image.save(reference / f"{number}.png")
    cases = {
        "{name: shapes}": (1.0, 0.5),
        f"{{name: fdd, random_weights: 0, draws: 0, reference: {reference}}}": (0.0, None),
    }
    for metric, (of_truth, of_wrong) in cases.items():
        config = load(
            ON, f"launch.train.validation_prompts={tmp_path / 'prompts.txt'}", f"{METRIC}={metric}"
        )
        stage = config.launch.stage(1)
        samples = build_samples(config.launch, stage, config.training, config.vae, 2, None)
        assert samples is not None
        assert samples.quality is not None
        assert samples.quality(truth) == pytest.approx(of_truth, abs=1e-6)
        if of_wrong is not None:
            assert samples.quality(wrong) == of_wrong
        assert samples.quality([truth[0]] * 4) < of_truth


@pytest.mark.parametrize("path", ["nano", "tr_dit_2b5", "imagenet_sit_xl2_tread"])
def test_the_prompts_of_the_configs_can_be_sampled(path: str) -> None:
    config = load(ON, path=path)
    check_samples(config, config.training)


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("launch.train.validation_samples=0", "not tr_dit and 0"),
        ("launch.train.model=sit", "not sit and 256"),
    ],
)
def test_words_are_swapped_only_where_there_are_held_out_captions(
    override: str, found: str
) -> None:
    check_swaps(load(path="nano_training").launch)
    with pytest.raises(ConfigError, match=f"{found}; set these, or validation_swaps to null"):
        check_swaps(load(override, path="nano_training").launch)


def test_prompts_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    config = load(f"launch.train.validation_prompts={tmp_path / 'prompts.txt'}")
    assert prompts_of(config.launch) == ["a cat", "a dog"]


def test_the_encoders_are_loaded_only_for_a_run_that_samples() -> None:
    config = load()
    vae = config.vae.model_copy(update={"path": "/no/such/folder"})
    stage = config.launch.stage(1)
    assert build_samples(config.launch, stage, config.training, vae, 2, None) is None
    config = load(ON, *SIT, "launch.train.validation_prompts=[1, 2]")
    assert build_text_encoder(config, config.training, torch.device("cpu")) is None
    samples = build_samples(config.launch, stage, config.training, config.vae, 2, None)
    assert samples is not None
    assert samples.prompts == ("1", "2")
    assert list(samples.methods) == ["none", "cfg", "sg"]
    odd = stage.model_copy(update={"validation_size": (100, 128)})
    with pytest.raises(ConfigError, match=r"100x128 .* multiples of 16"):
        build_samples(config.launch, odd, config.training, config.vae, 2, None)
