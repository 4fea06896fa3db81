"""What the progress bar of a job shows: items over all shards, their rate, and what became of them."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from t2i.console import Progress


class JobProgress:
    """What the progress bar shows, told by all threads; the total is estimated from the shards
    whose size is known."""

    def __init__(self, bar: Progress, num_shards: int, sizes: dict[str, int]) -> None:
        self.bar, self.num_shards, self.sizes = bar, num_shards, sizes
        self.num_shards_done = len(sizes)
        self.counts: dict[str, Counter[str]] = {}
        self.total: Counter[str] = Counter()
        self.lock = threading.Lock()

    def begin(self, shard_id: str, num_items: int) -> None:
        """A shard is loaded."""
        with self.lock:
            self.sizes[shard_id] = num_items
            self.counts[shard_id] = Counter()
            mean = sum(self.sizes.values()) / len(self.sizes)
            self.bar.total = round(mean * self.num_shards)

    def advance(self, shard_id: str, counts: Counter[str]) -> None:
        """Items of a shard got these statuses."""
        with self.lock:
            self.counts[shard_id].update(counts)
            self.total.update(counts)
            self.bar.update(counts.total(), self._fields())

    def undo(self, shard_id: str) -> None:
        """The attempt at a shard is lost."""
        with self.lock:
            lost = self.counts.pop(shard_id, Counter())
            self.total.subtract(lost)
            self.bar.update(-lost.total(), self._fields())

    def finish(self, shard_id: str) -> None:
        """A shard is committed."""
        with self.lock:
            del self.counts[shard_id]
            self.num_shards_done += 1
            self.bar.update(0, self._fields())

    def _fields(self) -> dict[str, Any]:
        fields = {name: self.total[name] for name in ("filtered", "failed") if self.total[name]}
        return {"shards": f"{self.num_shards_done}/{self.num_shards}", **fields}
