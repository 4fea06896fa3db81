"""Proves which settings of model-guidance are refused, and the walk of the automatic scale."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from pydantic import ValidationError

from t2i.training.objectives.model_guidance_config import (
    AutoScale,
    ModelGuidanceConfig,
    ScaleInterval,
    ScaleState,
    check_scale_input,
    update_scale,
)


def test_the_paper_is_the_default() -> None:
    config = ModelGuidanceConfig()
    assert config.scale == 1.5
    assert (config.num_references, config.from_step, config.below_noise_level) == (0, 0, None)


def test_the_kind_of_scale_is_read_from_its_form() -> None:
    kinds = [{"low": 1.0, "high": 3.0}, {"decay": 0.5}, 1.25]
    read = [ModelGuidanceConfig.model_validate({"scale": kind}).scale for kind in kinds]
    assert read == [ScaleInterval(low=1.0, high=3.0), AutoScale(decay=0.5), 1.25]


@pytest.mark.parametrize(
    "scale", [0.5, {"low": 1.2, "high": 2.0}, {"low": 1.0, "high": 1.0}, {"highest": 1.0}]
)
def test_scales_without_the_plain_one_are_refused(scale: object) -> None:
    with pytest.raises(ValidationError):
        ModelGuidanceConfig.model_validate({"scale": scale})


def test_a_scale_input_and_an_interval_go_together() -> None:
    fixed, interval = ModelGuidanceConfig(), ModelGuidanceConfig(scale=ScaleInterval())
    check_scale_input(fixed, network_takes_scale=False)
    check_scale_input(interval, network_takes_scale=True)
    with pytest.raises(ValueError, match="the network has no scale input"):
        check_scale_input(interval, network_takes_scale=False)
    with pytest.raises(ValueError, match="scale must be an interval"):
        check_scale_input(fixed, network_takes_scale=True)


def test_the_automatic_scale_rises_while_quality_falls_and_sinks_otherwise() -> None:
    config = AutoScale(highest=2.0, decay=0.5)
    state = ScaleState()
    walk = []
    for quality in (10.0, 8.0, 8.0, 11.0, 9.5):
        state = update_scale(config, state, quality)
        walk.append((state.scale, state.quality))
    # by hand: running quality 10, 9, 8.5, 9.75, 9.625; scale halfway to 2 when it falls, else to 1
    assert walk == [(1.0, 10.0), (1.5, 9.0), (1.75, 8.5), (1.375, 9.75), (1.6875, 9.625)]


def test_equal_quality_lowers_the_automatic_scale() -> None:
    state = update_scale(AutoScale(), ScaleState(scale=1.5, quality=3.0), quality=3.0)
    assert state.scale < 1.5


def test_the_automatic_scale_stays_between_plain_and_highest() -> None:
    config, state = AutoScale(highest=1.75, decay=0.8), ScaleState()
    for evaluation in range(200):
        state = update_scale(config, state, quality=float(-evaluation))
        assert 1 <= state.scale <= 1.75
    assert state.scale == pytest.approx(1.75, abs=1e-3)


def test_the_state_survives_a_checkpoint() -> None:
    state = update_scale(AutoScale(), ScaleState(1.2, 3.0), quality=2.0)
    assert ScaleState(**asdict(state)) == state
