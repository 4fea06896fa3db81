"""`python -m t2i.evaluate run`: images by several methods, scored by several metrics, in one table."""

from __future__ import annotations

import argparse
from typing import Any

from t2i.config import add_config_arguments, config_from_args, section
from t2i.evaluation.evaluation_config import EvaluationConfig
from t2i.generation import Config as GenerationConfig

NAME = "run"
SUMMARY = "make images by several methods, score them, write one table"
DESCRIPTION = """
Makes the images of each method in t2i.evaluation.methods, scores them by each metric in
t2i.evaluation.metrics, and writes results.parquet and results.json: a row per method and score, with
the checkpoint's hash, guidance, solver, steps, size, FLOPs and seconds per image, device and versions.
Run again, it makes only what is missing. `accelerate launch -m t2i.evaluate run ...` shares the images
among processes; they are the same at any number of them.

  python -m t2i.evaluate run
  python -m t2i.evaluate run --config configs/tr_dit_2b5.yaml --set t2i.evaluation.prompts=prompts.txt
  python -m t2i.evaluate run --set t2i.evaluation.keep=features      no pictures on the disk
"""


class Config(GenerationConfig):
    """What makes the images, and how they are scored."""

    evaluation: EvaluationConfig = section("t2i.evaluation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add_config_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from t2i.devices import leave_group

    config = config_from_args(args, Config)
    rows = run_methods(config, config.evaluation)
    print_results(rows)
    leave_group()
    return 0


def run_methods(config: GenerationConfig, evaluation: EvaluationConfig) -> list[dict[str, Any]]:
    """Make, score, write; the rows of the table on the first process, none on the others."""
    from pathlib import Path

    from t2i.console import get_logger
    from t2i.devices import process_state
    from t2i.evaluation.results import write_results
    from t2i.evaluation.runs import Run

    rows = Run(config, evaluation).run()
    if process_state().is_main_process:
        get_logger("evaluate").info("%s", write_results(Path(evaluation.output), rows))
    return rows


def print_results(rows: list[dict[str, Any]]) -> None:
    """A table for each metric, with a column per method."""
    from t2i.evaluation.results import score_of
    from t2i.evaluation.score_files import format_table

    for metric in dict.fromkeys(row["metric"] for row in rows):
        own = [row for row in rows if row["metric"] == metric]
        runs = dict.fromkeys(row["run"] for row in own)
        print(f"\n{metric}")
        columns = {run: [score_of(row) for row in own if row["run"] == run] for run in runs}
        print(format_table(columns))
        if not all(row["is_comparable"] for row in own):
            print("not comparable with published numbers: " + own[0]["weights"])
