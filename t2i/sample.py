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
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.config import (
    Section,
    add_config_arguments,
    describe_config,
    dump_config,
    load_config,
    section,
)
from t2i.console import get_logger, progress, run_command
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.guidance_config import GuidanceConfig
from t2i.guidance.methods import METHODS
from t2i.sampling.flags import read_interval, read_sg, read_size, validated
from t2i.sampling.presets import PRESETS
from t2i.sampling.prompts import builtin_prompts, read_classes, read_prompts
from t2i.sampling.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from t2i.class_pipeline import ClassToImagePipeline
    from t2i.pipeline import TextToImagePipeline
    from t2i.sampling.image_folder import ImageFolder, ImageJob

LOG = get_logger("sample")
# Flags that are named as the fields of the two settings classes.
SAMPLING_FLAGS = set(SamplingConfig.model_fields)
GUIDANCE_FLAGS = set(GuidanceConfig.model_fields) - {"name", "interval"}


class Config(Section):
    sampling: SamplingConfig = section("t2i.sampling")
    guidance: GuidanceConfig = section("t2i.guidance")
    vae: VAEConfig = section("t2i.encoders.vae")
    text: TextEncoderConfig = section("t2i.encoders.text")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2i.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    guidance.add_argument("--cfg-weight", metavar="W", help="for direct inner compositional ip2p")
    guidance.add_argument("--sg-weight", metavar="W", help="for direct inner compositional ip2p")
    guidance.add_argument(
        "--block-weight", metavar="W", help="for s2: weight of the branch without some blocks"
    )
    guidance.add_argument("--drop-blocks", metavar="X", help="for s2: share of blocks left out")
    guidance.add_argument("--eta", metavar="X", help="for apg: weight of the parallel part")
    guidance.add_argument("--radius", metavar="X", help="for apg: largest norm of the difference")
    guidance.add_argument("--momentum", metavar="X", help="for apg: weight of earlier differences")
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

    from t2i.sampling.image_folder import MAX_ON_CONTACT_SHEET, ImageFolder, plan_images

    guidance, sampling = config.guidance.build(), config.sampling
    prompts = read_prompts(args.prompt, args.prompts)
    is_class_model = args.classes is not None
    if is_class_model:
        if prompts:
            raise ValueError("--classes takes the place of prompts: give one of the two")
        prompts = read_classes(args.classes)
    prompts = prompts or builtin_prompts(sampling.num_builtin_prompts)
    settings = settings_of(config, is_class_model)
    jobs = plan_images(prompts, sampling.images_per_prompt, sampling.seed, settings)
    folder = ImageFolder(args.folder or Path(sampling.output) / (args.preset or guidance.name))
    missing = {job.name for job in folder.missing(jobs)}
    LOG.info(
        "%s, %s steps, %s -> %s: %d images, %d of them done before",
        *(guidance, sampling.steps, sampling.checkpoint, folder.path),
        *(len(jobs), len(jobs) - len(missing)),
    )
    # Dealt out by number, not by what is missing, which the processes see at different moments.
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if rank == 0:
        folder.begin(jobs)
    own = [job for job in jobs[rank::world_size] if job.name in missing]
    if own:
        pipeline = load_pipeline(config, is_class_model)
        if sampling.compile:
            pipeline.compile_blocks()
        make_images(pipeline, own, folder, config)
    if not folder.missing(jobs):
        shown = f" of the first {MAX_ON_CONTACT_SHEET}" if len(jobs) > MAX_ON_CONTACT_SHEET else ""
        LOG.info("contact sheet%s: %s", shown, folder.finish(jobs))
    return 0


def merge_flags(config: Config, args: argparse.Namespace) -> Config:
    """The config with the command's flags in place.

    With a --preset, or another --guidance than the config's, the config's settings of guidance do not
    apply, nor does its second network where that guidance has no use for it.

    Raises:
        ValueError: a flag that does not fit; the message names what is allowed.
    """
    given = vars(args) | {"size": None if args.size is None else read_size(args.size)}
    given = {key: value for key, value in given.items() if value is not None}
    sampling = {key: given[key] for key in SAMPLING_FLAGS & given.keys()}
    guidance = {key: given[key] for key in GUIDANCE_FLAGS & given.keys()}
    before: dict[str, Any] = {}
    if args.preset is not None:
        preset = PRESETS[args.preset]
        if args.guidance is not None or args.sg is not None:
            raise ValueError(
                f"--preset {args.preset} is guidance {preset.guidance}: leave --guidance and --sg"
            )
        name, before = preset.guidance, dict(preset.settings)
        sampling = {"steps": preset.steps, "solver": "euler"} | sampling
    else:
        name = args.guidance or (config.guidance.name if args.sg is None else "sg")
        if name == config.guidance.name:
            before = config.guidance.model_dump()
    if args.sg is not None:
        guidance |= read_sg(args.sg, name, given)
    if args.interval is not None:
        guidance["interval"] = read_interval(args.interval)
    new_guidance = validated(GuidanceConfig, before | guidance | {"name": name})
    new_sampling = validated(SamplingConfig, config.sampling.model_dump() | sampling)
    if new_sampling.aux is not None and not new_guidance.build().uses("aux"):
        if args.aux is not None or (args.preset is None and name == config.guidance.name):
            raise ValueError(f"guidance {name} has no use for a second network: leave --aux")
        new_sampling = new_sampling.model_copy(update={"aux": None})
    return config.model_copy(update={"sampling": new_sampling, "guidance": new_guidance})


