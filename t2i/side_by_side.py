"""Show samples of the same prompts side by side in one picture: a row per prompt.

    python -m t2i.side_by_side outputs/nano/samples/none outputs/nano/samples/sg
    python -m t2i.side_by_side samples/none samples/cfg samples/sg --num 6 --output docs/nano.jpg

The columns are the folders, in their order and by their names; python -m t2i.sample writes them, by
whatever checkpoint. Before them stands the truth, the picture that the prompt tells: of detailed
captions of the Shapes world alone (--no-truth for all other prompts). The ending of --output
chooses the format.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.console import command_parser, run_command

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_QUALITY = 90
GAP = 4  # pixels between images


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m t2i.side_by_side", __doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="written by python -m t2i.sample"
    )
    parser.add_argument("--num", type=int, default=6, metavar="N", help="rows (default 6)")
    parser.add_argument("--no-truth", action="store_true", help="show the samples alone")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/side_by_side.jpg"),
        metavar="FILE",
        help="default: outputs/side_by_side.jpg",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from PIL import ImageOps

    from t2i.sampling.contact_sheet import beside_texts, headed, paste

    prompts, columns = read_columns(args.folders, args.num, with_truth=not args.no_truth)
    cells = [
        ImageOps.expand(image, border=GAP // 2, fill="white")
        for row in zip(*columns.values(), strict=True)
        for image in row
    ]
    grid = headed(paste(cells, len(columns)), list(columns))
    sheet = beside_texts(grid, prompts, row_height=cells[0].height)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.output, quality=JPEG_QUALITY)
    print(args.output)
    return 0


def read_columns(
    folders: Sequence[Path], num: int, with_truth: bool
) -> tuple[list[str], dict[str, list[Image]]]:
    """The first ``num`` prompts of the folders, and name of column -> their images.

    Args:
        folders: of samples of the same prompts, in the same order.
        num: at least 1; fewer where the folders hold fewer.
        with_truth: begin with a column "truth", the rendered scenes.

    Raises:
        FileNotFoundError: a folder holds no finished set of images.
        ValueError: the folders' prompts differ, an image cannot be read, or, with the truth, a
            prompt tells less than a scene.
    """
    from t2i.evaluation.shapes_ceiling import rendered
    from t2i.sampling.image_folder import read_image, read_image_list, short_names

    listed = [read_image_list(folder)[:num] for folder in folders]
    prompts = [prompt for _, prompt in listed[0]]
    for folder, images in zip(folders, listed, strict=True):
        if [prompt for _, prompt in images] != prompts:
            raise ValueError(
                f"{folder} and {folders[0]} hold images of other prompts; sample both with the "
                "same --prompts"
            )
    columns = {
        name: [read_image(path) for path, _ in images]
        for name, images in zip(short_names(folders), listed, strict=True)
    }
    if with_truth:
        size = next(iter(columns.values()))[0].width
        columns = {"truth": list(rendered(prompts, size)), **columns}
    return prompts, columns


if __name__ == "__main__":
    raise SystemExit(run_command(main))
