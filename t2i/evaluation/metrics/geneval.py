"""GenEval: are the objects there that a prompt names, so many, so coloured, so placed?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from t2i.config import ASSETS_FOLDER, Section
from t2i.evaluation.metric import Metric, Score, Scores, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.geneval import Detection, GenEvalScores, Metadata
    from t2i.evaluation.geneval_detector import Detector
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
Six tasks (Ghosh et al., 2023): single_object, two_object, counting, colors, position, color_attr. A
picture is right if a detector finds all that its prompt asks for; a task's score is the share of
right pictures, the overall score the mean of the six. The papers make four pictures of each of 553
prompts. Prompts are made pictures by

  python -m t2i.sample --preset geneval --prompts evaluation_metadata.jsonl --images-per-prompt 4 --output SAMPLES
  python -m t2i.evaluate geneval SAMPLES --metadata evaluation_metadata.jsonl

The detector is Mask2Former (the original's is mmdetection's copy of the same model), colours are told
by CLIP ViT-L/14. --detector shapes judges the same tasks in the Shapes world without any network, with
prompts of python -m t2i.evaluation.shapes_geneval FILE. --layout lays the pictures out as the original's
evaluation/evaluate_images.py reads them.
"""
NANO_VAE = str(ASSETS_FOLDER / "nano" / "vae")


class GenevalSettings(Section):
    metadata: str | None = Field(None, description="GenEval's JSON lines, with the prompts")
    detector: Literal["mask2former", "shapes"] = "mask2former"
    weights: str = Field(
        "facebook/mask2former-swin-small-coco-instance", description="folder, or name on the hub"
    )
    clip: str = Field("openai/clip-vit-large-patch14", description="folder, or name on the hub")
    random_weights: int | None = Field(
        None, description="seed of tiny random networks in their place; their scores mean nothing"
    )
    layout: str | None = Field(None, description="folder for the original's layout")
    ceiling: bool = Field(
        False, description="with --detector shapes: the true pictures, too, drawn and after the VAE"
    )
    vae: str = Field(NANO_VAE, description="for --ceiling")


class GenevalScorer:
    """Right or not, picture by picture."""

    def __init__(self, settings: GenevalSettings, context: Context) -> None:
        from t2i.evaluation.geneval import PHOTOS, read_metadata
        from t2i.evaluation.shapes_geneval import SHAPES_VOCABULARY

        if settings.metadata is None:
            raise ValueError("--metadata is missing: the file that the prompts are from")
        is_shapes = settings.detector == "shapes"
        if settings.ceiling and not is_shapes:
            raise ValueError(
                "--ceiling needs --detector shapes: only their true pictures can be drawn"
            )
        self.settings, self.context = settings, context
        path = Path(settings.metadata)
        lines = read_metadata(path, SHAPES_VOCABULARY if is_shapes else PHOTOS)
        self.metadata = {line.prompt: line for line in lines}
        self.numbers = {line.prompt: number for number, line in enumerate(lines)}
        self.layout = Path(settings.layout) if settings.layout else None
        self.detector: Detector | None = None
        self.weights: tuple[Weights, ...] = ()
        if not is_shapes:
            self.detector = _load(settings, context)
            clip = self.detector.clip
            self.weights = (
                Weights("Mask2Former", self.detector.weights_hash, self.detector.is_published),
                Weights("CLIP", clip.weights_hash, clip.is_published),
            )
        # The layout is written while rows are made, so remembered ones do not serve a new layout.
        self.rows_name = f"geneval-{settings.detector} {path.read_text()} {settings.layout}"

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``right`` (B,): 1 or 0; ``width`` (B,) in pixels."""
        import torch

        from t2i.evaluation.geneval import judge

        rights = []
        for picture in pictures:
            metadata = self._metadata_of(picture)
            rights.append(float(judge(metadata, self._detect(picture)).right))
            if self.layout:
                self._lay_out(picture, metadata)
        widths = [picture.pixels_HW3.shape[1] for picture in pictures]
        return {"right": torch.tensor(rights), "width": torch.tensor(widths)}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        assert prompts is not None
        found = self._summarize(prompts, rows["right"].tolist())
        notes = [] if found.overall else ["no overall score: it needs pictures of all six tasks"]
        missing = len(self.metadata) - found.num_prompts
        if missing:
            notes.append(f"{missing} of {len(self.metadata)} prompts have no picture")
        truth = {}
        if self.settings.ceiling:
            truth = self._score_truth(list(dict.fromkeys(prompts)), int(rows["width"][0]))
        return Scores(_scores(found), {"right": rows["right"].tolist()}, truth, notes)

    def _summarize(self, prompts: Sequence[str], rights: Sequence[float]) -> GenEvalScores:
        from t2i.evaluation.geneval import Verdict, summarize

        return summarize(
            [
                Verdict(self.metadata[prompt], () if right else ("wrong",))
                for prompt, right in zip(prompts, rights, strict=True)
            ]
        )

    def _score_truth(self, prompts: Sequence[str], size: int) -> dict[str, list[Score]]:
        """The scores of the true pictures of the prompts."""
        from t2i.evaluation.geneval import judge
        from t2i.evaluation.shapes_ceiling import true_pictures
        from t2i.evaluation.shapes_geneval import shapes_detections

        found = {}
        pictures = true_pictures(prompts, size, self.settings.vae, self.context.device)
        for name, images in pictures.items():
            rights = [
                float(judge(self.metadata[prompt], shapes_detections(image)).right)
                for prompt, image in zip(prompts, images, strict=True)
            ]
            found[name] = _scores(self._summarize(prompts, rights))
        return found

    def _metadata_of(self, picture: Picture) -> Metadata:
        if picture.prompt not in self.metadata:
            raise ValueError(
                f"{picture.name}: its prompt {picture.prompt!r} is not in the metadata; sample with "
                "--prompts and the same file"
            )
        return self.metadata[picture.prompt]

    def _detect(self, picture: Picture) -> list[Detection]:
        from PIL import Image

        from t2i.evaluation.shapes_geneval import shapes_detections

        if self.detector is None:
            return shapes_detections(Image.fromarray(picture.pixels_HW3))
        return self.detector.detect(picture.pixels_HW3)

    def _lay_out(self, picture: Picture, metadata: Metadata) -> None:
        """<layout>/<number of the prompt>/metadata.jsonl and samples/<picture>.png."""
        assert self.layout is not None
        folder = self.layout / f"{self.numbers[metadata.prompt]:05d}"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        line = metadata.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
        shutil.copy(picture.name, folder / "samples" / f"{picture.index:05d}.png")


def _scores(found: GenEvalScores) -> list[Score]:
    """By task, then overall, if there are all six."""
    return [
        Score(name, s.value, *s.interval, s.num_prompts, "prompts", "higher", is_share=True)
        for name, s in (*found.tasks.items(), ("overall", found.overall))
        if s is not None
    ]


def _load(settings: GenevalSettings, context: Context) -> Detector:
    from t2i.encoders.clip import load_clip, random_clip
    from t2i.evaluation.geneval_detector import load_detector, random_detector

    seed, device = settings.random_weights, context.device
    if seed is not None:
        return random_detector(seed, random_clip(seed, device), device)
    return load_detector(settings.weights, load_clip(settings.clip, device), device)


METRIC = Metric(
    "geneval",
    "GenEval's six tasks",
    DESCRIPTION,
    GenevalSettings,
    GenevalScorer,
    needs_prompts=True,
    main_score="overall",
)
