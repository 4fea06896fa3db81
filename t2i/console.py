"""What a person sees of a run: log lines, progress with rates and ETA, a JSON-lines metrics file."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_PLAIN_LINES = 10.0


def get_logger(name: str) -> logging.Logger:
    """A logger that writes ``time name: message`` lines to stderr, set up once per process."""
    root = logging.getLogger("sparse")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(shortname)s: %(message)s", "%H:%M:%S")
        )
        handler.addFilter(_short_name)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return root.getChild(name)


def _short_name(record: logging.LogRecord) -> bool:
    record.shortname = record.name.removeprefix("sparse.")
    return True


class Progress:
    """Counts done units; on a terminal a bar, elsewhere a plain line every ten seconds.

    Use through `progress`. ``fields`` of `update` are shown beside the rate (loss, failures ...).
    """

    def __init__(self, description: str, total: int | None, unit: str, initial: int) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.initial = self.done = initial
        self.fields: dict[str, Any] = {}
        self.started = time.monotonic()
        self.shown_at = self.started
        self.on_terminal = sys.stderr.isatty()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.initial) / max(time.monotonic() - self.started, 1e-9)

    @property
    def remaining_seconds(self) -> float | None:
        """Until all units are done at this rate; None = not known."""
        if self.total is None or self.done == self.initial:
            return None
        return (self.total - self.done) / self.rate

    def update(self, num: int = 1, fields: Mapping[str, Any] | None = None) -> None:
        """Count ``num`` more units done and show ``fields`` from now on."""
        self.done += num
        self.fields.update(fields or {})
        interval = 0.1 if self.on_terminal else SECONDS_BETWEEN_PLAIN_LINES
        if time.monotonic() - self.shown_at >= interval:
            self.show()

    def show(self, last: bool = False) -> None:
        """Print the state now."""
        self.shown_at = time.monotonic()
        elapsed = self.shown_at - self.started
        remaining = self.remaining_seconds
        parts = [f"{self.description}: {self.done}"]
        if self.total is not None:
            parts[0] += f"/{self.total} ({100 * self.done / max(self.total, 1):.0f} %)"
        parts.append(f"{self.rate:.3g} {self.unit}/s")
        if last:
            parts.append(f"in {format_seconds(elapsed)}")
        elif remaining is not None:
            parts.append(f"ETA {format_seconds(remaining)}")
        parts += [f"{key} {_format(value)}" for key, value in self.fields.items()]
        line = ", ".join(parts)
        if self.on_terminal:
            print(f"\r\x1b[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(
    description: str, total: int | None, unit: str, initial: int = 0
) -> Iterator[Progress]:
    """Show the progress of a loop: count, percentage, rate, ETA, and at the end the time taken."""
    bar = Progress(description, total, unit, initial)
    try:
        yield bar
    finally:
        bar.show(last=True)


def format_seconds(seconds: float) -> str:
    """``75.2`` -> ``"1m15s"``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class MetricsFile:
    """A run's JSON-lines file: one object a line, appended and flushed.

    A line that the disk refuses is left out and logged: a run of weeks is worth more than it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, fields: Mapping[str, Any]) -> None:
        """Append one line; a time stamp (``time``, seconds since the epoch) is added."""
        line = json.dumps({"time": round(time.time(), 3), **fields}) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(line)
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, size)
            get_logger("metrics").error("%s: a line was not written (%s)", self.path, error)


def run_command(
    main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None
) -> int:
    """Run a command's ``main``: a user's error becomes one line and exit code 2, Ctrl-C 130.

    After a TimeoutError the exit code is 1: another attempt may succeed.

    Must be called before torch is imported (commands import it within ``main``), because OpenMP
    reads its settings then.
    """
    # Threads that wait for each other should sleep, not spin: on two cores with another busy
    # process, training takes 40 times as long when they spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return main(argv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, TimeoutError) else 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
