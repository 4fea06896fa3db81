"""What the pipelines have in common: from conditions and seeds to images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from t2i import flow
from t2i.encoders.vae import VAE
from t2i.guidance.branches import Condition, Guidance
from t2i.guidance.methods import make_guidance
from t2i.guidance.schedules import Schedule
from t2i.models.backbone import Backbone
from t2i.models.routes import RoutingDraw
from t2i.sampling.sampler import Given, sample_latents
from t2i.sampling.sampling_config import RandomCondition

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

# pipeline, step, t, {"latents": x_t} -> None, or a mapping whose "latents", if any, replace x_t
StepCallback = Callable[[Any, int, float, dict[str, Tensor]], Mapping[str, Any] | None]
# one that draws all seeds, or one per image
Generators = torch.Generator | Sequence[torch.Generator]
OutputType = Literal["pil", "np", "pt", "latent"]
# Out of an overflow; float32 does not overflow by itself.
TRANSFORMER_WAY_OUT = "try --dtype bfloat16 or float32 (from_pretrained's dtype)"
VAE_WAY_OUT = (
    "try float32: t2i.encoders.vae.dtype, or vae.dtype in the pipeline folder's model_index.json"
)
FLOAT32_WAY_OUT = "its weights are damaged or have diverged, or the guidance scale is far too large"


@dataclass(frozen=True)
class PipelineOutput:
    """Images in the order of prompts or labels (all images of one together), and their seeds."""

    images: list[Image] | numpy.ndarray | Tensor
    seeds: tuple[int, ...]


class NotFiniteError(ValueError):
    """Images that are NaN or infinite: an overflow, or damaged weights."""


class ImagePipeline:
    """A backbone with its frozen VAE.

    Attributes:
        transformer, vae: the components.
        aux: a weaker transformer for guidance ag and ag+sg, or None.
        size: height and width in pixels that the model is made for, or None.
    """

    def __init__(
        self,
        transformer: Backbone,
        vae: VAE,
        aux: Backbone | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.transformer = transformer
        self.vae = vae
        self.aux = aux
        self.size = size

    def sample(
        self,
        conditions: Mapping[Condition, Given],
        guidance: Guidance,
        seeds: Sequence[int],
        latent_shape: tuple[int, int, int],
        num_steps: int,
        output_type: OutputType,
        callback: StepCallback | None,
        solver: str,
        shift: float | Literal["resolution"],
        routing_draw: RoutingDraw,
        model_scale: float | None,
    ) -> PipelineOutput:
        """Images of conditions; arguments as in the pipelines' `__call__` and `sample_latents`.

        Raises:
            NotFiniteError: latents or images are NaN or infinite; names the seeds and the dtype.
        """

        def on_step(step: int, timestep: float, x_BCHW: Tensor) -> Tensor:
            if callback is None:
                return x_BCHW
            changed = callback(self, step, timestep, {"latents": x_BCHW}) or {}
            return changed.get("latents", x_BCHW)

        latents = sample_latents(
            networks={"main": self.transformer} | ({"aux": self.aux} if self.aux else {}),
            conditions=conditions,
            guidance=guidance,
            seeds=seeds,
            latent_shape=latent_shape,
            num_steps=num_steps,
            solver=solver,
            shift=self.resolution_shift(latent_shape) if shift == "resolution" else shift,
            on_step=on_step,
            bernoulli=routing_draw == "bernoulli",
            model_scale=model_scale,
        )
        refuse_not_finite(latents, seeds, "the transformer", self.dtype, TRANSFORMER_WAY_OUT)
        images = latents if output_type == "latent" else self.decode(latents, output_type, seeds)
        return PipelineOutput(images, tuple(seeds))

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks of the networks in place: same images up to rounding.

        Each number of images, of tokens kept and of text tokens that occurs costs a compilation.
        ``backend``: of torch.compile.
        """
        for network in (self.transformer, self.aux):
            if network is not None:
                network.compile_blocks(backend)

    def decode(self, latents: Tensor, output_type: OutputType, seeds: Sequence[int]) -> Any:
        """Normalised latents (B, C, h, w) to images; "pil", "np", "pt" as in `__call__`.

        Raises:
            NotFiniteError: the images of some of the seeds are NaN or infinite.
        """
        images_B3HW = (self.vae.decode(latents) + 1) / 2
        refuse_not_finite(images_B3HW, seeds, "the VAE", self.vae.model.dtype, VAE_WAY_OUT)
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
        own_height, own_width = self.size or (None, None)
        height = own_height if height is None else height
        width = own_width if width is None else width
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

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's weights."""
        return next(self.transformer.parameters()).dtype


