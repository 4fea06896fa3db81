"""Settings of the two training stages (section launch.train), and what fits what; no torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from t2i.config import ConfigError, Section


class StageConfig(Section):
    """One stage: its folder, and its differences from t2i.training and data_pipeline.loader."""

    folder: str
    training: dict[str, Any] = Field(default_factory=dict)
    loader: dict[str, Any] = Field(default_factory=dict)
    # Height and width in pixels of the images of launch.train.validation_prompts.
    validation_size: tuple[int, int] = (128, 128)
    # What a fresh run starts from: the newest verified checkpoint of this run folder ...
    start_from_run: str | None = None
    # ... with Adam's moments too, or with a new optimizer ...
    start_with_optimizer: bool = False
    # ... or, when that folder has none, this transformer folder (config.json + safetensors).
    start_from_transformer: str | None = None


class UploadConfig(Section):
    """Where copies of the checkpoints go in the background, see `launch.uploads`.

    A run without newer checkpoints of its own goes on from the newest whole copy. An upload that was
    killed can leave parts in a bucket that nobody sees, but that are paid for: give the bucket a
    lifecycle rule with AbortIncompleteMultipartUpload.
    """

    address: str = Field(
        description="s3://bucket/prefix or a folder; stage1 and stage2 lie below it. Endpoint and "
        "region: data_pipeline.storage"
    )
    keep: int = Field(default=3, ge=1, description="copies of a stage; older ones are removed")
    wait_minutes: float = Field(
        default=5, ge=0, description="for the last upload, at the end or after SIGTERM"
    )

    def check_fits(self, timeout_minutes: float) -> None:
        """Refuse to let the other processes wait for longer than a hung collective may take.

        Raises:
            ConfigError: ``wait_minutes`` is not below ``timeout_minutes``.
        """
        if self.wait_minutes >= timeout_minutes:
            raise ConfigError(
                f"launch.train.upload.wait_minutes {self.wait_minutes:g} must be below "
                f"t2i.training.timeout_minutes {timeout_minutes:g}, which ends processes that wait"
            )


class LaunchConfig(Section):
    """What `launch/train_t2i.py` trains, and its stages."""

    # The backbone; its sizes are in section t2i.models of that name.
    model: Literal["tr_dit", "sit", "mask_dit"] = "tr_dit"
    stage1: StageConfig = StageConfig(folder="outputs/runs/stage1")
    stage2: StageConfig = StageConfig(
        folder="outputs/runs/stage2", start_from_run="outputs/runs/stage1"
    )
    # Copies of the checkpoints; null = none.
    upload: UploadConfig | None = None
    # Samples of the validation loss, of the held-out part (data_pipeline.loader.held_out);
    # 0 = no validation.
    validation_samples: int = Field(default=0, ge=0)
    # By name, words that are swapped for one another in held-out captions: how much the loss of the
    # average grows by it tells what the model has learned of them (TR-DiT only).
    validation_swaps: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] | None = None
    # What is sampled every t2i.training.sample_every steps: prompts, or classes; or a file that
    # `t2i.sample --prompts` reads.
    validation_prompts: str | Annotated[tuple[str | int, ...], Field(min_length=1)] = (
        "A small red circle is at the left. The background is white.",
        "A large blue square is at the top right. The background is gray.",
        "A large green triangle is at the center. The background is black.",
        "A small yellow cross is at the bottom. A large cyan circle is at the top.",
    )
    # Methods with their usual settings, or presets (`t2i.sampling.presets`); all of them in
    # `validation_steps` steps of Euler's method.
    validation_guidance: Annotated[tuple[str, ...], Field(min_length=1)] = ("none", "cfg", "sg")
    validation_steps: int = Field(default=50, ge=1)
    # A metric of `t2i.evaluate` by its name, with its settings, such as {name: shapes} or
    # {name: fdd, reference: FOLDER}: measured on the samples of the first method, and followed by a
    # scale of model-guidance that is automatic and follows samples. null = none.
    samples_metric: dict[str, Any] | None = None

    # Free space that a run needs to start; null = that of t2i.training.keep_checkpoints + 1
    # checkpoints, less those that are there. With less it fails, or only says so.
    min_free_disk_gb: float | None = Field(default=None, ge=0)
    little_disk: Literal["fail", "warn"] = "fail"
    # A run that goes on with another order of its data (other shards, weights, seed, batch): refuse,
    # or accept that samples may be seen twice or not at all.
    changed_data: Literal["refuse", "accept"] = "refuse"

    def stage(self, number: Literal[1, 2]) -> StageConfig:
        """The stage by its number on the command line."""
        return self.stage1 if number == 1 else self.stage2


SectionT = TypeVar("SectionT", bound=Section)


def stage_section(base: SectionT, difference: dict[str, Any], key: str) -> SectionT:
    """``base`` with a stage's differences; of the class of ``base``.

    Raises:
        ConfigError: an unknown or invalid value below ``key``.
    """
    try:
        written = base.model_dump(exclude_unset=True)  # so that an objective's defaults can go
        return type(base).model_validate(_merge(written, difference))
    except ValidationError as error:
        lines = [
            f"{'.'.join([key, *map(str, details['loc'])])}: {details['msg']} "
            f"(got {details['input']!r}; valid: {', '.join(type(base).model_fields)})"
            for details in error.errors()
        ]
        raise ConfigError("; ".join(lines)) from None


def _merge(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in difference.items():
        old = merged.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[name] = _merge(old, value)
        else:
            merged[name] = value
    return merged
