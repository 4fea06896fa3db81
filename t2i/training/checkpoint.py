"""Checkpoints that are complete or absent, keyed by parameter name.

``checkpoints/step-00001000/`` holds, all fp32 safetensors keyed by parameter name:

    weights.safetensors  ema.safetensors  exp_avg.safetensors  exp_avg_sq.safetensors
    power-0.05.safetensors ...  the average of each width of t2i.training.power_averages
    state.json           position: steps, updates, skipped steps; what moves in the objective
    config.yaml          the run's config
    manifest.json        size and sha256 of every other file; written last

``snapshots/step-00001000/`` is the same with the power averages alone, in float16; see `snapshots`.

Saving writes into ``step-N.tmp`` (each file by another rank, if there are several), syncs, and
renames. Nothing in it depends on the world size or ZeRO stage. Readers take the newest folder
whose manifest verifies; a damaged one is named and passed over.

What a run goes back behind is renamed to ``step-N.aside-TIME``, which no reader takes and nothing
removes.

Nothing in it is a pickle either, so reading a stranger's checkpoint runs no code of theirs: tensors
are safetensors, the rest is JSON and YAML, file names are bare. `t2i.models.convert` reads foreign
weights from safetensors, and from .pt files by ``torch.load(..., weights_only=True)`` alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.console import get_logger

if TYPE_CHECKING:
    from torch import Tensor

TENSOR_KINDS = ("weights", "ema", "exp_avg", "exp_avg_sq")
MANIFEST = "manifest.json"
_POWER_FILE = re.compile(r"power-(.+)\.safetensors")
_FOLDER_NAME = re.compile(r"step-(\d+)")

logger = get_logger("checkpoint")


@dataclass(frozen=True)
class TrainingState:
    """The run's position.

    Attributes:
        step: steps done.
        optimizer_steps: updates that Adam's moments have seen.
        ema_updates: updates that the EMA has seen.
        power_updates: updates that each power average has seen.
        skipped_in_a_row: of the skipped steps, those since the last update.
        skipped: steps without an update, because their gradient was refused.
        objective: what moves in the objective, such as lambda; {} = nothing.
        gradient_norms: that spikes are told by, oldest first; see `spikes.SpikeGuard`.
        data: what each dataset's shards were, see `run.Run`; [] = not known.
    """

    step: int
    optimizer_steps: int
    ema_updates: int
    skipped: int
    objective: Mapping[str, float | None] = field(default_factory=dict)
    gradient_norms: Sequence[float] = field(default_factory=list)
    power_updates: int = 0
    skipped_in_a_row: int = 0
    data: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A folder of a checkpoint, or of a snapshot, that verified."""

    path: Path
    state: TrainingState

    @property
    def power_widths(self) -> tuple[float, ...]:
        """Relative widths of its power averages, rising."""
        files = map(_POWER_FILE.fullmatch, manifest_files(self.path))
        return tuple(sorted(float(match[1]) for match in files if match is not None))

    def tensors(self, kind: str) -> SavedTensors:
        """Whole tensors by parameter name; ``kind``: one of `TENSOR_KINDS`, or of `power_kind`."""
        return SavedTensors(self.path / f"{kind}.safetensors")


class SavedTensors(Mapping[str, "Tensor"]):
    """The tensors of a safetensors file, each read when it is asked for (and not kept)."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.path = path
        self._file = safe_open(path, framework="pt")

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def power_kind(width: float) -> str:
    """The kind of tensors that the power average of a relative width is: its file's name."""
    return f"power-{width!r}"


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in ``folder`` that verifies, or None; damaged ones are reported."""
    return next(whole_checkpoints(folder), None)


def checkpoint_at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step in ``folder``.

    Raises:
        FileNotFoundError: there is none; lists those that are there.
        ValueError: it is damaged.
    """
    path = folder / folder_name(step)
    if not path.is_dir():
        there = [f"{step_of(path.name):,}" for path in reversed(checkpoint_paths(folder))]
        raise FileNotFoundError(
            f"{folder}: no checkpoint of step {step:,}, only of {', '.join(there) or 'none'}; "
            "t2i.training.keep_at keeps those of chosen steps for good"
        )
    problem = find_damage(path)
    if problem is not None:
        raise ValueError(f"{path} is damaged: {problem}")
    return open_checkpoint(path)


