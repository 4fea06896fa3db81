"""Settings of a plan (section launch.plan): what a cluster is assumed to do; no torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from t2i.config import Section
from t2i.hardware import GPUS


class PlanConfig(Section):
    """Assumptions of `python -m launch.plan`; none of them is measured by it."""

    # The machines.
    gpu: str = "h200"
    gpus_per_node: int = Field(8, ge=1)
    mfu: float = Field(
        0.45, gt=0, le=1, description="share of the GPU's bf16 peak while it computes"
    )
    intra_node_gb_s: float = Field(350, gt=0, description="GB/s of a GPU within a machine")
    inter_node_gb_s: float = Field(45, gt=0, description="GB/s of a GPU between machines")
    exposed: tuple[float, float, float] = Field(
        (1.0, 1.0, 0.5),
        description="share of the communication that no computation hides, for ZeRO 1, 2 and 3; "
        "the engine overlaps it in ZeRO 3 only",
    )
    price_per_gpu_hour: float = Field(3.0, ge=0)

    # Memory beside the formulas.
    reserve_gib: float = Field(3.0, ge=0, description="CUDA context, NCCL, cuBLAS")
    allocator_share: float = Field(
        0.08, ge=0, description="of activations: gradients of one block, fragmentation"
    )

    # The frozen text encoder: InternVL3-2B's language model.
    text_encoder_parameters: float = Field(1.54e9, ge=0)
    text_encoder_embeddings: float = Field(0.23e9, ge=0, description="that multiply nothing")
    prefix_tokens: int = Field(32, ge=0, description="that it reads before a caption")
    text_tokens: int | None = Field(
        None,
        ge=1,
        description="of a caption, padding included, on which times are planned: a micro-batch is "
        "as long as its longest caption; null = t2i.encoders.text.max_tokens, on which memory is "
        "planned in any case",
    )

    # The data.
    stages: tuple[Literal[1, 2], ...] = Field(
        (1, 2), min_length=1, description="of launch.train, that are planned"
    )
    resolutions: tuple[int, ...] | None = Field(
        None, description="side of the images of each stage; null = data_pipeline.latents's"
    )
    num_images: int = Field(100_000_000, ge=1)
    image_bytes: int = Field(100_000, ge=1, description="of a downloaded picture, on average")
    captions_bytes: int = Field(2_000, ge=1, description="of a picture's four captions as json")

    @field_validator("gpu")
    @classmethod
    def _is_known(cls, gpu: str) -> str:
        if gpu not in GPUS:
            raise ValueError(f"unknown GPU; valid: {', '.join(GPUS)} (t2i.hardware)")
        return gpu

    @model_validator(mode="after")
    def _each_stage_has_a_resolution(self) -> Self:
        if len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages {list(self.stages)} names one twice")
        if self.resolutions is not None and len(self.resolutions) != len(self.stages):
            raise ValueError(
                f"resolutions {list(self.resolutions)} must be one for each of stages "
                f"{list(self.stages)}, or null"
            )
        return self
