"""Score pictures: by every metric of the papers and of the field, from one command.

    python -m t2i.evaluate shapes outputs/nano/samples/none outputs/nano/samples/sg --ceiling
    python -m t2i.evaluate adm samples --reference VIRTUAL_imagenet256_labeled.npz --weights inception.pth
    python -m t2i.evaluate clip samples --help

Sets of pictures are folders of `python -m t2i.sample`, of which the last finished set counts, any
other folders of pictures, or .npz batches of ADM's evaluator. Each set keeps its scores in
scores/<metric>.json; the table on the console puts the sets side by side, with 95 % intervals. Sets
of the same prompts and seeds are compared pair by pair, too. Under `accelerate launch` the pictures
are shared out among the processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.config import Section, add_config_arguments, config_from_args, section
from t2i.console import command_parser, run_command
from t2i.evaluation.commands import benchmark, report, run, sweep
from t2i.evaluation.evaluation_config import EvaluationConfig, ReadingConfig
from t2i.evaluation.metric import Metric, Scores, Weights
from t2i.evaluation.registry import all_metrics
from t2i.evaluation.score_files import format_table, score_file, write_scores
from t2i.evaluation.settings_flags import add_settings_flags, read_settings

if TYPE_CHECKING:
    from t2i.evaluation.picture_sets import PictureSet

COMMANDS = (run, sweep, report, benchmark)


class Config(Section):
    evaluation: EvaluationConfig = section("t2i.evaluation")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m t2i.evaluate", __doc__)
    commands = parser.add_subparsers(dest="metric", required=True, metavar="METRIC")
    for metric in all_metrics().values():
        add_metric(commands, metric)
    for command in COMMANDS:
        own = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
    return parser


def add_metric(commands: Any, metric: Metric) -> None:
    """A subcommand whose flags are the metric's settings."""
    parser = commands.add_parser(
        metric.name,
        help=metric.summary,
        description=metric.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET", help="a folder, or an .npz")
    add_settings_flags(parser, metric.settings, metric.summary)
    add_settings_flags(parser, ReadingConfig, "pictures")
    add_config_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    for command in COMMANDS:
        if args.metric == command.NAME:
            return command.main(args)
    return score_sets(args)


def score_sets(args: argparse.Namespace) -> int:
    """Score the sets of a metric's subcommand; the exit code."""
    config = config_from_args(args, Config).evaluation
    metric = all_metrics()[args.metric]
    settings = read_settings(args, metric.settings, config.metrics.get(metric.name, {}))
    reading = read_settings(args, ReadingConfig, config.reading().model_dump())

    from t2i.devices import leave_group, process_state
    from t2i.evaluation.context import make_context
    from t2i.evaluation.picture_sets import open_set
    from t2i.evaluation.scoring import score_set
    from t2i.sampling.image_folder import short_names

    sets = [open_set(path) for path in args.sets]
    for pictures in sets:
        if metric.needs_prompts and pictures.prompts is None:
            raise ValueError(
                f"{pictures.path}: {metric.name} needs prompts, and only sets that "
                "python -m t2i.sample has finished have them"
            )
    context = make_context(reading)
    scorer = metric.prepare(settings, context)
    names = short_names(args.sets)
    if len(set(names)) < len(names):
        raise ValueError(f"a set is given twice: {' '.join(names)}")
    scores = {
        name: score_set(scorer, pictures, context, f"{metric.name} {name}")
        for name, pictures in zip(names, sets, strict=True)
    }
    if process_state().is_main_process:
        facts = {"metric": metric.name, "settings": settings.model_dump(mode="json")}
        for name, pictures in zip(names, sets, strict=True):
            write_scores(
                score_file(pictures.path, metric.name), scores[name], scorer.weights, facts
            )
        print(describe(scores, sets, scorer.weights))
    leave_group()
    return 0


def describe(
    scores: Mapping[str, Scores], sets: Sequence[PictureSet], weights: Sequence[Weights]
) -> str:
    """The table, differences where sets are pairs, and what a reader must know."""
    truth = {name: own for of in scores.values() for name, own in of.truth.items()}
    parts = [format_table({**{name: of.scores for name, of in scores.items()}, **truth})]
    parts += compare_pairs(scores, sets)
    parts += [f"{name}: {note}" for name, of in scores.items() for note in of.notes]
    for one in weights:
        if one.is_random:
            parts.append(
                f"{one.network} has random weights ({one.hash}): these numbers compare with "
                "nothing but numbers of the same ones"
            )
        elif not one.is_published:
            parts.append(
                f"{one.network}'s weights are not the published ones (SHA-256 {one.hash}): these "
                "numbers do not compare with those of papers"
            )
    return "\n".join(parts)


def compare_pairs(scores: Mapping[str, Scores], sets: Sequence[PictureSet]) -> list[str]:
    """For each set of the first one's prompts and seeds: its means minus the first one's."""
    from t2i.evaluation.set_scores import paired_differences

    (first_name, first), *others = zip(scores, sets, strict=True)
    lines: list[str] = []
    for name, pictures in others:
        if not first.is_paired_with(pictures):
            continue
        own, base = scores[name].per_picture, scores[first_name].per_picture
        lines += [
            f"{score}: {name} minus {first_name}, pair by pair: "
            f"{found.value:+.4g} ({found.low:+.3g} to {found.high:+.3g})"
            for score, found in paired_differences(own, base, first.prompts or ())
        ]
    return lines


if __name__ == "__main__":
    raise SystemExit(run_command(main))
