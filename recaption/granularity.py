"""The four levels of a caption, what is asked for each, and which answers are taken.

Level 1 is written from the image. Each other level is distilled by text alone from the one above:

    image -> detailed -> multi_sentence -> sentence -> keywords
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from t2i.config import Section
from t2i.encoders.prompts import (
    DETAILED_PROMPT,
    KEYWORDS_PROMPT,
    SENTENCE_PROMPT,
    SENTENCES_PROMPT,
)

LEVELS = ("detailed", "multi_sentence", "sentence", "keywords")


class PromptsConfig(Section):
    """What the captioner is asked, by level; the text above follows the last three."""

    detailed: str = Field(default=DETAILED_PROMPT, min_length=1)
    multi_sentence: str = Field(default=SENTENCES_PROMPT, min_length=1)
    sentence: str = Field(default=SENTENCE_PROMPT, min_length=1)
    keywords: str = Field(default=KEYWORDS_PROMPT, min_length=1)


class MaxNewTokensConfig(Section):
    """Longest answer in tokens, by level; an answer that does not end by then is refused."""

    detailed: int = Field(default=512, ge=1)
    multi_sentence: int = Field(default=256, ge=1)
    sentence: int = Field(default=96, ge=1)
    keywords: int = Field(default=96, ge=1)


class ChecksConfig(Section):
    """Which answers are no captions.

    ``max_repeats``: how often two or more characters may come in a row before they are taken for
    a model that goes in circles. ``refusals``: beginnings, in lower case, of answers in which the
    model declines.
    """

    max_repeats: int = Field(default=5, ge=1)
    refusals: tuple[str, ...] = (
        "i'm sorry",
        "i am sorry",
        "sorry,",
        "i can't",
        "i cannot",
        "i'm unable",
        "i am unable",
        "i'm not able",
        "as an ai",
        "unfortunately, i",
    )


class LevelsConfig(Section):
    """Prompts, lengths and checks of the four levels."""

    prompts: PromptsConfig = PromptsConfig()
    max_new_tokens: MaxNewTokensConfig = MaxNewTokensConfig()
    checks: ChecksConfig = ChecksConfig()

    def prompt(self, level: str) -> str:
        """The prompt of a level, one of `LEVELS`."""
        return getattr(self.prompts, level)

    def limit(self, level: str) -> int:
        """The most tokens of an answer at a level."""
        return getattr(self.max_new_tokens, level)


@dataclass(frozen=True)
class Answer:
    """What a model wrote. ``is_complete``: it ended by itself, not at the limit of its length."""

    text: str
    is_complete: bool


class CaptionError(Exception):
    """An image gets no captions. ``reason`` can be counted ("detailed: empty"), ``detail`` is text."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def accept_caption(answer: Answer, level: str, checks: ChecksConfig) -> str:
    """The answer as a caption: one line, single spaces.

    Raises:
        CaptionError: reason "LEVEL: empty", "LEVEL: refusal", "LEVEL: repetition" or
            "LEVEL: truncated"; detail is the answer.
    """
    caption = clean(answer.text)
    fault = find_fault(caption, answer.is_complete, checks)
    if fault:
        raise CaptionError(f"{level}: {fault}", caption)
    return caption


def clean(text: str) -> str:
    """Text as one line of valid Unicode: white space runs become one space."""
    valid = text.encode("utf-8", "replace").decode()
    return " ".join(valid.replace("\0", " ").split())


def find_fault(caption: str, is_complete: bool, checks: ChecksConfig) -> str:
    """Why a cleaned answer is no caption: "empty", "refusal", "repetition", "truncated"; "" if it is."""
    if not any(character.isalnum() for character in caption):
        return "empty"
    if is_refusal(caption, checks.refusals):
        return "refusal"
    if repeats(caption, checks.max_repeats):
        return "repetition"
    return "" if is_complete else "truncated"


def is_refusal(caption: str, refusals: Sequence[str]) -> bool:
    """Whether a caption begins with one of these; what stands later may be text in the picture."""
    beginning = caption.lower().replace("\u2019", "'").lstrip("\"' ")
    return beginning.startswith(tuple(refusals))


def repeats(caption: str, max_repeats: int) -> bool:
    """Whether some 2 to 200 characters come more than ``max_repeats`` times in a row."""
    # The blank at the end lets the last word of "red red red" count too.
    return re.search(rf"(.{{2,200}}?)\1{{{max_repeats}}}", f"{caption} ") is not None
