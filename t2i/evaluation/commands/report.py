"""`python -m t2i.evaluate report`: one HTML page about one or more tables of results."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
SUMMARY = "one self-contained HTML page of results"
DESCRIPTION = """
Tables with 95 % intervals, comparisons pair by pair, the pictures of sweeps, and a grid of the same
prompts and seeds under each method. The page holds its pictures and can be sent as one file.

  python -m t2i.evaluate report outputs/nano/evaluation
  python -m t2i.evaluate report outputs/a/evaluation outputs/b/evaluation --output comparison.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="folders of run or sweep, or files"
    )
    parser.add_argument("--output", type=Path, help="default: report.html beside the first results")
    parser.add_argument("--title", default="Evaluation", help="(Evaluation)")
    parser.add_argument("--num-prompts", type=int, default=8, metavar="N", help="of the grid (8)")
    parser.add_argument("--num-columns", type=int, default=6, metavar="N", help="of the grid (6)")


def main(args: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from t2i.evaluation.report import make_report
    from t2i.evaluation.results import read_results

    first = args.results[0]
    output = args.output or (first if first.is_dir() else first.parent) / "report.html"
    rows = read_results(args.results)
    page = make_report(rows, args.title, args.num_prompts, args.num_columns)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    print(output)
    return 0
