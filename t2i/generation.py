"""Make a set of images: which are missing, by which pipeline, on which process. No torch at import.

Under `accelerate launch` the images are dealt out by number, not by what is missing, which the
processes see at different moments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.config import Section, section
from t2i.console import get_logger, progress
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.guidance_config import GuidanceConfig
from t2i.sampling.flags import validated
from t2i.sampling.presets import PRESETS
from t2i.sampling.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i.class_pipeline import ClassToImagePipeline
    from t2i.pipeline import TextToImagePipeline
    from t2i.sampling.image_folder import ImageFolder, ImageJob

    AnyPipeline = TextToImagePipeline | ClassToImagePipeline

LOG = get_logger("sample")


class Config(Section):
    sampling: SamplingConfig = section("t2i.sampling")
    guidance: GuidanceConfig = section("t2i.guidance")
    vae: VAEConfig = section("t2i.encoders.vae")
    text: TextEncoderConfig = section("t2i.encoders.text")


def with_settings(
    config: Config, preset: str | None, guidance: Mapping[str, Any], sampling: Mapping[str, Any]
) -> Config:
    """A config with some settings of guidance and sampling in place.

    With a preset, or another guidance than the config's, the config's settings of guidance do not
    apply, nor does its second network where that guidance has no use for it.

    Args:
        preset: a name of `PRESETS`; single settings may differ from it.
        guidance: fields of `GuidanceConfig`, as text or as values; ``name`` may be among them.
        sampling: fields of `SamplingConfig`.

    Raises:
        ValueError: one that does not fit; the message names its flag and what is allowed.
    """
    if preset is not None:
        chosen = PRESETS[preset]
        name, before = chosen.guidance, dict[str, Any](chosen.settings)
        sampling = {"steps": chosen.steps, "solver": "euler", **sampling}
    else:
        name = guidance.get("name", config.guidance.name)
        before = config.guidance.model_dump() if name == config.guidance.name else {}
    new_guidance = validated(GuidanceConfig, {**before, **guidance, "name": name})
    new_sampling = validated(SamplingConfig, {**config.sampling.model_dump(), **sampling})
    if new_sampling.aux is not None and not new_guidance.build().uses("aux"):
        if "aux" in sampling or (preset is None and name == config.guidance.name):
            raise ValueError(f"guidance {name} has no use for a second network: leave --aux")
        new_sampling = new_sampling.model_copy(update={"aux": None})
    return config.model_copy(update={"sampling": new_sampling, "guidance": new_guidance})


def make_set(
    config: Config,
    prompts: Sequence[str],
    is_class_model: bool,
    folder: ImageFolder,
    pipeline: AnyPipeline | None = None,
) -> AnyPipeline | None:
    """Make the images of a set that are not there yet, and list them; every process calls it.

    Args:
        config: sampling, guidance and encoders.
        prompts: or numbers of classes, as text.
        is_class_model: whether they are classes.
        folder: where the images go.
        pipeline: of the same checkpoint and encoders, when a caller has it already.

    Returns:
        The pipeline, if there was one or it was needed.
    """
    from t2i.devices import process_state
    from t2i.sampling.image_folder import MAX_ON_CONTACT_SHEET, plan_images

    sampling, state = config.sampling, process_state()
    settings = settings_of(config, is_class_model)
    jobs = plan_images(prompts, sampling.images_per_prompt, sampling.seed, settings)
    missing = {job.name for job in folder.missing(jobs)}
    state.wait_for_everyone()  # before the first image is written
    LOG.info(
        "%s, %s steps, %s -> %s: %d images, %d of them done before",
        *(config.guidance.build(), sampling.steps, sampling.checkpoint, folder.path),
        *(len(jobs), len(jobs) - len(missing)),
    )
    if state.is_main_process:
        folder.begin(jobs)
    own = [job for job in jobs[state.process_index :: state.num_processes] if job.name in missing]
    if own:
        if pipeline is None:
            pipeline = load_pipeline(config, is_class_model)
            if sampling.compile:
                pipeline.compile_blocks()
        make_images(pipeline, own, folder, config)
    state.wait_for_everyone()
    if state.is_main_process:
        shown = f" of the first {MAX_ON_CONTACT_SHEET}" if len(jobs) > MAX_ON_CONTACT_SHEET else ""
        LOG.info("contact sheet%s: %s", shown, folder.finish(jobs))
    state.wait_for_everyone()  # the list is there for all of them
    return pipeline


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


def load_pipeline(config: Config, is_class_model: bool) -> AnyPipeline:
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
    pipeline: AnyPipeline, jobs: Sequence[ImageJob], folder: ImageFolder, config: Config
) -> None:
    """Sample the images batch by batch and write each as soon as it is there."""
    for images in generate(pipeline, jobs, config):
        for job, image in images:
            folder.write(job, image)


def generate(
    pipeline: AnyPipeline, jobs: Sequence[ImageJob], config: Config
) -> Iterator[list[tuple[ImageJob, Image]]]:
    """Sample images batch by batch, with a progress bar."""
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
            yield list(zip(batch, output.images, strict=True))
            done += len(batch)
            bar.update(0, {"images": done})
