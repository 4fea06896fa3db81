"""The files of a cache folder: used ones are marked, those used longest ago go first."""

from __future__ import annotations

import os
from pathlib import Path


def touch(path: Path) -> bool:
    """Mark a cached file as just used; False when it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def evict(cache: Path, limit: float, keep: Path) -> None:
    """Remove the files used longest ago until the cache holds at most ``limit`` bytes."""
    files = []
    for path in cache.rglob("*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # another process evicted it
        if path.is_file():
            files.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size
