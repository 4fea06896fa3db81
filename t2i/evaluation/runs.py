"""Make the images of several methods, score them by several metrics, write one table.

Images are dealt out to the processes of `accelerate launch`; run again, only what is missing is made.
To keep pictures is the rule. With ``keep: features`` each chunk of images is scored as it is made and
only its rows are saved: 50,000 images of 256 pixels are 6 GB as PNG, and 1 GB as rows of Inception.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.config import ConfigError
from t2i.console import get_logger
from t2i.devices import process_state
from t2i.environment import describe_environment
from t2i.evaluation.context import Context, make_context
from t2i.evaluation.evaluation_config import EvaluationConfig
from t2i.evaluation.metric import Metric, Scorer, Scores
from t2i.evaluation.picture_sets import Picture, open_set
from t2i.evaluation.registry import all_metrics
from t2i.evaluation.results import result_rows
from t2i.evaluation.score_files import score_file, write_scores
from t2i.evaluation.scoring import score_set
from t2i.generation import Config as GenerationConfig
from t2i.generation import (
    generate,
    load_pipeline,
    make_set,
    settings_of,
    with_settings,
)
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.flags import validated
from t2i.sampling.image_flops import image_flops
from t2i.sampling.image_folder import ImageFolder, ImageJob, plan_images
from t2i.sampling.prompts import builtin_prompts, read_classes, read_prompts

if TYPE_CHECKING:
    from t2i.generation import AnyPipeline

logger = get_logger("evaluate")
FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class Ready:
    """A metric that is ready.

    Attributes:
        settings: as text, for files.
    """

    metric: Metric
    scorer: Scorer
    settings: Mapping[str, Any]


class Run:
    """All methods of a config, one after the other."""

    def __init__(self, generation: GenerationConfig, evaluation: EvaluationConfig) -> None:
        """Check everything before anything is made.

        Raises:
            ValueError: a method or metric that cannot be; says which, and what is missing.
        """
        self.evaluation = evaluation
        if not evaluation.methods or not evaluation.metrics:
            raise ConfigError("t2i.evaluation.methods and .metrics: at least one of each is needed")
        self.is_class_model = evaluation.classes is not None
        self.prompts = _read_conditions(generation, evaluation)
        self.configs = {
            name: with_settings(generation, method.preset, method.guidance, method.sampling)
            for name, method in evaluation.methods.items()
        }
        self.context: Context = make_context(evaluation.reading())
        self.metrics = _prepare(evaluation, self.context)
        self.pipelines: dict[str, AnyPipeline] = {}

    def run(self) -> list[dict[str, Any]]:
        """Rows of the table, on the first process; the others have none."""
        rows: list[dict[str, Any]] = []
        for number, (name, config) in enumerate(self.configs.items(), start=1):
            folder = Path(self.evaluation.output) / name
            logger.info("%s (%d of %d)", name, number, len(self.configs))
            if self.evaluation.keep == "pictures":
                scores = self._by_pictures(config, folder)
            else:
                scores = self._by_features(config, folder)
            if process_state().is_main_process:
                facts = {"run": name, **self._facts(config, folder)}
                rows += self._write(scores, facts, folder)
        return rows

    def _write(
        self, scores: Mapping[str, Scores], facts: Mapping[str, Any], folder: Path
    ) -> list[dict[str, Any]]:
        """Write the scores of a set beside its pictures; its rows of the table."""
        rows = []
        for ready in self.metrics:
            name, weights = ready.metric.name, ready.scorer.weights
            about = {"metric": name, "settings": ready.settings}
            write_scores(score_file(folder, name), scores[name], weights, about)
            rows += result_rows(facts, name, scores[name], weights)
        return rows

    def _by_pictures(self, config: GenerationConfig, folder: Path) -> dict[str, Scores]:
        """Scores of a folder of pictures, made first where they are missing."""
        start = time.monotonic()
        num_before = len(list(folder.glob("[0-9]*.png")))
        pipeline = make_set(
            config,
            self.prompts,
            self.is_class_model,
            ImageFolder(folder),
            self.pipelines.get(_pipeline_key(config)),
        )
        if pipeline is not None:
            self.pipelines = {_pipeline_key(config): pipeline}  # one at a time is held
            num_made = len(list(folder.glob("[0-9]*.png"))) - num_before
            self._note_time(folder, time.monotonic() - start, num_made)
        pictures = open_set(folder)
        return {
            ready.metric.name: score_set(
                ready.scorer, pictures, self.context, f"{ready.metric.name} {folder.name}"
            )
            for ready in self.metrics
        }

    def _by_features(self, config: GenerationConfig, folder: Path) -> dict[str, Scores]:
        """Scores of rows that are made chunk by chunk, without pictures on the disk."""
        sampling, state = config.sampling, process_state()
        settings = settings_of(config, self.is_class_model)
        jobs = plan_images(self.prompts, sampling.images_per_prompt, sampling.seed, settings)
        size = self.evaluation.chunk_size
        chunks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        files = [self._chunk_file(folder, number, chunk) for number, chunk in enumerate(chunks)]
        own = [
            number
            for number in range(state.process_index, len(chunks), state.num_processes)
            if not files[number].is_file()
        ]
        for number in own:
            start = time.monotonic()
            self._make_chunk(config, chunks[number], number * size, files[number])
            self._note_time(folder, time.monotonic() - start, len(chunks[number]))
        state.wait_for_everyone()
        parts = [load_file(file) for file in files]
        prompts = None if self.is_class_model else [job.prompt for job in jobs]
        scores = {}
        for ready in self.metrics:
            prefix = f"{ready.metric.name}/"
            rows = {
                name.removeprefix(prefix): torch.cat([part[name] for part in parts])
                for name in parts[0]
                if name.startswith(prefix)
            }
            scores[ready.metric.name] = ready.scorer.score(rows, prompts)
        return scores

    def _chunk_file(self, folder: Path, number: int, jobs: Sequence[ImageJob]) -> Path:
        """Where the rows of a chunk lie; the name says all that they depend on."""
        digest = hashlib.sha256()
        for job in jobs:
            digest.update(json.dumps(dict(job.metadata)).encode())
        for ready in self.metrics:
            hashes = [one.hash for one in ready.scorer.weights]
            digest.update(repr((ready.metric.name, ready.scorer.rows_name, hashes)).encode())
        return folder / "features" / f"{number:05d}-{digest.hexdigest()[:12]}.safetensors"

    def _make_chunk(
        self, config: GenerationConfig, jobs: Sequence[ImageJob], first: int, file: Path
    ) -> None:
        rows: dict[str, list[Tensor]] = {}
        pipeline, done = self._pipeline(config), 0
        for images in generate(pipeline, jobs, config):
            batch = [
                Picture(
                    first + done + place,
                    job.name,
                    np.asarray(image),
                    None if self.is_class_model else job.prompt,
                )
                for place, (job, image) in enumerate(images)
            ]
            done += len(batch)
            for ready in self.metrics:
                with torch.inference_mode():
                    for name, values in ready.scorer.rows(batch).items():
                        rows.setdefault(f"{ready.metric.name}/{name}", []).append(values)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        save_file({name: torch.cat(parts) for name, parts in rows.items()}, temporary)
        temporary.replace(file)

    def _pipeline(self, config: GenerationConfig) -> AnyPipeline:
        key = _pipeline_key(config)
        if key not in self.pipelines:
            self.pipelines = {key: load_pipeline(config, self.is_class_model)}
            if config.sampling.compile:
                self.pipelines[key].compile_blocks()
        return self.pipelines[key]

    def _note_time(self, folder: Path, seconds: float, num_images: int) -> None:
        """Add this process's time to the folder's facts, if it is the first."""
        if not process_state().is_main_process or not num_images:
            return
        facts = _read_facts(folder)
        facts["seconds"] = facts.get("seconds", 0.0) + seconds * process_state().num_processes
        facts["images_timed"] = facts.get("images_timed", 0) + num_images
        _write_facts(folder, facts)

    def _facts(self, config: GenerationConfig, folder: Path) -> dict[str, Any]:
        """What made the images, and what that took."""
        sampling, facts = config.sampling, _read_facts(folder)
        if "flops_per_image" not in facts:
            facts["flops_per_image"] = self._flops(config)
            _write_facts(folder, facts)
        timed = facts.get("images_timed", 0)
        return {
            **settings_of(config, self.is_class_model),
            "checkpoint_path": sampling.checkpoint,
            "steps": sampling.steps,
            "omega": _number(config.guidance.omega),
            "gamma_strong": _number(config.guidance.gamma_strong),
            "gamma_weak": _number(config.guidance.gamma_weak),
            "interval": str(config.guidance.interval),
            "guidance_name": config.guidance.name,
            "num_images": len(self.prompts) * sampling.images_per_prompt,
            "flops_per_image": facts["flops_per_image"],
            "seconds_per_image": facts["seconds"] / timed if timed else None,
            "folder": str(folder),
            **describe_environment(sampling.device),
        }

    def _flops(self, config: GenerationConfig) -> float:
        pipeline, sampling = self._pipeline(config), config.sampling
        height, width = sampling.size or (None, None)
        _, rows, columns = pipeline.latent_shape(height, width)
        model = pipeline.transformer.config
        text_tokens = 0
        if isinstance(pipeline, TextToImagePipeline):
            lengths = [len(pipeline.text_encoder.caption_ids(text)) for text in self.prompts]
            text_tokens = round(sum(lengths) / len(lengths))
        num_tokens = rows * columns // model.patch_size**2
        shift = sampling.shift if isinstance(sampling.shift, float) else 1.0
        return image_flops(
            model,
            config.guidance.build(),
            num_tokens,
            text_tokens,
            sampling.steps,
            sampling.solver,
            shift,
        )


def _prepare(evaluation: EvaluationConfig, context: Context) -> list[Ready]:
    known, ready = all_metrics(), []
    for name, values in evaluation.metrics.items():
        if name not in known:
            raise ConfigError(f"t2i.evaluation.metrics.{name}: unknown; known: {', '.join(known)}")
        metric = known[name]
        if metric.needs_prompts and evaluation.classes is not None:
            raise ConfigError(f"t2i.evaluation.metrics.{name} needs prompts, and classes have none")
        settings = validated(metric.settings, values)
        try:
            scorer = metric.prepare(settings, context)
        except ValueError as error:
            raise ConfigError(f"t2i.evaluation.metrics.{name}: {error}") from None
        ready.append(Ready(metric, scorer, settings.model_dump(mode="json")))
    return ready


def _read_conditions(generation: GenerationConfig, evaluation: EvaluationConfig) -> list[str]:
    """Prompts, or classes as text."""
    if evaluation.classes is not None:
        if evaluation.prompts is not None:
            raise ConfigError("t2i.evaluation has prompts and classes: one of the two")
        return read_classes(evaluation.classes)
    if evaluation.prompts is not None:
        return read_prompts([], Path(evaluation.prompts))
    return builtin_prompts(generation.sampling.num_builtin_prompts)


def _pipeline_key(config: GenerationConfig) -> str:
    sampling = config.sampling
    return repr((sampling.checkpoint, sampling.aux, sampling.device, sampling.dtype))


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FACTS_FILE}.tmp"
    temporary.write_text(json.dumps(facts, indent=1) + "\n")
    temporary.replace(folder / FACTS_FILE)


def _number(schedule: Any) -> float | None:
    """A setting of guidance if it is one number over all steps."""
    try:
        return None if schedule is None else float(str(schedule))
    except ValueError:
        return None
