"""A local folder as a storage: files are written aside and linked into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.storage.interface import SCRATCH, whole


@dataclass(frozen=True)
class LocalStorage:
    """A folder; keys are paths in it."""

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    def get(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        with (self.folder / key).open("rb") as file:
            file.seek(offset)
            return whole(file.read(length), length, f"{self.folder / key}", offset)

    def put(self, key: str, data: bytes) -> None:
        with self._aside(key) as (aside, target):
            _write_through(aside, data)
            aside.replace(target)

    def put_file(self, key: str, path: Path) -> None:
        with self._aside(key) as (aside, target):
            shutil.copyfile(path, aside)
            aside.replace(target)

    def get_file(self, key: str, path: Path) -> None:
        shutil.copyfile(self.folder / key, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._aside(key) as (aside, target):
            _write_through(aside, data)
            try:
                os.link(aside, target)
            except FileExistsError:
                return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        start = (self.folder / prefix.rpartition("/")[0]).resolve()
        root = self.folder.resolve()
        keys = []
        for folder, folders, files in os.walk(start):
            folders[:] = [name for name in folders if name != SCRATCH]
            keys += [(Path(folder) / name).relative_to(root).as_posix() for name in files]
        return sorted(key for key in keys if key.startswith(prefix))

    def versions(self, prefix: str = "") -> dict[str, str]:
        stats = {key: (self.folder / key).stat() for key in self.list(prefix)}
        return {key: f"{stat.st_size}-{stat.st_mtime_ns}" for key, stat in stats.items()}

    def exists(self, key: str) -> bool:
        return (self.folder / key).is_file()

    def size(self, key: str) -> int:
        return (self.folder / key).stat().st_size

    def delete(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)

    def local(self, key: str, version: str = "") -> Path:
        path = self.folder / key
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path

    def scratch(self) -> Path:
        folder = self.folder / SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _aside(self, key: str) -> Iterator[tuple[Path, Path]]:
        """(a file to write on the same disk, its final place); the former is gone afterwards."""
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.scratch())
        os.fchmod(handle, 0o644)
        os.close(handle)
        try:
            yield Path(name), target
        finally:
            Path(name).unlink(missing_ok=True)


def _write_through(path: Path, data: bytes) -> None:
    """Write and flush to the disk: what is visible later must survive a power cut."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
