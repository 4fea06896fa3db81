"""DPG-Bench: a vision-language model answers questions about each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import ASSETS_FOLDER, Section
from t2i.evaluation.metric import Metric, Score, Scores, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
Questions about long prompts (Hu et al., 2024), answered by InternVL with yes or no: dpg is the mean
share of right questions, of which one that depends on another needs that, too; the categories' scores
take the answers as they are. The published numbers are by mPLUG-large's answers: do not put ours
beside them. Four pictures of each of 1,065 prompts; the questions are ELLA's dpg_bench.csv.

  python -m t2i.evaluate dpg SAMPLES --questions dpg_bench.csv --weights OpenGVLab/InternVL3-2B-hf

The default is InternVL-nano, which knows no questions; it tries the way.
"""
NANO = str(ASSETS_FOLDER / "nano" / "text_encoder")
ASK = "{} Answer with yes or no."
MAX_NEW_TOKENS = 8


class DpgSettings(Section):
    questions: str | None = Field(None, description="dpg_bench.csv")
    weights: str = Field(NANO, description="InternVL in transformers' format: folder, or hub name")


class DpgScorer:
    """Answers about each picture."""

    def __init__(self, settings: DpgSettings, context: Context) -> None:
        import torch

        from t2i.encoders.internvl import load_internvl
        from t2i.encoders.weights_hash import file_hash, folder_hash
        from t2i.evaluation.dpg import read_questions

        if settings.questions is None:
            raise ValueError(
                "--questions is missing: dpg_bench.csv of github.com/TencentQQGYLab/ELLA"
            )
        self.questions = read_questions(Path(settings.questions))
        self.rows_name = f"dpg {file_hash(Path(settings.questions))}"
        dtype = torch.float32 if context.device.type == "cpu" else torch.bfloat16
        self.model = load_internvl(settings.weights, context.device, dtype)
        is_local = Path(settings.weights).is_dir()
        found = folder_hash(Path(settings.weights)) if is_local else f"hub:{settings.weights}"
        self.weights = (Weights("InternVL", found, is_published=not is_local),)

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``dpg`` (B,), ``yes`` and ``asked`` (B, number of categories)."""
        import torch

        from t2i.evaluation.dpg import CATEGORIES, score_answers

        scores, yes, asked = [], [], []
        for picture in pictures:
            questions = self.questions.get((picture.prompt or "").strip())
            if questions is None:
                raise ValueError(f"{picture.name}: its prompt has no questions in the file")
            answers = self._answers(picture, [question.text for question in questions])
            by_number = {q.number: a for q, a in zip(questions, answers, strict=True)}
            scores.append(score_answers(questions, by_number))
            kinds = [question.category for question in questions]
            asked.append([kinds.count(name) for name in CATEGORIES])
            right = [kind for kind, answer in zip(kinds, answers, strict=True) if answer]
            yes.append([right.count(name) for name in CATEGORIES])
        return {
            "dpg": torch.tensor(scores),
            "yes": torch.tensor(yes),
            "asked": torch.tensor(asked),
        }

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        from t2i import rng
        from t2i.evaluation.dpg import CATEGORIES
        from t2i.evaluation.intervals import ratio_draws, share_ends
        from t2i.evaluation.set_scores import score_of_pictures

        assert prompts is not None
        found = score_of_pictures("dpg", rows["dpg"], prompts, "higher")
        generator = rng.generator(0, "bootstrap", 0, 0)
        scores = list(found.scores)
        for number, name in enumerate(CATEGORIES):
            yes, asked = rows["yes"][:, number].numpy(), rows["asked"][:, number].numpy()
            num = int(asked.sum())
            if not num:
                continue
            low, high = None, None
            if len(set(prompts)) > 1:
                low, high = share_ends(ratio_draws(yes, asked, generator, prompts), num)
            value = float(yes.sum() / num)
            scores.append(Score(name, value, low, high, num, "questions", "higher", is_share=True))
        return Scores(scores, found.per_picture)

    def _answers(self, picture: Picture, questions: Sequence[str]) -> list[bool]:
        from PIL import Image

        from t2i.evaluation.dpg import is_yes

        processor = self.model.processor
        asked = [processor.image_question(ASK.format(question)) for question in questions]
        image = Image.fromarray(picture.pixels_HW3)
        pixels = processor.pixels([image]).repeat(len(asked), 1, 1, 1)
        answers = self.model.answer(asked, pixels, MAX_NEW_TOKENS)
        return [is_yes(text) for text, _ in answers]


METRIC = Metric(
    "dpg", "DPG-Bench's questions", DESCRIPTION, DpgSettings, DpgScorer, needs_prompts=True
)
