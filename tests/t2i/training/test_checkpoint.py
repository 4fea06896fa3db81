"""Proves that a checkpoint is complete or absent, and that a damaged one is passed over."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2i.training import checkpoint
from t2i.training.checkpoint import TrainingState

Writer = Callable[..., Path]


def test_what_was_saved_is_read_back(tmp_path: Path, write_checkpoint: Writer) -> None:
    write_checkpoint(tmp_path, 5)
    saved = checkpoint.newest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.state == TrainingState(step=5, optimizer_steps=5, ema_updates=5, skipped=0)
    assert saved.tensors("ema")["layer.weight"].tolist() == [5.0] * 3
    assert list(saved.tensors("weights")) == ["layer.weight"]
    assert (saved.path / "config.yaml").read_text() == "root: x\n"


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path: Path, write_checkpoint: Writer, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, 1)
    newest = write_checkpoint(tmp_path, 2)
    file = newest / "ema.safetensors"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        file.unlink()
    else:
        (newest / checkpoint.MANIFEST).write_text("{")
    logger = logging.getLogger("sparse")
    logger.propagate = True
    saved = checkpoint.newest_checkpoint(tmp_path)
    logger.propagate = False
    assert saved is not None
    assert saved.state.step == 1
    expected = checkpoint.MANIFEST if damage == "no manifest" else "ema.safetensors"
    assert str(newest) in caplog.text
    assert expected in caplog.text


def test_an_interrupted_save_leaves_nothing_that_counts(
    tmp_path: Path, write_checkpoint: Writer
) -> None:
    write_checkpoint(tmp_path, 1)
    temporary = checkpoint.temporary_folder(tmp_path, 2)
    temporary.mkdir()
    checkpoint.write_tensors(temporary, "weights", {"layer.weight": torch.zeros(3)})
    saved = checkpoint.newest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.state.step == 1
    checkpoint.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(
    tmp_path: Path, write_checkpoint: Writer
) -> None:
    path = write_checkpoint(tmp_path, 3)
    (path / "weights.safetensors").unlink()
    write_checkpoint(tmp_path, 3)
    assert checkpoint.find_damage(path) is None


def test_only_the_newest_are_kept(tmp_path: Path, write_checkpoint: Writer) -> None:
    for step in range(1, 6):
        write_checkpoint(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_the_manifest_lists_every_other_file(tmp_path: Path, write_checkpoint: Writer) -> None:
    path = write_checkpoint(tmp_path, 1)
    listed = set(json.loads((path / checkpoint.MANIFEST).read_text())["files"])
    assert listed | {checkpoint.MANIFEST} == {file.name for file in path.iterdir()}


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest_checkpoint(tmp_path / "nowhere") is None
