"""Score folders of samples.

    python -m t2i.evaluate shapes outputs/nano/samples/none outputs/nano/samples/sg

``shapes`` compares pictures with the Shapes prompts they were made from, by an analytic detector.
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
        FileNotFoundError: the folder holds no finished set of images.
    """
    from PIL import Image

    from t2i.evaluation.shapes_eval import as_dict, score_images
    from t2i.sampling.image_folder import read_image_list

    listed = read_image_list(folder)
    images = [Image.open(path).convert("RGB") for path, _ in listed]
    scores = as_dict(score_images([prompt for _, prompt in listed], images))
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    return scores


if __name__ == "__main__":
    raise SystemExit(run_command(main))
