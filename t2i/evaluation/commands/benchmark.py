"""`python -m t2i.evaluate benchmark`: how fast the metrics are here."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "benchmark"
SUMMARY = "speed and memory of the metrics"
DESCRIPTION = """
Inception with reading and resizing beside the network alone (the ratio says whether it ever waits for
pictures), precision and recall in seconds and peak memory, and a Frechet distance of 2,048 dimensions.

  python -m t2i.evaluate benchmark
  python -m t2i.evaluate benchmark --device cuda --num-pictures 5000 --num-rows 50000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--device", default="cpu", help="(cpu)")
    parser.add_argument("--num-pictures", type=int, default=64, metavar="N", help="(64)")
    parser.add_argument("--side", type=int, default=256, metavar="N", help="pixels (256)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="(16)")
    parser.add_argument("--num-threads", type=int, default=2, metavar="N", help="that read (2)")
    parser.add_argument("--num-rows", type=int, default=10_000, metavar="N", help="(10,000)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="(3)")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), metavar="DIR")


def main(args: argparse.Namespace) -> int:
    """Run it; the exit code."""
    import json
    from dataclasses import asdict

    from t2i.devices import usable_device
    from t2i.environment import describe_environment
    from t2i.evaluation.benchmark import as_markdown, measure
    from t2i.evaluation.context import Context

    device = usable_device(args.device)
    context = Context(device, args.batch_size, args.num_threads, "refuse", None)
    figures = measure(context, args.num_pictures, args.side, args.num_rows, args.repeats)
    environment = describe_environment(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / f"evaluation-{device.type}"
    stem.with_suffix(".json").write_text(json.dumps({**environment, **asdict(figures)}, indent=1))
    text = as_markdown(figures, environment)
    stem.with_suffix(".md").write_text(text)
    print(text)
    return 0
