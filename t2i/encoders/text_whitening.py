"""Whitening of a text encoder's states: mean 0, all directions equally strong.

    python -m t2i.encoders.text_whitening --path models/InternVL3-2B --check
    python -m t2i.encoders.text_whitening --path models/InternVL3-2B --captions captions.txt

The last states of a language model foretell the next word: what they still know of the words read
is weak beside it. Those of "red" and "blue" in the nano model have a cosine of 0.999, so a network
that reads them raw trains for long before it tells them apart. --check tells how alike a model's
states are, whitened if they are (`t2i.encoders.text_alikeness`). The command writes
`text_whitening.safetensors` beside the model's weights; a text encoder that is loaded from a folder
with this file whitens its states, as latents are scaled to unit variance. Without the file states
stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.console import command_parser, get_logger, progress, run_command
from t2i.encoders.whitening import FILE_NAME, TextWhitening

if TYPE_CHECKING:
    from t2i.encoders.text import TextEncoder

LOG = get_logger("text_whitening")
BATCH = 64
# Directions much weaker than this share of the mean variance are mostly rounding: not blown up.
VARIANCE_FLOOR = 1e-3
MAX_TOKENS = 512  # of a caption: as long as captioners write them


def measure_whitening(encoder: TextEncoder, captions: Sequence[str]) -> TextWhitening:
    """Mean and (covariance + floor)^(-1/2) over all tokens of some captions, from raw states.

    Raises:
        ValueError: no captions, or an encoder that whitens its states already.
    """
    import torch

    if not captions:
        raise ValueError("no captions to measure the text states of")
    if encoder.whitening is not None:
        raise ValueError(f"{encoder.config.path} has a {FILE_NAME}: remove it to measure anew")
    num_tokens = 0
    sum_D = torch.zeros(encoder.width, dtype=torch.float64)
    products_DD = torch.zeros(encoder.width, encoder.width, dtype=torch.float64)
    with progress("text states", len(captions), "captions") as bar:
        for start in range(0, len(captions), BATCH):
            encoded = encoder.encode(captions[start : start + BATCH])
            states_ND = encoded.states[encoded.mask].double().cpu()
            num_tokens += len(states_ND)
            sum_D += states_ND.sum(0)
            products_DD += states_ND.T @ states_ND
            bar.update(len(encoded.mask))
    mean_D = sum_D / num_tokens
    variance_D, directions_DD = torch.linalg.eigh(products_DD / num_tokens - mean_D.outer(mean_D))
    scale_D = (variance_D + VARIANCE_FLOOR * variance_D.mean()).rsqrt()
    matrix_DD = directions_DD * scale_D @ directions_DD.T
    return TextWhitening(mean_D.float(), matrix_DD.float())


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m t2i.encoders.text_whitening", __doc__)
    parser.add_argument("--path", type=Path, required=True, help="folder of the InternVL model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--captions", type=Path, help="text file, a caption a line; some thousands")
    what.add_argument(
        "--check",
        action="store_true",
        help="only tell how alike the states of captions are that differ in one word; "
        "exit with 1 when a model could hardly tell them apart",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from t2i.encoders.text import load_text_encoder
    from t2i.encoders.text_alikeness import measure_alikeness
    from t2i.encoders.text_config import TextEncoderConfig

    encoder = load_text_encoder(
        TextEncoderConfig.model_validate({"path": str(args.path), "max_tokens": MAX_TOKENS}),
        args.device,
    )
    if args.check:
        alikeness = measure_alikeness(encoder)
        print("\n".join(alikeness.lines()))
        return 1 if alikeness.too_alike else 0
    captions = [line.strip() for line in args.captions.read_text().splitlines() if line.strip()]
    measure_whitening(encoder, captions).save(args.path)
    LOG.info("%d captions -> %s", len(captions), args.path / FILE_NAME)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
