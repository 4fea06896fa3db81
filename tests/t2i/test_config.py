"""Proves the config layer: order of values, variables, and errors that name file, key and way out."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from pydantic import Field, model_validator

from t2i.config import (
    ConfigError,
    Section,
    add_config_arguments,
    config_from_args,
    dump_config,
    load_config,
    section,
)


class Inner(Section):
    depth: int = 1


class Sampling(Section):
    steps: int = Field(default=50, ge=1)
    folder: str = "samples"
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _few_steps_of_deep_ones(self) -> Sampling:
        if self.inner.depth > self.steps:
            raise ValueError(f"inner.depth {self.inner.depth} is above steps {self.steps}")
        return self


class Command(Section):
    sampling: Sampling = section("t2i.sampling")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_values_come_from_defaults_base_file_and_overrides_in_this_order(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "t2i: {sampling: {steps: 1, inner: {depth: 2}}}")
    path = write(tmp_path / "c.yaml", "base: base.yaml\nt2i: {sampling: {steps: 2}}")
    assert load_config(path, [], Command).sampling.steps == 2
    assert load_config(path, [], Command).sampling.inner.depth == 2
    assert load_config(path, ["t2i.sampling.steps=3"], Command).sampling.steps == 3


def test_variables_are_filled_in(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "root: there\nt2i: {sampling: {folder: '${root}/x'}}")
    assert load_config(path, [], Command).sampling.folder == "there/x"
    assert load_config(path, ["root=here"], Command).sampling.folder == "here/x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t2i: {sampling: {step: 1}}", r"unknown key 't2i.sampling.step'; did you mean 'steps'"),
        ("t2i: {sampling: {inner: {dept: 1}}}", r"'t2i.sampling.inner.dept'; did you mean 'depth'"),
        ("t2i: {sampling: {steps: 0}}", r"t2i.sampling.steps: .*greater than or equal to 1"),
        ("t2i: {sampling: {steps: many}}", r"t2i.sampling.steps: .*valid integer.*'many'"),
        (
            "t2i: {samplin: {steps: 1}}",
            r"unknown section 't2i.samplin'; did you mean 't2i.sampling'",
        ),
        ("t2i: {sampling: {folder: '${rot}/x'}}", r"unknown variable 'rot'"),
        (
            "t2i: {sampling: {inner: {depth: 51}}}",
            r"t2i.sampling: inner.depth 51 is above steps 50$",
        ),
        ("- 1", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("base: c.yaml", "in a circle"),
        ("base: other.yaml", "other.yaml: no such config file"),
    ],
)
def test_bad_files_are_refused_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, [], Command)
    assert ".yaml" in str(caught.value)


def test_a_malformed_override_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "")
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        load_config(path, ["t2i.sampling.steps"], Command)


def test_print_config_prints_what_loads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.yaml", "root: there\nt2i: {sampling: {steps: 7}}")
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    args = parser.parse_args(["--config", str(path), "--print-config"])
    with pytest.raises(SystemExit) as stopped:
        config_from_args(args, Command)
    assert stopped.value.code == 0
    printed = write(tmp_path / "printed.yaml", capsys.readouterr().out)
    assert dump_config(load_config(printed, [], Command)) == printed.read_text()
    assert load_config(printed, [], Command).sampling.steps == 7
