"""Proves which answers of a model are taken as captions, and that each refusal has its reason."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recaption.granularity import (
    LEVELS,
    Answer,
    CaptionError,
    ChecksConfig,
    LevelsConfig,
    accept_caption,
    clean,
    repeats,
)
from t2i.encoders.prompts import DETAILED_PROMPT, DISTILLING_PROMPTS
from t2i.shapes import Scene, SceneObject, captions

CHECKS = ChecksConfig()


def reason(text: str, is_complete: bool = True) -> str:
    with pytest.raises(CaptionError) as error:
        accept_caption(Answer(text, is_complete), "sentence", CHECKS)
    return error.value.reason


def test_the_default_prompts_are_those_the_nano_model_learned() -> None:
    prompts = [LevelsConfig().prompt(level) for level in LEVELS]
    assert prompts == [DETAILED_PROMPT, *DISTILLING_PROMPTS]


@pytest.mark.parametrize(
    "text",
    [
        "A cat.",
        'A card with the words "I\'m sorry" on it.',
        "He says ha ha ha ha.",
        "\u4e00\u53ea\u732b\u5750\u5728\u6905\u5b50\u4e0a\u3002",
        "red circle, blue square, blue circle, red square, blue square",
        "A price tag of 1000000000 dollars...",
    ],
)
def test_good_captions_are_taken_as_they_are(text: str) -> None:
    assert accept_caption(Answer(text, True), "sentence", CHECKS) == text


def test_captions_of_full_scenes_do_not_count_as_repetition() -> None:
    objects = [
        SceneObject("circle", "red", "small", place) for place in ("left", "center", "right")
    ]
    for text in captions(Scene(tuple(objects), "white", "plain")):
        assert not repeats(text, CHECKS.max_repeats)


@pytest.mark.parametrize("text", ["", "  \n", "...", "\0", "-- ,"])
def test_nothing_said_is_empty(text: str) -> None:
    assert reason(text) == "sentence: empty"


@pytest.mark.parametrize(
    "text", ["I'm sorry, but I can't help.", "I\u2019m unable to see it.", '"As an AI model, no."']
)
def test_a_model_that_declines_is_a_refusal(text: str) -> None:
    assert reason(text) == "sentence: refusal"


@pytest.mark.parametrize(
    "text",
    [
        "A red " + "very " * 6 + "big cat",
        "red, red, red, red, red, red, red",
        "The image shows a cat. " * 6,
        "aaaaaaaaaaaaaaaaaaaa",
        "\u732b\u732b" * 6,
    ],
)
def test_going_in_circles_is_repetition(text: str) -> None:
    assert reason(text) == "sentence: repetition"


def test_an_answer_cut_at_its_limit_is_truncated() -> None:
    assert reason("A cat on a", is_complete=False) == "sentence: truncated"


def test_the_refused_answer_is_kept_as_detail() -> None:
    with pytest.raises(CaptionError, match="A cat on a") as error:
        accept_caption(Answer("A cat on a", False), "keywords", CHECKS)
    assert error.value.detail == "A cat on a"


@given(st.text(st.characters(exclude_categories=())))
def test_a_cleaned_text_is_one_line_that_can_be_stored(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode()
    assert "\0" not in cleaned
    assert len(cleaned.splitlines()) <= 1
    assert clean(cleaned) == cleaned


def test_the_search_for_repetition_is_quick_on_long_texts() -> None:
    text = " ".join(f"word{i % 7}{i % 11}{i % 13}" for i in range(400))
    begin = time.perf_counter()
    assert not repeats(text, CHECKS.max_repeats)
    assert time.perf_counter() - begin < 1
