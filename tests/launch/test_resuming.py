"""Proves that a run that goes on says which settings have changed and refuses another order of its data,
and that it can go back to a step, with nothing after it read or deleted, here and at its copies."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig
from data_pipeline.storage.stores import open_storage
from launch.config import UploadConfig, stage_section
from launch.environment import look_at_data
from launch.resuming import go_back_together
from launch.train_t2i import Config, train_stage
from launch.uploads import RemoteCheckpoints
from t2i.config import load_config
from t2i.console import run_command
from t2i.export import main as export
from t2i.training.averages.post_hoc import find_snapshots
from t2i.training.checkpoint import newest_checkpoint, step_of

REPO = Path(__file__).resolve().parents[2]
CONFIG = """
data_pipeline:
  loader:
    datasets: [{path: FOLDER/latents}]
    labels: true
    num_workers: 0
t2i:
  models:
    sit: {num_layers: 2, width: 16, num_heads: 2, num_classes: 3, routes: [[1, 1]]}
  training: {steps: 6, global_batch: 4, micro_batch: 2, learning_rate: 1.0e-2, checkpoint_every: 2,
             power_averages: [0.05, 0.1], snapshot_every: 1, keep_checkpoints: 5}
launch:
  train:
    model: sit
    stage1: {folder: FOLDER/run, training: {global_batch: 8, gamma: 0.25}}
    upload: {address: FOLDER/copies, keep: 5}
