"""Which items of a shard may have ended their worker, and what is run next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

DEATHS_BEFORE_ALONE = 2  # deaths of a batch before its items run one by one
DEATHS_ALONE = 2  # deaths of an item on its own before it is quarantined: one may be chance


@dataclass
class Suspects:
    """Keys that were running when workers died, and what follows for the next attempt."""

    deaths: Counter[str] = field(default_factory=Counter)
    deaths_alone: Counter[str] = field(default_factory=Counter)
    quarantined: list[str] = field(default_factory=list)

    def blame(self, running: Sequence[str]) -> None:
        """Note a death while these keys were running; none when the worker died between batches."""
        self.deaths.update(running)
        if len(running) == 1:
            self.deaths_alone.update(running)
            if self.deaths_alone[running[0]] >= DEATHS_ALONE:
                self.quarantined.append(running[0])

    def batches(self, keys: Sequence[str], batch_size: int) -> Iterator[list[str]]:
        """All keys but the quarantined ones; suspects first, so that little is done in vain."""
        left = [key for key in keys if key not in self.quarantined]
        yield from ([key] for key in left if self.deaths[key] >= DEATHS_BEFORE_ALONE)
        once = [key for key in left if 0 < self.deaths[key] < DEATHS_BEFORE_ALONE]
        never = [key for key in left if not self.deaths[key]]
        for group in (once, never):
            for start in range(0, len(group), batch_size):
                yield group[start : start + batch_size]
