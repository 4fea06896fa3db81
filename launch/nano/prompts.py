"""Write the held-out prompts: detailed captions of Shapes scenes that no TR-DiT of ours trains on.

    python -m launch.nano.prompts --output t2i/assets/nano/prompts.txt
    python -m launch.nano.prompts --output prompts.txt --configs configs/demo.yaml --seed 1

A config's section data_pipeline.source tells which scenes its pictures show, so they are left out
exactly. A third of the prompts each has one, two and three objects. The file is for
`python -m t2i.sample --prompts`, which without it takes the bundled file's first ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.config import REPO_FOLDER, load_config
from t2i.console import command_parser, get_logger, run_command

if TYPE_CHECKING:
    from t2i.shapes import Scene

LOG = get_logger("nano.prompts")
CONFIGS = tuple(
    REPO_FOLDER / "configs" / name for name in ("nano_training.yaml", "nano_data.yaml", "demo.yaml")
)
# Far from the seeds of data_pipeline.source, so that no prompt is one of their scenes by number.
FIRST_SEED = 1_000_000_000
NUM_PROMPTS = 512
MAX_DRAWS = 100_000  # per prompt


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m launch.nano.prompts", __doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--num", type=int, default=NUM_PROMPTS, help=f"default {NUM_PROMPTS}")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other prompts")
    parser.add_argument(
        "--configs",
        type=Path,
        nargs="+",
        default=CONFIGS,
        metavar="FILE",
        help="of trainings whose scenes to leave out (default: all of the nano family)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    seen = {scene for config in args.configs for scene in scenes_of(config)}
    prompts = held_out_prompts(args.num, seen, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("".join(f"{prompt}\n" for prompt in prompts))
    LOG.info("%s: %d prompts, none of %d scenes", args.output, len(prompts), len(seen))
    return 0


def scenes_of(config: Path) -> set[Scene]:
    """The scenes of all pictures that a config's ``data_pipeline.source`` draws."""
    from data_pipeline.sources.shapes import Config, numbered_scene

    source = load_config(config, [], Config).source
    return {numbered_scene(source.seed, number)[0] for number in range(source.num_images)}


def held_out_prompts(num: int, seen: Collection[Scene], seed: int = 0) -> list[str]:
    """Different detailed captions of scenes that are not in ``seen``; the same by (num, seen, seed).

    Raises:
        ValueError: nearly all scenes are in ``seen``.
    """
    import numpy as np

    from t2i.shapes import captions, random_scene

    taken = set(seen)
    prompts = []
    for number in range(num):
        rng = np.random.default_rng([FIRST_SEED + seed, number])
        num_objects = 1 + number % 3
        for _ in range(MAX_DRAWS):
            scene = random_scene(rng)
            if len(scene.objects) == num_objects and scene not in taken:
                break
        else:
            raise ValueError(
                f"prompt {number + 1} of {num}: no scene of {num_objects} objects is left that is "
                "not trained on; ask for fewer (--num)"
            )
        taken.add(scene)
        prompts.append(captions(scene)[0])
    return prompts


if __name__ == "__main__":
    raise SystemExit(run_command(main))
