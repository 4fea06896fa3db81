"""Settings of benchmarks (section t2i.benchmark); no torch here."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from t2i.config import Section

# pixels per side of a latent, of every VAE that is in use
LATENT_DOWNSAMPLE = 8

Sparsity = Annotated[float, Field(ge=0, lt=1)]


class BenchmarkConfig(Section):
    """What is measured and how. The defaults are the nano model's, on a CPU."""

    name: str = Field("nano", description="of the model, in file names and tables")
    size: tuple[int, int] = Field((128, 128), description="height and width in pixels")
    text_tokens: int = Field(32, ge=1, description="of each caption, padding included")
    warmup: int = Field(2, ge=0, description="runs of each row before the clock starts")
    repeats: int = Field(7, ge=1, description="timed runs of each row, rows in turn")
    compile: bool = Field(False, description="torch.compile of each block")
    device: str = "cpu"
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="of the device, for MFU; null = from its data sheet (t2i.hardware) in bf16, "
        "and no MFU for a device that is not listed",
    )
    output: str = Field("outputs/benchmarks", description="folder of the results")

    # forward, sample, grid
    batch_size: int = Field(8, ge=1)
    steps: int = Field(50, ge=1, description="Euler steps of an image")
    gammas: tuple[Sparsity, ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 0.9), min_length=1, description="rows of `forward`"
    )
    guidance: tuple[str, ...] = Field(
        ("none", "cfg", "sg"), min_length=1, description="rows of `sample`"
    )
    grid: tuple[Sparsity, ...] = Field(
        (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        min_length=2,
        description="sparsities of both branches in `grid`, rising",
    )
    decode: bool = Field(
        False,
        description="`sample`: a row of the VAE's decoding, and images/s of whole images: all steps "
        "and the decoding",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    # train: micro-batch, precision, ZeRO stage and optimizer are those of t2i.training
    train_gammas: tuple[Sparsity, ...] = Field(
        (0.0, 0.5), min_length=1, description="rows of `train`"
    )
    accumulation: int = Field(1, ge=1, description="micro-batches of a training step")
    encode_text: bool = Field(
        False,
        description="`train`: run the frozen text encoder in each step, on captions of as many "
        "tokens, instead of random states",
    )

    @model_validator(mode="after")
    def _grid_rises(self) -> Self:
        if any(low >= high for low, high in pairwise(self.grid)):
            raise ValueError(f"grid {list(self.grid)} must rise from one sparsity to the next")
        return self