"""


def write_shard(folder: Path, name: str, num_samples: int = 8) -> None:
    with StepOutput.open(str(folder)).writer(name, {"bucket": "string"}) as writer:
        for number in range(num_samples):
            buffer, key = io.BytesIO(), f"{name}{number:06d}"
            np.save(buffer, np.full((8, 4, 4), 0.1 * (number % 3), np.float16))
            facts = {"captions": ["red circle"] * 4, "label": number % 3}
            parts = {"npy": buffer.getvalue(), "json": json.dumps(facts).encode()}
            writer.add(Outcome(Row(key, "ok", columns={"bucket": "32x32"}), Sample(key, parts)))
        writer.commit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("00000", "00001"):
        write_shard(tmp_path / "latents", name)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    return tmp_path


def train(folder: Path, *overrides: str) -> None:
    """As the command does, without a process group of its own."""
    config = load_config(folder / "config.yaml", overrides, Config)
    stage, data = config.launch.stage(1), list[str]()
    training = stage_section(config.training, stage.training, "launch.train.stage1.training")
    loader = stage_section(config.loader, stage.loader, "launch.train.stage1.loader")
    assert look_at_data(loader, config.storage, data) == []
    device = torch.device("cpu")
    assert train_stage(1, stage, training, loader, config, device, data=data) == 0


def steps(folder: Path) -> list[int]:
    return sorted(step for path in folder.iterdir() if (step := step_of(path.name)) is not None)


def copies(folder: Path) -> RemoteCheckpoints:
    return RemoteCheckpoints(UploadConfig(address=str(folder / "copies")), 1, StorageConfig())


def test_a_checkpoint_says_what_its_stage_was_trained_with(
    folder: Path, process_group: None
) -> None:
    train(folder)
    saved = newest_checkpoint(folder / "run" / "checkpoints")
    assert saved is not None
    (shards,) = saved.state.data
    assert shards.startswith("16 samples in 2 shards (")
    stored = yaml.safe_load((saved.path / "config.yaml").read_text())
    assert stored["stage"] == 1
    training = stored["t2i"]["training"]
    assert (training["global_batch"], training["gamma"], training["steps"]) == (8, 0.25, 6)
    assert load_config(saved.path / "config.yaml", [], Config).training.global_batch == 8

    flags = ("--run", str(folder / "run"), "--output", str(folder / "exported"))
    assert run_command(export, ["--config", str(folder / "config.yaml"), *flags]) == 0
    card = (folder / "exported" / "README.md").read_text()
    assert "| images seen | 48 |" in card
    assert "  global_batch: 8\n" in card
    assert "  gamma: 0.25\n" in card


def test_changed_settings_are_said_in_one_line(
    folder: Path, process_group: None, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, "t2i.training.steps=2")
    capsys.readouterr()
    unimportant = ("micro_batch=4", "log_every=2", "keep_checkpoints=4", "checkpoint_every=1")
    sets = [f"t2i.training.{setting}" for setting in unimportant]
    train(folder, "t2i.training.steps=3", *sets, "launch.train.upload=null")
    assert "changed since" not in capsys.readouterr().out
    train(
        folder,
        "t2i.training.steps=4",
        "launch.train.stage1.training.gamma=0.5",
        "t2i.training.objective={name: model_guidance, scale: 1.5}",
    )
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("changed since")]
    assert "step-00000003: " in line
    assert "t2i.training.gamma: 0.25 -> 0.5" in line
    assert "t2i.training.objective.name: 'flow_matching' -> 'model_guidance'" in line
    assert "t2i.training.objective.scale: not set -> 1.5" in line
    assert "steps" not in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("t2i.training.seed=1", "t2i.training.seed: 0 -> 1"),
        ("launch.train.stage1.training.global_batch=4", "t2i.training.global_batch: 8 -> 4"),
        ("data_pipeline.loader.window_shards=1", "data_pipeline.loader.window_shards: 16 -> 1"),
        ("data_pipeline.loader.held_out=1", "data_pipeline.loader.held_out: 0 -> 1"),
        ("data_pipeline.loader.datasets=[{path: FOLDER/latents, weight: 0.5}]", "'weight': 0.5"),
        ("a new shard", "/latents: 16 samples in 2 shards ("),
    ],
)
def test_another_order_of_the_data_is_refused_unless_accepted(
    change: str,
    named: str,
    folder: Path,
    process_group: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(folder, "t2i.training.steps=2")
    overrides = ["t2i.training.steps=3"]
    if change == "a new shard":
        write_shard(folder / "latents", "00002")
    else:
        overrides.append(change.replace("FOLDER", str(folder)))
    with pytest.raises(ValueError, match="the order of the data has changed since") as refusal:
        train(folder, *overrides)
    line = str(refusal.value)
    assert named in line
    assert "\n" not in line
    assert "--set launch.train.changed_data=accept" in line
    assert steps(folder / "run" / "checkpoints") == [2]

    capsys.readouterr()
    train(folder, *overrides, "launch.train.changed_data=accept")
    assert "warning: the order of the data has changed" in capsys.readouterr().out
    train(folder, *overrides[1:], "t2i.training.steps=4")
    assert "changed since" not in capsys.readouterr().out, "the new order is that of the run now"


def test_checkpoints_of_older_code_are_not_compared(
    folder: Path, process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("launch.train_t2i.stage_settings", lambda *_: "launch: {}\n")
        train(folder, "t2i.training.steps=2")
    train(folder, "t2i.training.steps=3", "t2i.training.seed=1")


def test_a_run_goes_back_and_nothing_is_deleted(folder: Path, process_group: None) -> None:
    train(folder)
    run = folder / "run"
    checkpoints, snapshots = run / "checkpoints", run / "snapshots"
    assert copies(folder).names()[0] == "step-00000006"
    before = {path.stat().st_ino for path in folder.rglob("*.safetensors")}

    go_back_together(run, 2, copies(folder))
    assert steps(checkpoints) == [2]
    assert steps(snapshots) == [1, 2]
    assert len(list(checkpoints.glob("step-0000000[46].aside-*"))) == 2
    assert len(list(snapshots.glob("step-0000000[3-6].aside-*"))) == 4
    assert all(name <= "step-00000002" for name in copies(folder).names())
    assert {path.stat().st_ino for path in folder.rglob("*.safetensors")} == before
    assert go_back_together(run, 2, copies(folder)) == []

    train(folder, "t2i.training.learning_rate=1.0e-3")
    assert steps(checkpoints) == [2, 4, 6]
    assert len(find_snapshots(run)) == 6
    assert copies(folder).names()[0] == "step-00000006"
    assert copies(folder).fetch("step-00000006", folder / "fresh") is None
    assert "0.001" in (folder / "fresh" / "step-00000006" / "config.yaml").read_text()


def test_a_step_to_go_back_to_must_be_there(
    folder: Path, write_checkpoint: Callable[..., Path], process_group: None
) -> None:
    checkpoints = folder / "run" / "checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(checkpoints, step)
    with pytest.raises(ValueError, match=r"--from-step 7: .* is not there\); there are: 1, 2, 3$"):
        go_back_together(folder / "run", 7, None)
    (checkpoints / "step-00000002" / "ema.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"ema.safetensors has 3 bytes"):
        go_back_together(folder / "run", 2, None)
    assert steps(checkpoints) == [1, 2, 3]


def test_a_fresh_machine_goes_back_to_a_copy(
    tmp_path: Path,
    write_checkpoint: Callable[..., Path],
    process_group: None,
    s3_url: str,
    s3_config: StorageConfig,
) -> None:
    remote = RemoteCheckpoints(UploadConfig(address=s3_url, keep=1), 1, s3_config)
    for step in (1, 2, 3):
        path = write_checkpoint(tmp_path, step)
        remote.send(path, path.name)
    moved = go_back_together(tmp_path / "run", 1, remote)
    assert moved == [f"{remote.url}/step-00000003", f"{remote.url}/step-00000002"]
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert remote.fetch_newer(tmp_path / "run" / "checkpoints", newest) is newest
    assert newest.state.step == 1

    files = len(open_storage(f"{s3_url}/stage1", s3_config).list())
    remote.trim("step-00000001")
    assert len(open_storage(f"{s3_url}/stage1", s3_config).list()) == files, "what is aside stays"
    remote.send(path, path.name)
    assert remote.names() == ["step-00000003", "step-00000001"]
    remote.trim("step-00000003")
    assert remote.names() == ["step-00000003"]


def test_snapshots_of_a_branch_that_was_left_are_set_aside(
    folder: Path, process_group: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run had taken snapshots after its last checkpoint."""
    train(folder, "t2i.training.steps=3", "launch.train.upload=null")
    newest = newest_checkpoint(folder / "run" / "checkpoints")
    assert newest is not None
    newest.path.rename(folder / "lost")
    capsys.readouterr()
    train(
        folder, "t2i.training.steps=4", "launch.train.upload=null", "t2i.training.snapshot_every=4"
    )
    assert steps(folder / "run" / "snapshots") == [1, 2, 4]
    assert "set aside, of a branch of the run that was left" in capsys.readouterr().out