def settings_of(config: Config, is_class_model: bool) -> dict[str, str]:
    """What an image depends on beside its prompt and seed: its metadata."""
    from t2i.pipeline import checkpoint_hash

    sampling, guidance = config.sampling, config.guidance.build()
    settings = {
        "guidance": str(guidance),
        "checkpoint": checkpoint_hash(Path(sampling.checkpoint)),
        **encoder_hashes(config, is_class_model),
        "steps": str(sampling.steps),
        "solver": sampling.solver,
        "shift": str(sampling.shift),
        "routing_draw": sampling.routing_draw,
        "size": "x".join(map(str, sampling.size)) if sampling.size else "default",
        "dtype": sampling.dtype,
    }
    if sampling.model_scale is not None:
        settings["model_scale"] = str(sampling.model_scale)
    if sampling.aux is not None:
        settings["aux"] = checkpoint_hash(Path(sampling.aux))
    if "random" in guidance.conditions:
        settings["random_condition"] = sampling.random_condition
        if not is_class_model:
            drawn_from = json.dumps(sampling.random_prompts)
            settings["random_prompts"] = hashlib.sha256(drawn_from.encode()).hexdigest()[:16]
    return settings


def encoder_hashes(config: Config, is_class_model: bool) -> dict[str, str]:
    """The hash of each encoder that `load_pipeline` takes: the pipeline's, or the config's."""
    from t2i.encoders.encoder_hash import encoder_hash
    from t2i.pipeline import INDEX_NAME, read_index

    checkpoint, vae, text = Path(config.sampling.checkpoint), config.vae, config.text
    if is_class_model:
        return {"vae": encoder_hash(vae, Path())}
    base = Path()
    if (checkpoint / INDEX_NAME).is_file():
        index, base = read_index(checkpoint), checkpoint
        vae = VAEConfig.model_validate(index["vae"])
        text = TextEncoderConfig.model_validate(index["text_encoder"])
    return {"vae": encoder_hash(vae, base), "text_encoder": encoder_hash(text, base)}


def load_pipeline(
    config: Config, is_class_model: bool
) -> TextToImagePipeline | ClassToImagePipeline:
    """The pipeline folder, or a model's folder with the encoders of the config."""
    from t2i.class_pipeline import ClassToImagePipeline
    from t2i.devices import usable_device
    from t2i.encoders.vae import DTYPES
    from t2i.pipeline import INDEX_NAME, TextToImagePipeline, load_components, transformer_folder

    sampling = config.sampling
    device = usable_device(sampling.device)
    checkpoint, dtype = Path(sampling.checkpoint), DTYPES[sampling.dtype]
    if is_class_model:
        folder = transformer_folder(checkpoint)
        return ClassToImagePipeline.from_pretrained(folder, config.vae, device, dtype, sampling.aux)
    if (checkpoint / INDEX_NAME).is_file():
        return TextToImagePipeline.from_pretrained(checkpoint, device, dtype, sampling.aux)
    return load_components(checkpoint, config.vae, config.text, device, dtype, sampling.aux)


def make_images(
    pipeline: TextToImagePipeline | ClassToImagePipeline,
    jobs: Sequence[ImageJob],
    folder: ImageFolder,
    config: Config,
) -> None:
    """Sample the images batch by batch and write each as soon as it is there."""
    from t2i.pipeline import TextToImagePipeline

    sampling, guidance = config.sampling, config.guidance.build()
    if isinstance(pipeline, TextToImagePipeline):  # of all prompts before those of a batch
        pipeline.text_encoder.warn_of_cut(list(dict.fromkeys(job.prompt for job in jobs)))
    height, width = sampling.size or (None, None)
    batches = [
        jobs[start : start + sampling.batch_size]
        for start in range(0, len(jobs), sampling.batch_size)
    ]
    with progress("sample", total=len(batches) * sampling.steps, unit="steps") as bar:

        def on_step_end(*_: Any) -> dict[str, Any]:
            bar.update()
            return {}

        settings: dict[str, Any] = {
            "num_inference_steps": sampling.steps,
            "guidance": guidance,
            "height": height,
            "width": width,
            "callback_on_step_end": on_step_end,
            "solver": sampling.solver,
            "shift": sampling.shift,
            "routing_draw": sampling.routing_draw,
            "model_scale": sampling.model_scale,
            "random_condition": sampling.random_condition,
        }
        done = 0
        for batch in batches:
            seeds = [job.seed for job in batch]
            if isinstance(pipeline, TextToImagePipeline):
                output = pipeline(
                    [job.prompt for job in batch],
                    seeds=seeds,
                    random_prompts=sampling.random_prompts,
                    **settings,
                )
            else:
                output = pipeline([int(job.prompt) for job in batch], seeds=seeds, **settings)
            for job, image in zip(batch, output.images, strict=True):
                folder.write(job, image)
            done += len(batch)
            bar.update(0, {"images": done})


if __name__ == "__main__":
    raise SystemExit(run_command(main))