def whole_checkpoints(folder: Path, until: int | None = None) -> Iterator[Checkpoint]:
    """Those in ``folder``, up to a step, that verify, newest first; damaged ones are reported."""
    for path in checkpoint_paths(folder):
        if until is not None and (step_of(path.name) or 0) > until:
            continue
        problem = find_damage(path)
        if problem is None:
            yield open_checkpoint(path)
        else:
            logger.warning("%s is damaged and passed over: %s", path, problem)


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that has been verified (see `find_damage`)."""
    return Checkpoint(path, TrainingState(**json.loads((path / "state.json").read_text())))


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder (missing, cut or changed file), or None."""
    try:
        expected = manifest_files(path)
    except ValueError as error:
        return str(error)
    for name, entry in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry.bytes:
            return f"{name} has {file.stat().st_size} bytes instead of {entry.bytes}"
    for name, digest in _hash_files(path, sorted(expected)):
        if digest != expected[name].sha256:
            return f"the content of {name} has changed (sha256)"
    return None


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of a file."""

    bytes: int
    sha256: str


def manifest_files(path: Path) -> dict[str, FileEntry]:
    """The other files of a checkpoint folder, by name, as its manifest lists them.

    Raises:
        ValueError: there is no manifest, or it is damaged.
    """
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        entries = {name: FileEntry(**entry) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error})") from None
    for name in entries:
        if Path(name).name != name:
            raise ValueError(f"{MANIFEST} lists a file outside the folder: {name}")
    return entries


def step_of(name: str) -> int | None:
    """The step of a checkpoint folder by its name; None for any other name."""
    match = _FOLDER_NAME.fullmatch(name)
    return int(match[1]) if match else None


def folder_name(step: int) -> str:
    """The name of the checkpoint folder of a step."""
    return f"step-{step:08d}"


def temporary_folder(folder: Path, step: int) -> Path:
    """Where the files of a checkpoint are written before `commit`."""
    return folder / f"{folder_name(step)}.tmp"


def write_tensors(path: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    """Write one kind of tensors into the temporary folder ``path`` and sync it to disk.

    Raises:
        OSError: the disk is full or otherwise refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = path / f"{kind}.safetensors"
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise OSError(f"{file}: {error}") from None
    _sync(file)


def commit(
    temporary: Path,
    state: TrainingState,
    config_text: str,
    keep: int | None,
    keep_at: Sequence[int] = (),
) -> Path:
    """Turn a filled temporary folder into a checkpoint; older ones than ``keep`` are removed.

    ``keep`` None removes none; those of the steps ``keep_at`` stay for good.

    Returns the checkpoint's folder.
    """
    for name, text in (("state.json", json.dumps(asdict(state))), ("config.yaml", config_text)):
        _write_synced(temporary / name, text)
    names = sorted(path.name for path in temporary.iterdir() if path.name != MANIFEST)
    files = {
        name: asdict(FileEntry((temporary / name).stat().st_size, digest))
        for name, digest in _hash_files(temporary, names)
    }
    _write_synced(temporary / MANIFEST, json.dumps({"step": state.step, "files": files}, indent=1))
    final = publish(temporary)
    committed = checkpoint_paths(final.parent)  # newer ones were damaged and passed over
    for old in committed[committed.index(final) + keep :] if keep is not None else ():
        if step_of(old.name) in keep_at:
            continue
        try:
            _remove(old)
        except OSError as error:
            logger.warning("%s, an old checkpoint, cannot be removed: %s", old, error)
    return final


def publish(temporary: Path) -> Path:
    """Rename a whole temporary folder to a checkpoint of its name; returns the checkpoint."""
    _sync(temporary)
    final = temporary.with_suffix("")
    if final.exists():  # a damaged one that was passed over and has been replaced
        _remove(final)
    temporary.rename(final)
    _sync(final.parent)
    return final


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted save or removal left behind."""
    for pattern in ("step-*.tmp", "step-*.removed"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def set_aside(folder: Path, after: int, time: int) -> list[Path]:
    """Rename the checkpoints after a step, so that none is read; ``time``: Unix, in their new names.

    Returns the new paths, newest first: a run that is interrupted here goes on from the newest left.
    """
    moved = []
    for path in checkpoint_paths(folder):
        if (step_of(path.name) or 0) > after:
            moved.append(path.rename(path.with_name(f"{path.name}.aside-{time}")))
    return moved


def checkpoint_paths(folder: Path) -> list[Path]:
    """Committed checkpoint folders, newest first."""
    paths = [path for path in folder.glob("step-*") if step_of(path.name) is not None]
    return sorted(paths, key=lambda path: step_of(path.name) or 0, reverse=True)


def _hash_files(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    with ThreadPoolExecutor() as pool:
        yield from zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Rename first, so that an interrupted removal never looks like a checkpoint."""
    removed = path.with_suffix(".removed")
    path.rename(removed)
    shutil.rmtree(removed)
