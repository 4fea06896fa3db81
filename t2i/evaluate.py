"""Score folders of samples.

    python -m t2i.evaluate shapes outputs/nano/samples/none outputs/nano/samples/sg
    python -m t2i.evaluate shapes outputs/nano/samples/sg --ceiling

``shapes`` compares pictures with the Shapes prompts they were made from, by an analytic detector;
--ceiling adds how it does on the true pictures of the same prompts, as drawn and after the VAE.
Each folder gets a scores.json; the table on the console puts the folders side by side, in percent
with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.config import Section, add_config_arguments, config_from_args, section
from t2i.console import run_command
from t2i.encoders.vae_config import VAEConfig

if TYPE_CHECKING:
    from t2i.evaluation.shapes_eval import ShapesScores, Share

SCORES_FILE = "scores.json"
# For people; t2i.evaluation.shapes_eval has the definitions.
SHAPES_HELP = """
of the objects that a prompt names, the share ...
  color, shape        found by their colour, or by their shape, wherever they are
  color_and_shape     found by both
  shape_given_color   with the right shape, of those found by colour
  color_at_place      with something of their colour at their place
  place               found by colour and shape at their place
  size                of the right size, of those found by colour, shape and place
and of the pictures, the share ...
  count               with as many objects as named
  scene               with all named objects in colour and shape, and nothing else
"-" stands where there is nothing to score: place and size, when no prompt tells them.

  python -m t2i.evaluate shapes outputs/nano/samples/none outputs/nano/samples/sg --ceiling
"""


class Config(Section):
    """What the command reads; --ceiling alone needs it."""

    vae: VAEConfig = section("t2i.encoders.vae")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2i.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    metrics = parser.add_subparsers(dest="metric", required=True, metavar="METRIC")
    shapes = metrics.add_parser(
        "shapes",
        help="prompt adherence in the Shapes world",
        description=SHAPES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shapes.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="written by python -m t2i.sample"
    )
    shapes.add_argument(
        "--ceiling",
        action="store_true",
        help="score the true pictures of the prompts, too; they must be detailed captions",
    )
    add_config_arguments(shapes)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)

    from t2i.evaluation.shapes_eval import as_dict
    from t2i.sampling.image_folder import short_names

    scores = {folder: evaluate_shapes(folder) for folder in args.folders}
    ceilings = score_ceilings(args.folders, config.vae) if args.ceiling else {}
    for folder, own in scores.items():
        written = as_dict(own)
        if ceilings:
            written["ceilings"] = {name: as_dict(ceiling) for name, ceiling in ceilings.items()}
        (folder / SCORES_FILE).write_text(json.dumps(written, indent=1) + "\n")
    named = dict(zip(short_names(args.folders), scores.values(), strict=True))
    print(format_scores({**named, **ceilings}))
    return 0


def evaluate_shapes(folder: Path) -> ShapesScores:
    """The scores of a folder's last finished set of images.

    Raises:
        FileNotFoundError: the folder holds no finished set.
        ValueError: a picture cannot be read, or a prompt names no object; names it.
    """
    from t2i.evaluation.shapes_eval import score_images
    from t2i.sampling.image_folder import read_image, read_image_list

    listed = read_image_list(folder)
    return score_images([prompt for _, prompt in listed], (read_image(path) for path, _ in listed))


def score_ceilings(folders: Sequence[Path], vae: VAEConfig) -> dict[str, ShapesScores]:
    """The scores of the true pictures of all prompts of the folders, each drawn once.

    Raises:
        ValueError: a prompt tells less than a scene.
    """
    from t2i.encoders.vae import load_vae
    from t2i.evaluation.shapes_ceiling import reconstructed, rendered
    from t2i.evaluation.shapes_eval import score_images
    from t2i.sampling.image_folder import read_image, read_image_list

    listed = [item for folder in folders for item in read_image_list(folder)]
    prompts = list(dict.fromkeys(prompt for _, prompt in listed))
    truth = list(rendered(prompts, read_image(listed[0][0]).width))
    return {
        "rendered": score_images(prompts, truth),
        "rendered, through the VAE": score_images(prompts, reconstructed(truth, load_vae(vae))),
    }


def format_scores(scores: Mapping[str, ShapesScores]) -> str:
    """A table with a row per score and a column per name: percent and 95 % interval."""
    from t2i.evaluation.shapes_eval import SCORES

    rows = [["", *scores]]
    rows += [[name, *(percent(getattr(of, name)) for of in scores.values())] for name in SCORES]
    for count in ("num_objects", "num_images"):
        rows.append([count, *(str(getattr(of, count)) for of in scores.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def percent(share: Share) -> str:
    """ "79.2 (74-84)"; "-" of nothing."""
    if share.value is None or share.interval is None:
        return "-"
    low, high = share.interval
    return f"{100 * share.value:.1f} ({100 * low:.0f}-{100 * high:.0f})"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
