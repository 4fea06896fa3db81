"""What a person sees of a run: log lines, progress with rates and ETA, a JSON-lines metrics file."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

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


class Progress(tqdm):
    """tqdm's bar with named values beside it and the seconds that remain; made by `progress`."""

    monitor_interval = 0  # no thread: a process that starts others had better not have any

    def __init__(self, **settings: Any) -> None:
        """``settings``: tqdm's."""
        super().__init__(**settings)
        self.fields: dict[str, Any] = {}

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.n - self.initial) / max(self.format_dict["elapsed"], 1e-9)

    @property
    def remaining_seconds(self) -> float | None:
        """Until all units are done at this rate; None = not known."""
        if self.total is None or self.n == self.initial:
            return None
        return (self.total - self.n) / self.rate

    def update(self, num: int = 1, fields: Mapping[str, Any] | None = None) -> None:
        """Count ``num`` more units done and show ``fields`` (loss, failures ...) from now on."""
        self.fields |= fields or {}
        shown = ", ".join(f"{key} {_format(value)}" for key, value in self.fields.items())
        self.set_postfix_str(shown, refresh=False)
        super().update(num)


class PlainProgress(Progress):
    """A line now and then, for files and pipes: nothing goes back on what is written."""

    def __str__(self) -> str:
        elapsed = self.format_dict["elapsed"]
        if elapsed == 0:  # tqdm's first look, before anything is done
            return ""
        count = f"{self.desc}: {self.n}"
        if self.total is not None:
            count += f"/{self.total} ({100 * self.n / max(self.total, 1):.0f} %)"
        parts = [count, f"{self.rate:.3g} {self.unit}/s"]
        if self.disable:  # closed: the last line
            parts.append(f"in {format_seconds(elapsed)}")
        elif self.remaining_seconds is not None:
            parts.append(f"ETA {format_seconds(self.remaining_seconds)}")
        return ", ".join([*parts, *([self.postfix] if self.postfix else [])])


class _Lines:
    """What tqdm writes to, where nobody watches: stderr, without its control characters."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(description: str, total: int | None, unit: str, initial: int = 0) -> Progress:
    """Show the progress of a loop, as a context: a bar on a terminal, elsewhere lines.

    Both have count, percentage, rate, ETA, and at the end the time taken; there is a plain line
    every ten seconds. ``initial`` units were done before.
    """
    # smoothing 0: rate and ETA are those since the start; miniters 0: time alone says when to show
    settings: dict[str, Any] = {"desc": description, "total": total, "initial": initial}
    settings |= {"smoothing": 0, "miniters": 0}
    # some containers' terminals say that they have no columns, and tqdm would fill as many
    if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0:
        return Progress(**settings, unit=f" {unit}", dynamic_ncols=True)
    every = SECONDS_BETWEEN_PLAIN_LINES
    return PlainProgress(**settings, unit=unit, file=_Lines(), mininterval=every, position=0)


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


def command_parser(
    prog: str, description: str | None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """The parser of a command; its description and epilog are shown as they are written."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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
