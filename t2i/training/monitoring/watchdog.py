"""Ends a run that hangs, and says which process is behind and in what.

When one process of a group stands still (a dead disk, a broken node), the others wait for it in
their next collective, and all that the communication library can say is that it timed out. So each
process keeps a heartbeat file, ``heartbeats/rankN.json`` in the run's folder: which phase of which
step it is in, and the how-manieth phase of the run that is. All processes go through the same
phases in the same order, so those with the smallest number are the ones that the others wait for.

A thread of each process writes its file and watches its own main thread. When a phase lasts longer
than the time-out it writes the stacks of all threads to ``heartbeats/rankN.stack``, reads all
heartbeats, prints one line, and ends the process with `EXIT_HUNG`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from t2i.console import format_seconds

EXIT_HUNG = 70
LONGEST_INTERVAL = 60.0  # seconds between two heartbeats
# How much later than the watchdog the collectives themselves may give up: two intervals and a bit.
COLLECTIVES_MARGIN_MINUTES = 3.0


@dataclass(frozen=True)
class Heartbeat:
    """Where a process is.

    Attributes:
        entered: phases of the run that it has entered, this one included; the same order on all.
        seconds: in this phase so far.
        time: when this was written, seconds since the epoch.
    """

    rank: int
    host: str
    step: int
    phase: str
    entered: int
    seconds: float
    time: float


class Watchdog:
    """Watches the thread that calls `enter`, from `start` to `close`."""

    def __init__(
        self, folder: Path, rank: int, world_size: int, timeout_seconds: float, step: int
    ) -> None:
        """``folder``: of the run, shared by all processes; ``step``: at which it starts."""
        self.folder = folder / "heartbeats"
        self.rank, self.world_size = rank, world_size
        self.timeout = timeout_seconds
        self.interval = min(timeout_seconds / 5, LONGEST_INTERVAL)
        self._position = (step, "start", 1, time.monotonic())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread.start()

    def enter(self, step: int, phase: str) -> None:
        """The next phase begins; costs nothing but memory."""
        self._position = (step, phase, self._position[2] + 1, time.monotonic())

    def close(self) -> None:
        """Stop watching; the files stay. May be called without `start`."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self.interval):
            heartbeat = self._write()
            if heartbeat.seconds > self.timeout:
                self._end()

    def _write(self) -> Heartbeat:
        step, phase, entered, since = self._position
        seconds = time.monotonic() - since
        host = socket.gethostname()
        heartbeat = Heartbeat(self.rank, host, step, phase, entered, seconds, time.time())
        path = self._path(self.rank)
        # A full disk must not end the watch; the others then see no sign of life.
        with contextlib.suppress(OSError):
            path.with_suffix(".tmp").write_text(json.dumps(asdict(heartbeat)))
            path.with_suffix(".tmp").replace(path)
        return heartbeat

    def _end(self) -> None:
        with (
            contextlib.suppress(OSError),
            self._path(self.rank).with_suffix(".stack").open("w") as file,
        ):
            faulthandler.dump_traceback(file, all_threads=True)
        time.sleep(self.interval)  # the others' heartbeats are then of this time, too
        heartbeats = [read_heartbeat(self._path(rank)) for rank in range(self.world_size)]
        behind, message = describe_hang(heartbeats, time.time(), self.timeout)
        silent = [rank for rank in behind if is_silent(heartbeats[rank], time.time(), self.timeout)]
        speaker = min(set(range(self.world_size)) - set(silent), default=self.rank)
        if self.rank == speaker or self.rank in behind:
            print(f"error: {message}; stacks: {self.folder}/rank*.stack", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_HUNG)  # the main thread cannot be woken from a collective

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.json"


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The last heartbeat in a file; None = there is none."""
    try:
        return Heartbeat(**json.loads(path.read_text()))
    except OSError:
        return None


def is_silent(heartbeat: Heartbeat | None, now: float, timeout: float) -> bool:
    """Whether a process has missed several heartbeats: it is gone, stopped, or never started."""
    return heartbeat is None or now - heartbeat.time > max(0.75 * timeout, 2.0)


def describe_hang(
    heartbeats: Sequence[Heartbeat | None], now: float, timeout: float
) -> tuple[list[int], str]:
    """(ranks that the others wait for, one line for people) from all heartbeats by rank.

    Silent processes are behind; if there are none, those that have entered the fewest phases.
    """
    silent = [r for r, beat in enumerate(heartbeats) if is_silent(beat, now, timeout)]
    alive = {r: b for r, b in enumerate(heartbeats) if b is not None and r not in silent}
    fewest = min((beat.entered for beat in alive.values()), default=0)
    behind = silent or [rank for rank, beat in alive.items() if beat.entered == fewest]
    waiting = Counter(f"{b.phase} of step {b.step}" for r, b in alive.items() if r not in behind)
    parts = [f"nothing has moved for {format_seconds(timeout)}"]
    if len(behind) == len(heartbeats) > 1 and not silent:
        beat = heartbeats[behind[0]]
        assert beat is not None
        parts.append(f"all {len(behind)} ranks are in {beat.phase} of step {beat.step}")
    else:
        parts += [_describe(rank, heartbeats[rank], rank in silent, now) for rank in behind[:8]]
        if len(behind) > 8:
            parts.append(f"and {len(behind) - 8} more ranks likewise")
    parts += [f"{count} rank(s) wait in {place}" for place, count in waiting.items()]
    return behind, "; ".join(parts)


def _describe(rank: int, beat: Heartbeat | None, is_silent: bool, now: float) -> str:
    if beat is None:
        return f"rank {rank} has never been heard of"
    place = f"{beat.phase} of step {beat.step}"
    if is_silent:
        silence = format_seconds(now - beat.time)
        return f"rank {rank} ({beat.host}) gave no sign of life for {silence}, last in {place}"
    return f"rank {rank} ({beat.host}) is in {place} for {format_seconds(beat.seconds)}"
