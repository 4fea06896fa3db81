"""Proves DPG-Bench's rules: a right answer counts if all that it directly depends on is right, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i.evaluation.dpg import Question, is_yes, read_questions, score_answers

HEAD = "item_id,text,category_broad,category_detailed,proposition_id,dependency,tuple,question_natural_language\n"
DOG = (
    "d,a brown dog,entity,whole,1,0,x,Is there a dog?\n"
    "d,a brown dog,attribute,color,2,1,x,Is it brown?\n"
    'd,a brown dog,relation,spatial,3,"1, 2",x,Is it on it?\n'
)
CHAIN = [
    Question(1, "", "entity", ()),
    Question(2, "", "entity", (1,)),
    Question(3, "", "other", (2,)),
]


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        ((True, True, True), 1),
        ((False, True, True), 1 / 3),  # the third looks at the second's answer as it was given
        ((True, False, True), 1 / 3),
        ((True, True, False), 2 / 3),
        ((False, False, False), 0),
    ],
)
def test_what_a_question_depends_on_must_be_right(answers: tuple[bool, ...], score: float) -> None:
    given = dict(enumerate(answers, start=1))
    assert score_answers(CHAIN, given) == pytest.approx(score)


def test_questions_are_read_by_prompt(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text(HEAD + DOG)
    questions = read_questions(tmp_path / "q.csv")["a brown dog"]
    assert [question.needs for question in questions] == [(), (1,), (1, 2)]
    assert [question.category for question in questions] == ["entity", "attribute", "relation"]
    assert questions[1].text == "Is it brown?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no column text"),
        (HEAD, "no questions in it"),
        (HEAD + DOG.replace("entity", "colour"), "2: unknown category 'colour'"),
        (HEAD + DOG.replace(",1,0,", ",one,0,"), "2: invalid literal"),
        (HEAD + DOG.replace(",2,1,", ",2,9,"), r"not there \(\[9\]\)"),
        (HEAD + DOG.replace(",2,1,", ",1,0,"), "have the same number"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"q\.csv.*{message}"):
        read_questions(tmp_path / "q.csv")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", True), ("yes, there is.", True), ("No", False), ("yesterday", False), ("", False)],
)
def test_an_answer_begins_with_yes(answer: str, expected: bool) -> None:
    assert is_yes(answer) == expected
