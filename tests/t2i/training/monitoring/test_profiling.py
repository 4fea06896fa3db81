"""Proves that the steps asked for are traced, and no others."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from t2i.config import ConfigError
from t2i.training.monitoring.profiling import (
    Profile,
    ProfileSteps,
    check_profile_steps,
    communication_share,
    parse_profile_steps,
)

TINY_RUN = Path(__file__).parents[1] / "tiny_run.py"


def test_the_flag_is_read_or_explained() -> None:
    assert parse_profile_steps("10:12") == ProfileSteps(10, 12)
    for wrong in ("10", "12:10", "3:3", "-1:2", "a:b"):
        with pytest.raises(ConfigError, match="must be START:STOP"):
            parse_profile_steps(wrong)


def test_steps_outside_the_run_are_refused() -> None:
    check_profile_steps(ProfileSteps(7, 9), 9)
    with pytest.raises(ValueError, match="ends with step 9; choose steps before that"):
        check_profile_steps(ProfileSteps(8, 10), 9)


def test_a_run_that_goes_on_behind_the_steps_is_not_traced(tmp_path: Path) -> None:
    profile = Profile(ProfileSteps(4, 6), tmp_path, 5)
    for step in range(5, 10):
        profile.at(step)
        assert not profile.is_tracing


def test_a_step_of_a_run_is_traced(tmp_path: Path, process_group: None) -> None:
    from t2i.training.trainer import train

    run = runpy.run_path(str(TINY_RUN))["make_run"](tmp_path, 3, 0, 2, "fp32", size=8)
    assert train(replace(run, profile=ProfileSteps(1, 2)))
    trace = json.loads((tmp_path / "profile" / "steps-1-2.json").read_text())
    names = [event["name"] for event in trace["traceEvents"]]
    assert names.count("forward") == names.count("backward") == names.count("agreement") == 1
    table = (tmp_path / "profile" / "steps-1-2.txt").read_text()
    assert "aten::mm" in table
    assert "communication:" in table


class Span:
    def __init__(self, name: str, start: float, end: float) -> None:
        self.name, self.time_range = name, self
        self.start, self.end = start, end


def test_overlapping_collectives_count_once() -> None:
    spans = [Span("aten::mm", 0, 100), Span("gloo:all_reduce", 10, 30), Span("gloo:send", 20, 40)]
    assert communication_share(spans) == pytest.approx(0.3)
    assert communication_share([]) == 0
    kernels = [*spans, Span("nccl:all_reduce", 0, 90), Span("ncclDevKernel_AllReduce", 50, 60)]
    assert communication_share(kernels) == pytest.approx(0.1)
