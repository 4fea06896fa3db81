"""Settings of sampling (section t2i.sampling); no torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from t2i.config import ASSETS_FOLDER, Section
from t2i.models.routes import RoutingDraw

# Solver names; `t2i.sampling.solvers.SOLVERS` has the functions.
SolverName = Literal["euler", "heun", "unipc"]
# How often guidance icg draws the condition that it guides away from.
RandomCondition = Literal["per_step", "per_image"]

# Drawn from by guidance icg: prompts that have nothing to do with the image.
RANDOM_PROMPTS = (
    "A small yellow cross is at the left. The background is gray.",
    "A large cyan circle is at the top right. The background is beige.",
    "A small magenta square is at the bottom. A large green triangle is at the top.",
    "A large red triangle is at the center. The background is black.",
    "A small blue circle is at the bottom left. A small yellow square is at the right.",
    "A large magenta cross is at the top left. The background is white.",
    "A small green triangle is at the bottom right. The background is dark gray.",
    "A large blue square is at the top. A small cyan cross is at the center.",
)


class SamplingConfig(Section):
    """What to sample from and how. The defaults are the nano family's."""

    checkpoint: str = Field(
        str(ASSETS_FOLDER / "nano"), description="pipeline folder, or a transformer's folder"
    )
    aux: str | None = Field(None, description="weaker checkpoint, for guidance ag and ag+sg")
    output: str = Field("outputs/nano/samples", description="a subfolder per guidance is made here")
    steps: int = Field(50, ge=1)
    solver: SolverName = "euler"
    shift: Annotated[float, Field(gt=0)] | Literal["resolution"] = Field(
        1.0, description="> 1 spends more steps on noise; resolution: sqrt(tokens / usual tokens)"
    )
    routing_draw: RoutingDraw = Field(
        "fixed", description="fixed count of kept tokens, or each with probability 1 - gamma"
    )
    model_scale: float | None = Field(
        None, ge=0, description="guidance scale fed to a model with a scale input; none = 1, plain"
    )
    size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="height and width in pixels; none = the size the pipeline is made for"
    )
    seed: int = Field(0, ge=0, description="image number i of a run has the seed seed + i")
    images_per_prompt: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    num_builtin_prompts: int = Field(16, ge=1, description="prompts used when none are given")
    random_prompts: tuple[str, ...] = Field(RANDOM_PROMPTS, min_length=1)
    random_condition: RandomCondition = Field(
        "per_step", description="guidance icg draws its condition at each step, or once per image"
    )
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = Field(
        False, description="torch.compile of the blocks: some minutes at first, for many images"
    )
