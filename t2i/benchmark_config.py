"""Settings of benchmarks (section t2i.benchmark); no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from t2i.config import Section


class BenchmarkConfig(Section):
    """What is measured and how. The defaults are the nano model's, on a CPU."""

    name: str = Field("nano", description="of the model, in file names and tables")
    size: tuple[int, int] = Field((128, 128), description="height and width in pixels")
    batch_size: int = Field(8, ge=1)
    text_tokens: int = Field(32, ge=1, description="of each caption")
    steps: int = Field(50, ge=1, description="Euler steps of an image")
    warmup: int = Field(2, ge=0, description="runs of each row before the clock starts")
    repeats: int = Field(7, ge=1, description="timed runs of each row, rows in turn")
    gammas: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.75, 0.9), description="rows of `forward`")
    guidance: tuple[str, ...] = Field(("none", "cfg", "sg"), description="rows of `sample`")
    grid: tuple[float, ...] = Field(
        (0.0, 0.1, 0.3, 0.5, 0.7, 0.9), description="sparsities of both branches in `grid`"
    )
    decode: bool = Field(False, description="`sample`: count the VAE's decoding too")
    compile: bool = Field(False, description="torch.compile of each block")
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    output: str = Field("outputs/benchmarks", description="folder of the results")
