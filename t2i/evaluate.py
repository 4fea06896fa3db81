"""Score folders of samples.

    python -m t2i.evaluate shapes outputs/nano/samples/none outputs/nano/samples/sg

``shapes`` compares pictures with the Shapes prompts in their metadata, by an analytic detector.
Each folder gets a scores.json; the table on the console puts the folders side by side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from t2i.console import run_command


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2i.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    metrics = parser.add_subparsers(dest="metric", required=True, metavar="METRIC")
    shapes = metrics.add_parser("shapes", help="prompt adherence in the Shapes world")
    shapes.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="written by python -m t2i.sample"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    table = {folder: evaluate_shapes(folder) for folder in args.folders}
    names = list(next(iter(table.values())))
    width = max(len(str(folder)) for folder in table)
    print(" " * width, *(f"{name:>15}" for name in names))
    for folder, scores in table.items():
        print(f"{folder!s:<{width}}", *(f"{scores[name]:>15}" for name in names))
    return 0


def evaluate_shapes(folder: Path) -> dict[str, float]:
    """Score the PNGs of a folder and write ``scores.json`` beside them.

    Raises:
        ValueError: the folder holds no PNG with a prompt in its metadata.
    """
    from PIL import Image

    from t2i.evaluation.shapes_eval import as_dict, score_images

    prompts, images = [], []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            # The contact sheet carries no prompt.
            if "prompt" in image.info:
                prompts.append(image.info["prompt"])
                images.append(image.convert("RGB"))
    if not images:
        raise ValueError(f"{folder}: no PNG with a prompt in its metadata; make some: t2i.sample")
    scores = as_dict(score_images(prompts, images))
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    return scores


if __name__ == "__main__":
    raise SystemExit(run_command(main))
