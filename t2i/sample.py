"""Make images from prompts or classes: guided sampling of a pipeline folder, or of a model's.

    python -m t2i.sample --sg 0.1,0.8 --omega 1.8
    python -m t2i.sample --guidance cfg --omega 2.5 --prompt "a red circle on a black background."
    python -m t2i.sample --guidance none --prompts prompts.txt --images-per-prompt 4 --output out
    python -m t2i.sample --sg 0.1,cosine:0.9:0.5 --solver heun --steps 20
    python -m t2i.sample --preset geneval
    python -m t2i.sample --config configs/tr_dit_2b5.yaml --checkpoint export --size 512
    python -m t2i.sample --classes 207,360 --checkpoint outputs/sit_xl_2 --size 256 \\
        --set t2i.encoders.vae.path=stabilityai/sd-vae-ft-ema

Each PNG carries its prompt or class, seed, guidance and the networks' hashes in its metadata. Run
again, the command makes only the images that are missing, damaged or made with other settings.
Without prompts it takes built-in ones of the Shapes world. images.jsonl lists the images of the last
finished call, which `t2i.evaluate` reads; others may lie beside them. contact_sheet.png shows the
first 64. Under `accelerate launch` the images are shared out among the processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from t2i.config import add_config_arguments, describe_config, dump_config, load_config
from t2i.console import command_parser, get_logger, run_command
from t2i.generation import Config, make_set, with_settings
from t2i.guidance.guidance_config import GuidanceConfig
from t2i.guidance.methods import METHODS
from t2i.sampling.flags import read_interval, read_sg, read_size
from t2i.sampling.presets import PRESETS
from t2i.sampling.prompts import builtin_prompts, read_classes, read_prompts
from t2i.sampling.sampling_config import SamplingConfig

LOG = get_logger("sample")
# Flags that are named as the fields of the two settings classes.
SAMPLING_FLAGS = set(SamplingConfig.model_fields)
GUIDANCE_FLAGS = set(GuidanceConfig.model_fields) - {"name", "interval"}


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m t2i.sample", __doc__)
    guidance = parser.add_argument_group(
        "guidance",
        "Numbers may be schedules over the steps: linear:0.6:0, cosine:0.6:0, piecewise:0=1:0.3=2.5\n\n"
        + "\n".join(f"--preset {name}: {preset}" for name, preset in PRESETS.items()),
    )
    guidance.add_argument(
        "--preset",
        choices=PRESETS,
        help="the papers' settings, see above; flags change single ones",
    )
    guidance.add_argument(
        "--guidance", metavar="NAME", help=f"one of: {' '.join(METHODS)} (default: the config's)"
    )
    guidance.add_argument(
        "--sg", metavar="S,W", help="short for --guidance sg --gamma-strong S --gamma-weak W"
    )
    guidance.add_argument("--omega", metavar="W", help="guidance scale; 1 means no guidance")
    guidance.add_argument(
        "--gamma-strong", metavar="G", help="share of tokens the strong branch drops, in [0, 1)"
    )
    guidance.add_argument("--gamma-weak", metavar="G", help="the same for the weak branch")
    guidance.add_argument(
        "--cfg-weight",
        metavar="W",
        help="for direct inner compositional ip2p; of slg pag tpg ssg what CFG adds (0: nothing)",
    )
    guidance.add_argument("--sg-weight", metavar="W", help="for direct inner compositional ip2p")
    guidance.add_argument(
        "--block-weight", metavar="W", help="for s2: weight of the branch without some blocks"
    )
    guidance.add_argument("--drop-blocks", metavar="X", help="for s2: share of blocks left out")
    guidance.add_argument("--eta", metavar="X", help="for apg: weight of the parallel part")
    guidance.add_argument("--radius", metavar="X", help="for apg: largest norm of the difference")
    guidance.add_argument("--momentum", metavar="X", help="for apg: weight of earlier differences")
    guidance.add_argument("--zero-steps", metavar="N", help="for cfg_zero: steps that do not move")
    guidance.add_argument("--omega-high", metavar="W", help="for fdg: scale of high frequencies")
    guidance.add_argument(
        "--internal-omega", metavar="W", help="for cfg+ig sg+ig: scale away from the internal head"
    )
    guidance.add_argument(
        "--blocks",
        metavar="N,N",
        help="for slg pag tpg ssg: which blocks are weakened (-1: the last; default: middle)",
    )
    guidance.add_argument(
        "--swap-ratio", metavar="X", help="for ssg: swapped pairs by the number of tokens"
    )
    guidance.add_argument("--interval", metavar="LOW,HIGH", help="guide only for t in this range")
    guidance.add_argument(
        "--aux", metavar="CHECKPOINT", help="weaker network, for guidance ag and ag+sg alone"
    )
    guidance.add_argument(
        "--model-scale",
        metavar="W",
        help="scale that is fed to a model trained with scale_input; 1 means no guidance",
    )
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may repeat")
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt a line; .jsonl (GenEval); .tsv (PartiPrompts)",
    )
    what.add_argument(
        "--classes", metavar="N,N", help="of a SiT, DiT or MaskDiT, in place of prompts: 207,360"
    )
    what.add_argument("--images-per-prompt", type=int, metavar="N", help="or per class")
    what.add_argument("--seed", type=int, metavar="N", help="image number i gets the seed N + i")
    what.add_argument("--size", metavar="N|HxW", help="height and width in pixels")
    what.add_argument(
        "--output",
        dest="folder",
        type=Path,
        metavar="DIR",
        help="default: <root>/samples/<guidance or preset>",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--checkpoint", metavar="DIR", help="pipeline folder, or a model's")
    how.add_argument("--steps", type=int, metavar="N")
    how.add_argument("--solver", metavar="NAME", help="euler, heun or unipc")
    how.add_argument("--shift", metavar="A", help="> 1 spends more steps on noise; or: resolution")
    how.add_argument(
        "--routing-draw", metavar="KIND", help="fixed number of kept tokens, or bernoulli"
    )
    how.add_argument("--random-condition", metavar="KIND", help="for icg: per_step or per_image")
    how.add_argument("--batch", dest="batch_size", type=int, metavar="N")
    how.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ...")
    how.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or float16")
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = merge_flags(load_config(args.config, args.overrides, Config), args)
    if args.print_config:
        print(dump_config(config), end="")
        return 0
    LOG.info(describe_config(args))

    from t2i.devices import leave_group
    from t2i.sampling.image_folder import ImageFolder

    prompts = read_prompts(args.prompt, args.prompts)
    is_class_model = args.classes is not None
    if is_class_model:
        if prompts:
            raise ValueError("--classes takes the place of prompts: give one of the two")
        prompts = read_classes(args.classes)
    prompts = prompts or builtin_prompts(config.sampling.num_builtin_prompts)
    name = args.preset or config.guidance.name
    folder = ImageFolder(args.folder or Path(config.sampling.output) / name)
    make_set(config, prompts, is_class_model, folder)
    leave_group()
    return 0


def merge_flags(config: Config, args: argparse.Namespace) -> Config:
    """The config with the command's flags in place; see `with_settings`.

    Raises:
        ValueError: a flag that does not fit; the message names what is allowed.
    """
    given = vars(args) | {"size": None if args.size is None else read_size(args.size)}
    given = {key: value for key, value in given.items() if value is not None}
    sampling = {key: given[key] for key in SAMPLING_FLAGS & given.keys()}
    guidance = {key: given[key] for key in GUIDANCE_FLAGS & given.keys()}
    if args.preset is not None and (args.guidance is not None or args.sg is not None):
        raise ValueError(
            f"--preset {args.preset} is guidance {PRESETS[args.preset].guidance}: leave --guidance "
            "and --sg"
        )
    name = args.guidance or (None if args.sg is None else "sg")
    if name is not None:
        guidance["name"] = name
    if args.sg is not None:
        guidance |= read_sg(args.sg, name or config.guidance.name, given)
    if args.interval is not None:
        guidance["interval"] = read_interval(args.interval)
    return with_settings(config, args.preset, guidance, sampling)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
