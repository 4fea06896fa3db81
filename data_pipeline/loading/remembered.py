"""Keeps what is slow to find out about data in the cache folder, under the hash of what it is of."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_pipeline.storage.interface import StorageConfig

KEPT = 32  # newest answers of a kind


def remember(
    config: StorageConfig, kind: str, facts: Iterable[str], make: Callable[[], Any]
) -> Any:
    """``make()``, or what it gave when the facts were the same; JSON.

    Processes of a machine that ask together wait for one of them to make it.

    Args:
        kind: of the answer, a folder's name.
        facts: all that the answer depends on.
    """
    folder = Path(config.cache_folder).expanduser() / kind
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_hash(facts)}.json"
    if not path.is_file():
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _store(path, make())
                _forget(folder)
    return json.loads(path.read_text())


def _hash(facts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for fact in facts:
        total.update(fact.encode() + b"\0")
    return total.hexdigest()[:32]


def _store(path: Path, answer: Any) -> None:
    """Write aside and rename, so that nobody reads half a file."""
    handle, aside = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(answer, file)
    os.replace(aside, path)


def _forget(folder: Path) -> None:
    answers = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in answers[:-KEPT]:
        path.unlink()
