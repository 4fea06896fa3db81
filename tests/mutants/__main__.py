"""Plant known faults in the code, one at a time, and show which test finds each.

    python -m tests.mutants                      all faults (some minutes)
    python -m tests.mutants block "head: shift"  those with a text in their names
    python -m tests.mutants --list               what they are, and which tests must find them
    python -m tests.mutants --jobs 4             four at a time

Faults are planted in a copy of what git tracks, uncommitted edits included. First their tests must
pass there without any. A fault that survives means that its tests would not see the same mistake
in earnest: strengthen them. The exit code is then 1.

A fault is an entry of a list in tests/mutants: a name, a file, a text that occurs there once, the
text in its place, and the tests that must fail.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from t2i.console import command_parser, format_seconds, progress, run_command
from tests.mutants.mutant import Mutant
from tests.mutants.run import Outcome, try_all

LISTS = (
    "tests.mutants.evaluation",
    "tests.mutants.geneval",
    "tests.mutants.inception",
    "tests.mutants.models",
    "tests.mutants.rivals",
    "tests.mutants.sampling",
    "tests.mutants.training",
)


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m tests.mutants", __doc__)
    parser.add_argument(
        "names", nargs="*", metavar="TEXT", help="faults with any of these in their names"
    )
    parser.add_argument("--list", action="store_true", help="show the faults and plant none")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="faults tried at a time (default 1)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: at least 1")
    mutants = chosen(all_mutants(), args.names)
    if args.list:
        rows = [(mutant.name, mutant.file, " ".join(mutant.tests)) for mutant in mutants]
        print(table([("fault", "file", "tests"), *rows]))
        return 0
    return try_and_report(mutants, args.jobs)


def try_and_report(mutants: Sequence[Mutant], jobs: int) -> int:
    """Try the faults and print the table; 1 if one survives, else 0."""
    outcomes = []
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        progress("mutants", len(mutants), "faults") as bar,
    ):
        for outcome in try_all(mutants, Path(folder).resolve(), jobs):
            outcomes.append(outcome)
            bar.update(1, {"survived": count_survivors(outcomes)})
    print(report(outcomes))
    return 1 if count_survivors(outcomes) else 0


def all_mutants() -> tuple[Mutant, ...]:
    """The faults of all lists, in their order."""
    return tuple(mutant for name in LISTS for mutant in import_module(name).MUTANTS)


def chosen(mutants: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    """Those with any of the texts in their names, in either case; all if there are no texts.

    Raises:
        ValueError: a text that no name has.
    """
    for text in names:
        if not any(text.lower() in mutant.name.lower() for mutant in mutants):
            raise ValueError(f"no fault has {text!r} in its name; --list shows them all")
    return [
        mutant
        for mutant in mutants
        if not names or any(text.lower() in mutant.name.lower() for text in names)
    ]


def count_survivors(outcomes: Sequence[Outcome]) -> int:
    return sum(not outcome.killers for outcome in outcomes)


def report(outcomes: Sequence[Outcome]) -> str:
    """A table of the outcomes, and a line that sums them up."""
    rows = [
        (
            outcome.mutant.name,
            ", ".join(outcome.killers) or f"SURVIVED {', '.join(outcome.mutant.tests)}",
            format_seconds(outcome.seconds),
        )
        for outcome in outcomes
    ]
    killed = len(outcomes) - count_survivors(outcomes)
    return f"{table([('fault', 'killed by', 'time'), *rows])}\n{killed} of {len(outcomes)} killed"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
