"""Images of fixed prompts or classes, sampled in the course of a run by several guidance methods.

Prompt number i has the seed i at every step and by every method, so pictures of different steps
show what was learned in between. Nothing here draws from a generator that training uses.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist
from torch import nn

from t2i.class_pipeline import ClassToImagePipeline
from t2i.encoders.text import TextEncoder
from t2i.encoders.vae import VAE
from t2i.guidance.branches import Guidance
from t2i.image_pipeline import NotFiniteError
from t2i.models.mask_dit import MaskDiT
from t2i.models.sit import SiT
from t2i.models.tr_dit import TRDiT
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.contact_sheet import headed, paste

if TYPE_CHECKING:
    from PIL.Image import Image

CONTACT_SHEET = "contact_sheet.png"


@dataclass(frozen=True)
class ValidationSamples:
    """What to sample.

    Attributes:
        prompts: texts, or numbers of classes as text (for models without a text encoder).
        methods: guidance by name.
        size: height and width in pixels.
        num_steps: of Euler's method.
        vae: lies on the CPU, and on the device of training only while samples are drawn.
        text_encoder: of training; None for class-conditional models.
        quality: images of the first method, in the order of prompts -> how good they are, higher is
            better; None = it is not measured.
    """

    prompts: tuple[str, ...]
    methods: Mapping[str, Guidance]
    size: tuple[int, int]
    num_steps: int
    vae: VAE
    text_encoder: TextEncoder | None
    quality: Callable[[Sequence[Image]], float] | None = None


def draw_samples(
    samples: ValidationSamples, model: nn.Module, batch_size: int, device: torch.device
) -> dict[str, list[Image]]:
    """Images by method, in the order of prompts; {} on all processes but the first.

    Called by all processes together, each with the same weights in ``model`` on its ``device``;
    each draws its share of the prompts, ``batch_size`` at a time.

    Raises:
        NotFiniteError: on the first process, when images of any process are NaN or infinite.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    numbers = range(len(samples.prompts))[rank::world_size]
    own: dict[str, list[Image]] | NotFiniteError
    samples.vae.model.to(device)
    try:
        own = {name: _draw(samples, name, model, numbers, batch_size) for name in samples.methods}
    except NotFiniteError as error:  # told to the first process: the others wait to be gathered
        own = error
    finally:
        samples.vae.model.to("cpu")
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(own, gathered, dst=0)
    if gathered is None:
        return {}
    for share in gathered:
        if isinstance(share, NotFiniteError):
            raise share
    shares: list[dict[str, list[Image]]] = gathered
    return {
        name: [
            shares[number % world_size][name][number // world_size]
            for number in range(len(samples.prompts))
        ]
        for name in samples.methods
    }


def _draw(
    samples: ValidationSamples,
    method: str,
    model: nn.Module,
    numbers: Sequence[int],
    batch_size: int,
) -> list[Image]:
    images: list[Image] = []
    for start in range(0, len(numbers), batch_size):
        seeds = list(numbers[start : start + batch_size])
        prompts = [samples.prompts[number] for number in seeds]
        height, width = samples.size
        guidance, num_steps = samples.methods[method], samples.num_steps
        if samples.text_encoder is not None:
            assert isinstance(model, TRDiT)
            text_pipeline = TextToImagePipeline(model, samples.vae, samples.text_encoder)
            output = text_pipeline(
                prompts,
                seeds=seeds,
                guidance=guidance,
                num_inference_steps=num_steps,
                height=height,
                width=width,
            )
        else:
            assert isinstance(model, (SiT, MaskDiT))
            output = ClassToImagePipeline(model, samples.vae)(
                [int(prompt) for prompt in prompts],
                seeds=seeds,
                guidance=guidance,
                num_inference_steps=num_steps,
                height=height,
                width=width,
            )
        assert isinstance(output.images, list)
        images += output.images
    return images


def write_samples(
    samples: ValidationSamples, images: Mapping[str, Sequence[Image]], folder: Path
) -> Path:
    """Write a grid per method and a contact sheet; ``folder`` appears whole, or not at all.

    The sheet has a row for each prompt and a column for each method. Returns its path.

    Raises:
        OSError: the disk is full or otherwise refuses.
    """
    aside = folder.with_suffix(".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    (aside / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in samples.prompts))
    columns = round(len(samples.prompts) ** 0.5)
    for name, of_method in images.items():
        paste(of_method, columns).save(aside / f"{name}.png")
    by_prompt = [image for row in zip(*images.values(), strict=True) for image in row]
    headed(paste(by_prompt, len(images)), list(images)).save(aside / CONTACT_SHEET)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that went back to an older checkpoint
    aside.rename(folder)
    return folder / CONTACT_SHEET
