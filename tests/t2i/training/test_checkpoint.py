"""Proves that a checkpoint is complete or absent, and that a damaged one is passed over."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2i.training import checkpoint
from t2i.training.checkpoint import TrainingState

Writer = Callable[..., Path]
REPO = Path(__file__).resolve().parents[3]


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


def test_a_damaged_newer_checkpoint_does_not_push_out_a_whole_one(
    tmp_path: Path, write_checkpoint: Writer
) -> None:
    (write_checkpoint(tmp_path, 9) / "ema.safetensors").unlink()
    write_checkpoint(tmp_path, 4)
    write_checkpoint(tmp_path, 5, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000009"]
    saved = checkpoint.newest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.state.step == 5


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, write_checkpoint: Writer) -> None:
    path = write_checkpoint(tmp_path, 1)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["files"]["../secret"] = manifest["files"]["state.json"]
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    assert "outside the folder: ../secret" in str(checkpoint.find_damage(path))


# Saves the step after the newest one again and again, each time in a process that is killed one file
# operation later (they are counted by the interpreter's audit), until one lives to its end.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from t2i.training import checkpoint
from t2i.training.checkpoint import TrainingState

folder = Path(sys.argv[1])
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir"}

def save(step):
    checkpoint.remove_leftovers(folder)
    temporary = checkpoint.temporary_folder(folder, step)
    temporary.mkdir(parents=True, exist_ok=True)
    for kind in checkpoint.TENSOR_KINDS:
        checkpoint.write_tensors(temporary, kind, {"w": torch.full((9,), float(step))})
    checkpoint.commit(temporary, TrainingState(step, step, step, 0), "", keep=1)

def save_until_killed(step, life):
    left = life
    def count(event, arguments):
        nonlocal left
        if event in OPERATIONS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    save(step)
    os._exit(0)

save(1)
newest = 1
for life in range(1, 1000):
    child = os.fork() or save_until_killed(newest + 1, life)
    status = os.waitpid(child, 0)[1]
    found = checkpoint.newest_checkpoint(folder)
    assert found is not None, f"nothing is left after operation {life}"
    assert found.state.step in (newest, newest + 1)
    assert float(found.tensors("ema")["w"][0]) == found.state.step
    newest = found.state.step
    if status == 0:
        break
    assert status == signal.SIGKILL
print(life, newest)
"""


def test_a_save_that_is_killed_at_any_file_operation_leaves_a_whole_checkpoint(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lives, newest = map(int, done.stdout.split())
    assert lives > 30
    assert newest > 3  # some were killed after their commit
    assert "damaged" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{newest:08d}"]


FULL = """
mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"
"""
SAVE_ON_FULL_DISK = """
import sys
from pathlib import Path
import torch
from t2i.training import checkpoint

folder = Path(sys.argv[1])
def save(step):
    temporary = checkpoint.temporary_folder(folder, step)
    temporary.mkdir()
    for kind in checkpoint.TENSOR_KINDS:
        checkpoint.write_tensors(temporary, kind, {"w": torch.ones(20_000)})
    checkpoint.commit(temporary, checkpoint.TrainingState(step, 0, 0, 0), "", keep=2)

for step in (1, 2, 3):
    save(step)
(folder / "balloon").write_bytes(bytes(300_000))
try:
    save(4)
except OSError as error:
    print(error)
assert checkpoint.newest_checkpoint(folder).state.step == 3
checkpoint.remove_leftovers(folder)
(folder / "balloon").unlink()
save(4)
assert checkpoint.newest_checkpoint(folder).state.step == 4
"""


def test_a_full_disk_is_an_os_error_and_harms_no_older_checkpoint(tmp_path: Path) -> None:
    inside = ["unshare", "--user", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*inside, f"mount -t tmpfs tmpfs {tmp_path}"], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    command = [*inside, FULL, "sh", str(tmp_path), sys.executable, SAVE_ON_FULL_DISK]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert "step-00000004.tmp" in done.stdout
    assert "damaged" not in done.stderr
