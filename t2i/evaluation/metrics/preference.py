"""Preference scores such as HPSv3, by scorers in virtual environments of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import Section
from t2i.evaluation.metric import Metric, Score, Scores, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
How much people would prefer each picture for its prompt, by a scorer that runs in its own virtual
environment, since such models pin old libraries. HPSv3 (Ma et al., 2025):

  python -m venv hpsv3_env && hpsv3_env/bin/pip install hpsv3
  python -m t2i.evaluate preference SAMPLES --adapter hpsv3 --python hpsv3_env/bin/python --scorer-device cuda

With --categories, a JSON object {category: [prompts]}, each category has its mean, and overall is the
mean of these, as HPSv3's benchmark of 12 categories has it. Any other scorer is a script that answers
JSON lines (t2i/evaluation/adapters shows how); --adapter brightness tries the way without a model.
"""
ADAPTERS = Path(__file__).parents[1] / "adapters"


class PreferenceSettings(Section):
    adapter: str = Field("hpsv3", description="a name of t2i/evaluation/adapters, or a script")
    python: str = Field(sys.executable, description="python of the scorer's environment")
    scorer_device: str = Field("cuda", description="told to the script as its first argument")
    categories: str | None = Field(None, description="JSON file {category: [prompts]}")
    start_seconds: float = Field(900.0, gt=0, description="patience until the scorer is ready")
    row_seconds: float = Field(120.0, gt=0, description="patience for each picture")


class PreferenceScorer:
    """The score of each picture; NaN where there is none."""

    def __init__(self, settings: PreferenceSettings, context: Context) -> None:
        from t2i.evaluation.subprocess_scorer import SubprocessScorer

        script = Path(settings.adapter)
        if script.suffix != ".py":
            script = ADAPTERS / f"{settings.adapter}.py"
        if not script.is_file():
            known = sorted(path.stem for path in ADAPTERS.glob("*.py") if path.stem != "__init__")
            raise ValueError(
                f"--adapter {settings.adapter}: neither a script nor one of {', '.join(known)}"
            )
        self.category_of = read_categories(settings.categories)
        self.process = SubprocessScorer(
            [settings.python, str(script), settings.scorer_device],
            settings.start_seconds,
            settings.row_seconds,
        )
        found = self.process.weights
        self.weights = (Weights(self.process.name, found, found.startswith("hub:")),)
        self.rows_name = f"preference-{self.process.name}"

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``preference`` (B,)."""
        import torch

        scores = [self._score(picture) for picture in pictures]
        return {"preference": torch.tensor([float("nan") if s is None else s for s in scores])}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        from t2i.evaluation.set_scores import score_of_pictures

        assert prompts is not None
        values_N = rows["preference"]
        has_score = values_N.isfinite()
        num_lost = int((~has_score).sum())
        notes = [f"{num_lost} pictures have no score"] if num_lost else []
        values_M = values_N[has_score]
        scored = [prompt for prompt, is_there in zip(prompts, has_score, strict=True) if is_there]
        name = self.process.name.lower()
        if not self.category_of:
            found = score_of_pictures(name, values_M, scored, "higher")
            per_picture = {} if num_lost else found.per_picture
            return Scores(found.scores, per_picture, notes=notes)
        return Scores(self._by_category(values_M, scored), notes=notes)

    def _by_category(self, values_M: Tensor, prompts: Sequence[str]) -> list[Score]:
        from t2i.evaluation.set_scores import score_of_groups

        unknown = [prompt for prompt in prompts if prompt not in self.category_of]
        if unknown:
            raise ValueError(
                f"--categories has no category of {len(unknown)} prompts, such as {unknown[0]!r}"
            )
        groups = [self.category_of[prompt] for prompt in prompts]
        return score_of_groups(values_M, groups, prompts, "higher")

    def _score(self, picture: Picture) -> float | None:
        """A picture without a file of its own is given one for the moment."""
        from tempfile import TemporaryDirectory

        from PIL import Image

        if Path(picture.name).is_file():
            return self.process.score(str(Path(picture.name).absolute()), picture.prompt or "")
        with TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            Image.fromarray(picture.pixels_HW3).save(path)
            return self.process.score(str(path), picture.prompt or "")


def read_categories(path: str | None) -> dict[str, str]:
    """Prompt -> category; nothing without a file.

    Raises:
        ValueError: the file is not of that form, or has a prompt in two categories.
    """
    if path is None:
        return {}
    categories = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(categories, dict) or not all(
        isinstance(prompts, list) for prompts in categories.values()
    ):
        raise ValueError(f"{path}: not a JSON object {{category: [prompts]}}")
    found: dict[str, str] = {}
    for category, prompts in categories.items():
        for prompt in prompts:
            if found.setdefault(prompt, category) != category:
                raise ValueError(f"{path}: {prompt!r} is in {found[prompt]} and in {category}")
    return found


METRIC = Metric(
    "preference",
    "HPSv3 and other preference models",
    DESCRIPTION,
    PreferenceSettings,
    PreferenceScorer,
    needs_prompts=True,
)
