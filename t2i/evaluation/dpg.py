"""DPG-Bench's judge: yes/no answers about a picture, of questions that depend on each other.

(Hu et al., "ELLA: equip diffusion models with LLM for enhanced semantic alignment", 2024, after the
Davidsonian scene graphs of Cho et al., 2023.) A question counts as right if its answer is yes and so
are the answers, as given, of all questions that it directly depends on: where there is no dog, the
dog is not brown. A picture's score is the share of right questions. Scores of categories take the
answers as given. No network in here.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CATEGORIES = ("global", "entity", "attribute", "relation", "other")
COLUMNS = ("text", "category_broad", "proposition_id", "dependency", "question_natural_language")


@dataclass(frozen=True)
class Question:
    """One question about a prompt's picture.

    Attributes:
        number: within the prompt, as in the file.
        text: in words; to be answered by yes or no.
        category: one of `CATEGORIES`.
        needs: numbers of the questions that it depends on.
    """

    number: int
    text: str
    category: str
    needs: tuple[int, ...]


def read_questions(path: Path) -> dict[str, list[Question]]:
    """Prompt -> its questions, of a file such as dpg_bench.csv.

    Raises:
        ValueError: columns are missing, or a line cannot be read; names file and line.
    """
    found: dict[str, list[Question]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; is it dpg_bench.csv?")
        for row in reader:
            try:
                found.setdefault(row["text"].strip(), []).append(_question(row))
            except ValueError as error:
                raise ValueError(f"{path}:{reader.line_num}: {error}") from None
    for prompt, questions in found.items():
        numbers = {question.number for question in questions}
        unknown = {need for question in questions for need in question.needs} - numbers
        if len(numbers) < len(questions) or unknown:
            raise ValueError(
                f"{path}: questions of {prompt[:60]!r} have the same number, or depend on ones that "
                f"are not there ({sorted(unknown)})"
            )
    if not found:
        raise ValueError(f"{path}: no questions in it")
    return found


def score_answers(questions: Sequence[Question], answers: Mapping[int, bool]) -> float:
    """A picture's score, in [0, 1].

    Args:
        questions: of its prompt.
        answers: number of the question -> whether the answer was yes.
    """
    right = [
        answers[question.number] and all(answers[need] for need in question.needs)
        for question in questions
    ]
    return sum(right) / len(right)


def is_yes(answer: str) -> bool:
    """Whether an answer in words begins with yes."""
    words = answer.lower().replace(",", " ").replace(".", " ").split()
    return bool(words) and words[0] == "yes"


def _question(row: Mapping[str, str]) -> Question:
    category = row["category_broad"].strip().lower()
    if category not in CATEGORIES:
        raise ValueError(f"unknown category {category!r}; known: {', '.join(CATEGORIES)}")
    needs = [int(part) for part in row["dependency"].split(",") if part.strip()]
    return Question(
        number=int(row["proposition_id"]),
        text=row["question_natural_language"].strip(),
        category=category,
        needs=tuple(need for need in needs if need != 0),
    )
