"""What a user holds: text in, images out, in the manner of diffusers' pipelines.

    pipeline = TextToImagePipeline.from_pretrained("t2i/assets/nano")
    pipeline("a red circle on a black background.", guidance="sg", guidance_scale=1.8).images[0]

A pipeline folder holds model_index.json, transformer/ and, copied or named in model_index.json
by a path or hub name, vae/ and text_encoder/. Relative paths are relative to the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from t2i import rng
from t2i.encoders.text import TextEncoder, load_text_encoder
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae import VAE, load_vae
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.branches import Condition, Guidance
from t2i.guidance.schedules import Schedule
from t2i.image_pipeline import (
    Generators,
    ImagePipeline,
    OutputType,
    PipelineOutput,
    StepCallback,
    check_arguments,
    choose_guidance,
    choose_seeds,
)
from t2i.models.routes import RoutingDraw
from t2i.models.storage import WEIGHTS_NAME, save_transformer
from t2i.models.tr_dit import TRDiT, load_transformer
from t2i.sampling.sampler import RUN_SEED, ConditionText, Given, Redrawn, Rows
from t2i.sampling.sampling_config import RANDOM_PROMPTS, RandomCondition

INDEX_NAME = "model_index.json"
ConfigT = TypeVar("ConfigT", VAEConfig, TextEncoderConfig)


class TextToImagePipeline(ImagePipeline):
    """A TR-DiT with its frozen VAE and text encoder.

    Attributes:
        transformer, vae, text_encoder: the components.
        aux: a weaker transformer for guidance ag and ag+sg, or None.
        size: height and width in pixels that the model is made for, or None.
    """

    def __init__(
        self,
        transformer: TRDiT,
        vae: VAE,
        text_encoder: TextEncoder,
        aux: TRDiT | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(transformer, vae, aux, size)
        self.transformer: TRDiT = transformer
        self.text_encoder = text_encoder

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        aux: str | Path | None = None,
    ) -> TextToImagePipeline:
        """Load a pipeline folder.

        Args:
            folder: written by `save_pretrained` or `python -m t2i.export`.
            device: where all components go.
            dtype: of transformers and text encoder; None = as stored, float32 for the text.
            aux: folder of a weaker pipeline or transformer.

        Raises:
            FileNotFoundError: a file or folder is not there.
            ValueError: weights that do not fit their config.
        """
        folder = Path(folder)
        index = read_index(folder)
        vae_config = VAEConfig.model_validate(_located(index["vae"], folder))
        text_config = TextEncoderConfig.model_validate(_located(index["text_encoder"], folder))
        size = tuple(index["size"]) if index.get("size") else None
        return load_components(folder, vae_config, text_config, device, dtype, aux, size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a pipeline folder; a text encoder that came from the hub is named, not copied."""
        folder = Path(folder)
        save_transformer(self.transformer, folder / "transformer")
        self.vae.model.save_pretrained(folder / "vae")
        dtype = str(self.vae.model.dtype).removeprefix("torch.")
        vae_config = VAEConfig.model_validate({"path": "vae", "dtype": dtype})
        text_config = copy_component(self.text_encoder.config, folder, "text_encoder")
        write_index(folder, vae_config, text_config, self.size)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int = 50,
        guidance: str | Guidance = "sg",
        guidance_scale: float | str | Schedule | None = None,
        gamma_strong: float | str | Schedule | None = None,
        gamma_weak: float | str | Schedule | None = None,
        seeds: Sequence[int] | None = None,
        generator: Generators | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        solver: str = "euler",
        shift: float | Literal["resolution"] = 1.0,
        routing_draw: RoutingDraw = "fixed",
        model_scale: float | None = None,
        random_prompts: Sequence[str] = RANDOM_PROMPTS,
        random_condition: RandomCondition = "per_step",
    ) -> PipelineOutput:
        """Make images.

        Args:
            prompt: one or several; what is longer than the text encoder reads is cut, with a warning.
            num_inference_steps: steps of the solver.
            guidance: a name (`t2i.guidance.methods.METHODS`) or a Guidance.
            guidance_scale, gamma_strong, gamma_weak: settings of a guidance given by name, as
                numbers or schedules; None = the method's default. Scale 1 is no guidance.
            seeds: one per image; equal seeds give equal images, in another batch up to rounding.
            generator: draws the seeds when they are not given (None: torch's global one); a list
                has one for each image.
            height, width: in pixels; None = the size that the pipeline is made for.
            num_images_per_prompt: images of each prompt.
            output_type: "pil"; "np": float32 (B, H, W, 3) in [0, 1]; "pt": float32 (B, 3, H, W)
                in [0, 1]; "latent": float32 (B, C, H / 8, W / 8), normalised.
            callback_on_step_end: called after each step, see `StepCallback`.
            solver, shift: see `t2i.sampling.solvers`; "resolution" shifts by sqrt(T / T_ref), with
                T_ref the number of tokens at the size that the pipeline is made for.
            routing_draw: "fixed": a branch keeps the same number of tokens in each image;
                "bernoulli": each token with probability 1 - gamma.
            model_scale: the scale w that a model trained with a scale input is fed; None = 1,
                plain. It guides without a second branch, and composes with every guidance.
            random_prompts: what guidance icg draws its independent conditions from, never the
                image's own prompt.
            random_condition: "per_step": icg draws anew at each step; "per_image": once.

        Raises:
            ValueError: an argument that does not fit; the message says what does.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        check_arguments(
            ("prompt", prompts),
            ("num_images_per_prompt", num_images_per_prompt),
            num_inference_steps,
            output_type,
            shift,
            routing_draw,
            random_condition,
            height,
            width,
        )
        seeds = choose_seeds(seeds, len(prompts) * num_images_per_prompt, generator)
        method = choose_guidance(guidance, guidance_scale, gamma_strong, gamma_weak)
        texts = self.encode(
            prompts, num_images_per_prompt, method, seeds, random_prompts, random_condition
        )
        return self.sample(
            texts,
            method,
            seeds,
            self.latent_shape(height, width),
            num_inference_steps,
            output_type,
            callback_on_step_end,
            solver,
            shift,
            routing_draw,
            model_scale,
        )

    def encode(
        self,
        prompts: Sequence[str],
        num_images_per_prompt: int,
        guidance: Guidance,
        seeds: Sequence[int],
        random_prompts: Sequence[str],
        random_condition: RandomCondition,
    ) -> dict[Condition, Given]:
        """The conditions that a method asks for; each distinct caption is encoded once."""
        self.text_encoder.warn_of_cut(prompts)
        encode, device = self.text_encoder.encode, self.device
        rows_B = torch.arange(len(prompts), device=device).repeat_interleave(num_images_per_prompt)
        texts: dict[Condition, Given] = {"text": ConditionText(encode(prompts), rows_B)}
        if "null" in guidance.conditions:
            texts["null"] = ConditionText(encode([""]), torch.zeros_like(rows_B))
        if "random" in guidance.conditions:
            own = [prompts[row] for row in rows_B.tolist()]
            rows = draw_others(own, random_prompts, torch.tensor(seeds, device=device))
            pool, is_redrawn = encode(random_prompts), random_condition == "per_step"
            texts["random"] = Redrawn(pool, rows) if is_redrawn else ConditionText(pool, rows(0))
        return texts


def draw_others(own_prompts: Sequence[str], random_prompts: Sequence[str], seeds_B: Tensor) -> Rows:
    """For each image and step a random prompt that is not its own, drawn by the image's seed.

    Raises:
        ValueError: there is no other prompt.
    """
    others, num_prompts = [], len(random_prompts)
    for own in own_prompts:
        rows = [row for row, prompt in enumerate(random_prompts) if prompt != own]
        if not rows:
            raise ValueError(
                f"random_prompts must have another prompt than {own!r}, got {list(random_prompts)}"
            )
        others.append(rows)
    padded = [[*rows, *[-1] * (num_prompts - len(rows))] for rows in others]
    others_BP = torch.tensor(padded, device=seeds_B.device)
    counts_B1 = (others_BP >= 0).sum(dim=1, keepdim=True)

    def draw(step: int) -> Tensor:
        words_B1 = rng.words(RUN_SEED, "random prompt", step, seeds_B, 1)
        return others_BP.gather(1, words_B1 % counts_B1).squeeze(1)

    return draw


def load_components(
    checkpoint: Path,
    vae_config: VAEConfig,
    text_config: TextEncoderConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    aux: str | Path | None = None,
    size: tuple[int, int] | None = None,
) -> TextToImagePipeline:
    """A pipeline from a transformer (its folder or its pipeline's) and two frozen encoders."""
    return TextToImagePipeline(
        load_transformer(transformer_folder(checkpoint), device, dtype),
        load_vae(vae_config, device),
        load_text_encoder(text_config, device, dtype or torch.float32),
        None if aux is None else load_transformer(transformer_folder(Path(aux)), device, dtype),
        size,
    )


def transformer_folder(checkpoint: Path) -> Path:
    """The transformer's folder of a pipeline folder, or the folder itself.

    Raises:
        FileNotFoundError: there are no weights.
    """
    folder = checkpoint / "transformer" if (checkpoint / INDEX_NAME).is_file() else checkpoint
    if not (folder / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(
            f"{checkpoint}: neither a pipeline folder ({INDEX_NAME}, transformer/) nor a "
            f"transformer's folder (config.json, {WEIGHTS_NAME}); python -m t2i.export makes one"
        )
    return folder


def checkpoint_hash(checkpoint: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a transformer's weights file."""
    with (transformer_folder(checkpoint) / WEIGHTS_NAME).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not that of a TextToImagePipeline.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not a pipeline folder, it has no {INDEX_NAME}")
    index = json.loads(path.read_text())
    if index.get("_class_name") != TextToImagePipeline.__name__:
        raise ValueError(f"{path}: _class_name is {index.get('_class_name')!r}, not ours")
    return index


def write_index(
    folder: Path,
    vae_config: VAEConfig,
    text_config: TextEncoderConfig,
    size: tuple[int, int] | None,
) -> None:
    """Write model_index.json; paths of the configs are relative to the folder, absolute or names."""
    index = {
        "_class_name": TextToImagePipeline.__name__,
        "size": size,
        "transformer": {"path": "transformer"},
        "vae": vae_config.model_dump(mode="json"),
        "text_encoder": text_config.model_dump(mode="json"),
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def copy_component(config: ConfigT, folder: Path, name: str) -> ConfigT:
    """Copy a component's local folder to folder/name; the config to put in the index.

    A component that is named on the hub stays a name.
    """
    source = Path(config.path)
    if not source.is_dir():
        return config
    if source.resolve() != (folder / name).resolve():
        shutil.copytree(source, folder / name, dirs_exist_ok=True)
    return config.model_copy(update={"path": name})


def _located(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A component's settings with its path as seen from the current folder."""
    path = folder / values["path"]
    return {**values, "path": str(path) if path.exists() else values["path"]}