def refuse_not_finite(
    values_B: Tensor, seeds: Sequence[int], maker: str, dtype: torch.dtype, way_out: str
) -> None:
    """Refuse what would become a black picture that looks like a result.

    Args:
        values_B: (B, ...) latents or images, one for each of ``seeds``.
        maker, dtype: what computed them, and in which numbers.
        way_out: where shorter numbers than float32 have overflowed.

    Raises:
        NotFiniteError: names the seeds whose values are NaN or infinite.
    """
    is_bad_B = ~values_B.isfinite().flatten(1).all(dim=1)
    bad = [seed for seed, is_bad in zip(seeds, is_bad_B.tolist(), strict=True) if is_bad]
    if bad:
        shown = ", ".join(map(str, bad[:8])) + (" ..." if len(bad) > 8 else "")
        raise NotFiniteError(
            f"{len(bad)} of {len(seeds)} images (seed {shown}) are NaN or infinite: {maker} computes "
            f"in {str(dtype).removeprefix('torch.')}; "
            + (FLOAT32_WAY_OUT if dtype == torch.float32 else way_out)
        )


def check_arguments(
    conditions: tuple[str, Sequence[object]],
    num_images: tuple[str, int],
    num_inference_steps: int,
    output_type: OutputType,
    shift: float | Literal["resolution"],
    routing_draw: RoutingDraw,
    random_condition: RandomCondition,
    height: int | None,
    width: int | None,
) -> None:
    """Refuse values that the pipelines cannot work with, before anything is computed.

    Args:
        conditions: name and value of the pipeline's argument for its prompts or labels.
        num_images: name and value of its argument for the number of images of each.

    All others as in the pipelines' `__call__`.

    Raises:
        ValueError: names the argument, what is allowed and the value.
    """
    is_number = isinstance(shift, int | float)
    checks = [
        (*conditions, len(conditions[1]) > 0, "one or several"),
        (*num_images, num_images[1] >= 1, "at least 1"),
        ("num_inference_steps", num_inference_steps, num_inference_steps >= 1, "at least 1"),
        ("output_type", output_type, output_type in get_args(OutputType), "pil, np, pt or latent"),
        (
            "shift",
            shift,
            shift == "resolution" or (is_number and 0 < shift < math.inf),
            "'resolution' or a number > 0",
        ),
        ("routing_draw", routing_draw, routing_draw in get_args(RoutingDraw), "fixed or bernoulli"),
        (
            "random_condition",
            random_condition,
            random_condition in get_args(RandomCondition),
            "per_step or per_image",
        ),
        ("height", height, height is None or height >= 1, "None or at least 1"),
        ("width", width, width is None or width >= 1, "None or at least 1"),
    ]
    for name, value, is_allowed, allowed in checks:
        if not is_allowed:
            raise ValueError(f"{name} must be {allowed}, got {value!r}")


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


def choose_seeds(
    seeds: Sequence[int] | None, num_images: int, generator: Generators | None
) -> Sequence[int]:
    """The seeds that were given, or drawn ones.

    Raises:
        ValueError: not one seed per image, or neither one generator nor one per image.
    """
    if seeds is not None:
        if len(seeds) != num_images:
            raise ValueError(f"{num_images} images need as many seeds, got {len(seeds)}")
        return seeds
    if generator is None or isinstance(generator, torch.Generator):
        return _draw_seeds(num_images, generator)
    if len(generator) != num_images:
        raise ValueError(
            f"{num_images} images need one generator, or as many, got {len(generator)}"
        )
    return [seed for one in generator for seed in _draw_seeds(1, one)]


def _draw_seeds(count: int, generator: torch.Generator | None) -> list[int]:
    device = generator.device if generator is not None else None
    return torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()
