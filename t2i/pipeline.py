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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from t2i import flow, rng
from t2i.encoders.text import TextEncoder, load_text_encoder
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae import VAE, load_vae
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.branches import Condition, Guidance
from t2i.guidance.methods import make_guidance
from t2i.guidance.schedules import Schedule
from t2i.models.storage import WEIGHTS_NAME, save_transformer
from t2i.models.tr_dit import TRDiT, load_transformer
from t2i.sampling.sampler import RUN_SEED, ConditionText, sample_latents
from t2i.sampling.sampling_config import RANDOM_PROMPTS, RoutingDraw

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

INDEX_NAME = "model_index.json"
# pipeline, step, t, {"latents": x_t} -> a mapping whose "latents", if any, replace x_t
StepCallback = Callable[["TextToImagePipeline", int, float, dict[str, Tensor]], Mapping[str, Any]]
OutputType = Literal["pil", "np", "pt", "latent"]
ConfigT = TypeVar("ConfigT", VAEConfig, TextEncoderConfig)


@dataclass(frozen=True)
class PipelineOutput:
    """Images in the order of prompts (all images of a prompt together), and their seeds."""

    images: list[Image] | numpy.ndarray | Tensor
    seeds: tuple[int, ...]


class TextToImagePipeline:
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
        self.transformer = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.aux = aux
        self.size = size

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
        generator: torch.Generator | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        solver: str = "euler",
        shift: float | Literal["resolution"] = 1.0,
        routing_draw: RoutingDraw = "fixed",
        random_prompts: Sequence[str] = RANDOM_PROMPTS,
    ) -> PipelineOutput:
        """Make images.

        Args:
            prompt: one or several.
            num_inference_steps: steps of the solver.
            guidance: a name (`t2i.guidance.methods.METHODS`) or a Guidance.
            guidance_scale, gamma_strong, gamma_weak: settings of a guidance given by name, as
                numbers or schedules; None = the method's default. Scale 1 is no guidance.
            seeds: one per image; equal seeds give equal images, whatever the batch.
            generator: draws the seeds when they are not given (None: torch's global one).
            height, width: in pixels; None = the size that the pipeline is made for.
            num_images_per_prompt: images of each prompt.
            output_type: "pil"; "np": float32 (B, H, W, 3) in [0, 1]; "pt": float32 (B, 3, H, W)
                in [0, 1]; "latent": float32 (B, C, H / 8, W / 8), normalised.
            callback_on_step_end: called after each step, see `StepCallback`.
            solver, shift: see `t2i.sampling.solvers`; "resolution" shifts by sqrt(T / T_ref), with
                T_ref the number of tokens at the size that the pipeline is made for.
            routing_draw: "fixed": a branch keeps the same number of tokens in each image;
                "bernoulli": each token with probability 1 - gamma.
            random_prompts: what guidance icg draws its independent conditions from.

        Raises:
            ValueError: an argument that does not fit; the message says what does.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        num_images = len(prompts) * num_images_per_prompt
        if seeds is None:
            seeds = torch.randint(2**63 - 1, (num_images,), generator=generator).tolist()
        if len(seeds) != num_images:
            raise ValueError(f"{num_images} images need as many seeds, got {len(seeds)}")
        method = choose_guidance(guidance, guidance_scale, gamma_strong, gamma_weak)
        texts = self.encode(prompts, num_images_per_prompt, method, seeds, random_prompts)
        latent_shape = self.latent_shape(height, width)

        def on_step(step: int, timestep: float, x_BCHW: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return x_BCHW
            changed = callback_on_step_end(self, step, timestep, {"latents": x_BCHW})
            return changed.get("latents", x_BCHW)

        latents = sample_latents(
            networks={"main": self.transformer} | ({"aux": self.aux} if self.aux else {}),
            conditions=texts,
            guidance=method,
            seeds=seeds,
            latent_shape=latent_shape,
            num_steps=num_inference_steps,
            solver=solver,
            shift=self.resolution_shift(latent_shape) if shift == "resolution" else shift,
            on_step=on_step,
            bernoulli=routing_draw == "bernoulli",
        )
        images = latents if output_type == "latent" else self.decode(latents, output_type)
        return PipelineOutput(images, tuple(seeds))

    def encode(
        self,
        prompts: Sequence[str],
        num_images_per_prompt: int,
        guidance: Guidance,
        seeds: Sequence[int],
        random_prompts: Sequence[str],
    ) -> dict[Condition, ConditionText]:
        """The conditions that a method asks for; each distinct caption is encoded once."""
        seeds_B = torch.tensor(seeds, dtype=torch.int64)
        drawn_B = rng.words(RUN_SEED, "random prompt", 0, seeds_B, 1)[:, 0] % len(random_prompts)
        captions: dict[Condition, tuple[Sequence[str], Tensor]] = {
            "text": (prompts, torch.arange(len(prompts)).repeat_interleave(num_images_per_prompt)),
            "null": ([""], torch.zeros_like(seeds_B)),
            "random": (random_prompts, drawn_B),
        }
        return {
            condition: ConditionText(
                self.text_encoder.encode(captions[condition][0]),
                captions[condition][1].to(self.device),
            )
            for condition in guidance.conditions
        }

    def decode(self, latents: Tensor, output_type: OutputType) -> Any:
        """Normalised latents (B, C, h, w) to images; see `__call__` for the types."""
        images_B3HW = (self.vae.decode(latents) + 1) / 2
        if output_type == "pt":
            return images_B3HW
        images_BHW3 = images_B3HW.permute(0, 2, 3, 1).cpu()
        if output_type == "np":
            return images_BHW3.numpy()
        from PIL import Image

        pixels_BHW3 = (images_BHW3 * 255).round().to(torch.uint8).numpy()
        return [Image.fromarray(pixels) for pixels in pixels_BHW3]

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """C, H, W of the latents of an image.

        Raises:
            ValueError: no size is known, or a side is not a multiple of VAE factor times patch.
        """
        height = height or (self.size[0] if self.size else None)
        width = width or (self.size[1] if self.size else None)
        if height is None or width is None:
            raise ValueError("this model does not say its size: give height and width (--size)")
        multiple = self.vae.downsample * self.transformer.config.patch_size
        if height % multiple or width % multiple:
            raise ValueError(f"size {height}x{width}: both sides must be multiples of {multiple}")
        return self.vae.num_channels, height // self.vae.downsample, width // self.vae.downsample

    def resolution_shift(self, latent_shape: tuple[int, int, int]) -> float:
        """The shift of times for another size than the pipeline's own, see `t2i.flow`.

        Raises:
            ValueError: the pipeline does not say what size it is made for.
        """
        if self.size is None:
            raise ValueError("shift 'resolution' needs a model that says its size; give a number")
        _, height, width = self.latent_shape(*self.size)
        return flow.resolution_shift(latent_shape[1] * latent_shape[2], height * width)

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device


def choose_guidance(
    guidance: str | Guidance,
    omega: float | str | Schedule | None,
    gamma_strong: float | str | Schedule | None,
    gamma_weak: float | str | Schedule | None,
) -> Guidance:
    """A guidance from a name and its settings, or as it was given.

    Raises:
        ValueError: as in `make_guidance`; settings beside a Guidance.
    """
    named = {"omega": omega, "gamma_strong": gamma_strong, "gamma_weak": gamma_weak}
    settings = {key: value for key, value in named.items() if value is not None}
    if isinstance(guidance, str):
        return make_guidance(guidance, settings)
    if settings:
        raise ValueError(
            f"{' and '.join(settings)} cannot be given beside a Guidance: it has its own"
        )
    return guidance


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
