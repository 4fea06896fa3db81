"""What a user of a class-conditional model holds: labels in, images out.

    vae = VAEConfig(path="stabilityai/sd-vae-ft-ema")
    pipeline = ClassToImagePipeline.from_pretrained("outputs/sit_xl_2", vae, size=(256, 256))
    pipeline([207, 360], guidance="sg", guidance_scale=1.8).images[0]

The model is the folder of a SiT, DiT or MaskDiT (config.json and weights), as
`python -m t2i.models.convert` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from t2i import rng
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
from t2i.models.epsilon import EpsilonToVelocity
from t2i.models.mask_dit import MaskDiT, load_mask_dit
from t2i.models.routes import RoutingDraw
from t2i.models.sit import SiT, load_sit
from t2i.models.storage import CLASS_KEY, CONFIG_NAME
from t2i.sampling.sampler import RUN_SEED, Given, Redrawn, Rows
from t2i.sampling.sampling_config import RandomCondition

ClassModel = SiT | MaskDiT | EpsilonToVelocity


class ClassToImagePipeline(ImagePipeline):
    """A class-conditional model with its frozen VAE; attributes as in `ImagePipeline`."""

    def __init__(
        self,
        transformer: ClassModel,
        vae: VAE,
        aux: ClassModel | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Raises ValueError: the second network knows another number of classes."""
        super().__init__(transformer, vae, aux, size)
        self.num_classes: int = transformer.config.num_classes
        if aux is not None and aux.config.num_classes != self.num_classes:
            raise ValueError(
                f"the networks know {self.num_classes} and {aux.config.num_classes} classes; "
                "guidance by a second network needs the same ones"
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        vae: VAEConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        aux: str | Path | None = None,
        size: tuple[int, int] | None = None,
    ) -> ClassToImagePipeline:
        """Load a model's folder.

        Args:
            folder: config.json and weights of a SiT, DiT or MaskDiT.
            vae: of the latents that the model was trained on.
            device: where all components go.
            dtype: of the transformers; None = as stored.
            aux: folder of a weaker model with the same classes.
            size: height and width in pixels that the model is made for; its folder does not say.

        Raises:
            FileNotFoundError: a file or folder is not there.
            ValueError: another kind of model, weights that do not fit their config, or an aux with
                other classes.
        """
        return cls(
            load_class_model(Path(folder), device, dtype),
            load_vae(vae, device),
            None if aux is None else load_class_model(Path(aux), device, dtype),
            size,
        )

    def __call__(
        self,
        labels: int | Sequence[int],
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
        num_images_per_label: int = 1,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        solver: str = "euler",
        shift: float | Literal["resolution"] = 1.0,
        routing_draw: RoutingDraw = "fixed",
        model_scale: float | None = None,
        random_condition: RandomCondition = "per_step",
    ) -> PipelineOutput:
        """Make images.

        Args:
            labels: one class or several, each in [0, num_classes).
            num_images_per_label: images of each label.

        All other arguments are those of `t2i.pipeline.TextToImagePipeline.__call__`.

        Raises:
            ValueError: an argument that does not fit; the message says what does.
        """
        given = [labels] if isinstance(labels, int) else list(labels)
        check_arguments(
            ("labels", given),
            ("num_images_per_label", num_images_per_label),
            num_inference_steps,
            output_type,
            shift,
            routing_draw,
            random_condition,
            height,
            width,
        )
        seeds = choose_seeds(seeds, len(given) * num_images_per_label, generator)
        method = choose_guidance(guidance, guidance_scale, gamma_strong, gamma_weak)
        return self.sample(
            self.conditions(given, num_images_per_label, method, seeds, random_condition),
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

    def conditions(
        self,
        labels: Sequence[int],
        num_images_per_label: int,
        guidance: Guidance,
        seeds: Sequence[int],
        random_condition: RandomCondition,
    ) -> dict[Condition, Given]:
        """The labels that a method asks for: the given ones, the null class, or random others.

        Raises:
            ValueError: a label that is not a class; random others of a single class.
        """
        for label in labels:
            if not 0 <= label < self.num_classes:
                raise ValueError(f"class {label}: must be in [0, {self.num_classes - 1}]")
        own_B = torch.tensor(labels, device=self.device).repeat_interleave(num_images_per_label)
        given: dict[Condition, Given] = {
            "text": own_B,
            "null": torch.full_like(own_B, self.transformer.config.null_label),
        }
        if "random" in guidance.conditions:
            draw = self.draw_others(own_B, torch.tensor(seeds, device=self.device))
            pool = torch.arange(self.num_classes, device=self.device)
            given["random"] = Redrawn(pool, draw) if random_condition == "per_step" else draw(0)
        return {name: given[name] for name in guidance.conditions}

    def draw_others(self, own_B: Tensor, seeds_B: Tensor) -> Rows:
        """For each image and step a class that is not its own, uniform among the others, drawn by
        the image's seed."""
        if self.num_classes < 2:
            raise ValueError("guidance icg needs a model of at least two classes, this one knows 1")

        def draw(step: int) -> Tensor:
            words_B = rng.words(RUN_SEED, "random class", step, seeds_B, 1)[:, 0]
            return (own_B + 1 + words_B % (self.num_classes - 1)) % self.num_classes

        return draw


def load_class_model(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> ClassModel:
    """The SiT, DiT or MaskDiT of a folder, as a predictor of velocities.

    Raises:
        FileNotFoundError: no config or weights.
        ValueError: a model of another class, or weights that do not fit.
    """
    if json.loads((folder / CONFIG_NAME).read_text()).get(CLASS_KEY) == MaskDiT.__name__:
        return load_mask_dit(folder, device, dtype)
    model = load_sit(folder, device, dtype)
    return EpsilonToVelocity(model) if model.config.prediction == "epsilon" else model
