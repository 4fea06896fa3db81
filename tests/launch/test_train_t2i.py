"""Proves the training command: fast help, stages as differences, and where a stage starts from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from launch.config import LaunchConfig, StageConfig, stage_section
from launch.train_t2i import Config, copies_to_start_from, fresh_start, main
from t2i.config import ConfigError, load_config
from t2i.flow import TimestepConfig
from t2i.training import checkpoint
from t2i.training.objectives.config import FlowMatchingConfig
from t2i.training.objectives.model_guidance_config import ModelGuidanceConfig
from t2i.training.training_config import TrainingConfig

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "launch" / "train_t2i.py"


def test_help_is_fast_and_shows_examples() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "deepspeed launch/train_t2i.py --stage 2" in done.stdout
    for heavy in ("torch", "transformers", "deepspeed", "ray"):
        assert f" {heavy}\n" not in done.stderr, f"--help imports {heavy}"


def test_the_config_is_printed_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--stage", "1", "--set", "t2i.training.gamma=0.25", "--print-config"]
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["t2i"]["training"]["gamma"] == 0.25
    (tmp_path / "again.yaml").write_text(text)
    with pytest.raises(SystemExit, match="0"):
        main(["--stage", "1", "--config", str(tmp_path / "again.yaml"), "--print-config"])
    assert capsys.readouterr().out == text


def test_a_stage_is_a_difference_from_the_shared_settings() -> None:
    base = TrainingConfig(steps=10, timestep=TimestepConfig(mean=1.0))
    difference = {"steps": 5, "timestep": {"shift": 2.0}}
    stage = stage_section(base, difference, "launch.train.stage2.training")
    assert stage.steps == 5
    assert stage.timestep == TimestepConfig(mean=1.0, shift=2.0)
    assert stage.learning_rate == base.learning_rate


def test_a_stage_may_have_another_objective() -> None:
    base = TrainingConfig.model_validate({"objective": {"name": "model_guidance"}})
    stage = stage_section(base, {"objective": {"name": "flow_matching"}}, "launch.train.stage2")
    assert stage.objective == FlowMatchingConfig()
    stage = stage_section(base, {"objective": {"scale": 1.25}}, "launch.train.stage2")
    assert stage.objective == ModelGuidanceConfig(scale=1.25)


def test_an_unknown_key_of_a_stage_is_named() -> None:
    with pytest.raises(ConfigError, match=r"launch\.train\.stage2\.training\.step.*valid.*steps"):
        stage_section(TrainingConfig(), {"step": 5}, "launch.train.stage2.training")


def test_stage_2_starts_from_stage_1_by_default() -> None:
    config = LaunchConfig()
    assert config.stage(2).start_from_run == config.stage(1).folder


def write_stage_1(folder: Path, step: int = 7) -> Path:
    import torch

    temporary = checkpoint.temporary_folder(folder / "checkpoints", step)
    temporary.mkdir(parents=True)
    for value, kind in enumerate(checkpoint.TENSOR_KINDS):
        checkpoint.write_tensors(temporary, kind, {"w": torch.full((2,), float(value))})
    return checkpoint.commit(temporary, checkpoint.TrainingState(step, 6, 6, 1), "", keep=3)


def test_stage_2_takes_weights_and_ema_of_stage_1(
    tmp_path: Path, process_group: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stage_1(tmp_path / "stage1")
    stage = StageConfig(folder="stage2", start_from_run=str(tmp_path / "stage1"))
    start = fresh_start(2, stage)
    assert start.weights is not None
    assert start.ema is not None
    assert (start.weights["w"][0], start.ema["w"][0]) == (0.0, 1.0)
    assert (start.step, start.skipped, start.optimizer_steps, start.moments) == (0, 0, 0, None)
    assert start.ema_updates == 6
    line = capsys.readouterr().out
    assert "stage 2 starts from weights and EMA of" in line
    assert "step-00000007" in line

    start = fresh_start(2, stage.model_copy(update={"start_with_optimizer": True}))
    assert start.moments is not None
    assert start.moments["exp_avg_sq"]["w"][0] == 3.0
    assert start.optimizer_steps == 6


def test_stage_2_on_a_fresh_machine_takes_the_copies_of_stage_1(
    tmp_path: Path, process_group: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(
        REPO / "configs" / "nano.yaml",
        [f"root={tmp_path}", f"launch.train.upload.address={tmp_path / 'copies'}"],
        Config,
    )
    stage = config.launch.stage2
    copies = copies_to_start_from(config, stage)
    assert copies is not None
    written = write_stage_1(tmp_path / "elsewhere")
    copies.send(written, written.name)
    start = fresh_start(2, stage, copies)
    assert start.weights is not None
    assert str(tmp_path / "runs" / "stage1" / "checkpoints" / written.name) in start.source
    assert copies_to_start_from(config, config.launch.stage1) is None


def test_stage_2_takes_the_newest_checkpoint_that_verifies(
    tmp_path: Path, process_group: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (7, 8, 9):
        newest = write_stage_1(tmp_path / "stage1", step)
    file = newest / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    start = fresh_start(2, StageConfig(folder="stage2", start_from_run=str(tmp_path / "stage1")))
    assert "step-00000008" in start.source
    assert "step-00000008" in capsys.readouterr().out
    for path in (tmp_path / "stage1" / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(ConfigError, match="has no whole checkpoint"):
        fresh_start(2, StageConfig(folder="stage2", start_from_run=str(tmp_path / "stage1")))


def test_without_stage_1_the_command_says_what_to_do(tmp_path: Path) -> None:
    """A user sees one line and exit code 2, no traceback."""
    stage = "launch.train.stage2"
    sets = [f"root={tmp_path}", f"{stage}.start_from_transformer=null"]
    command = [sys.executable, str(SCRIPT), "--stage", "2"]
    command += [part for value in sets for part in ("--set", value)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "run `deepspeed launch/train_t2i.py --stage 1` first" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_stage_1_the_named_transformer_is_taken(
    tmp_path: Path, process_group: None, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    save_file({"w": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    stage = StageConfig(
        folder="stage2",
        start_from_run=str(tmp_path / "stage1"),
        start_from_transformer=str(tmp_path),
    )
    start = fresh_start(2, stage)
    assert start.weights is not None
    assert start.weights["w"][0] == 1.0
    assert start.ema is None
    assert f"starts from the transformer {tmp_path}" in capsys.readouterr().out


def test_without_either_an_error_says_how_to_get_one(tmp_path: Path, process_group: None) -> None:
    stage = StageConfig(folder="stage2", start_from_run=str(tmp_path / "stage1"))
    with pytest.raises(ConfigError, match="--stage 1` first"):
        fresh_start(2, stage)
