"""Proves GenEval's rules one by one on detections made by hand, the file's reader and the scores."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i.evaluation.geneval import (
    CLASSES,
    COLORS,
    TASKS,
    Detection,
    Metadata,
    Verdict,
    judge,
    read_metadata,
    relations,
    summarize,
)

PUBLISHED = Path(__file__).resolve().parents[4] / "shared/data/prompts/evaluation_metadata.jsonl"
BOX = (0.0, 0.0, 10.0, 10.0)


def metadata(tag: str, *include: dict[str, Any], **others: Any) -> Metadata:
    return Metadata.model_validate({"tag": tag, "prompt": "p", "include": include, **others})


def needs(name: str, count: int = 1, **others: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **others}


def seen(name: str, score: float = 0.95, color: str = "", x: float = 0, y: float = 0) -> Detection:
    """A box of ten by ten pixels around (x, y)."""
    return Detection(name, score, (x - 5, y - 5, x + 5, y + 5), color)


def is_right(asked: Metadata, *detections: Detection) -> bool:
    return judge(asked, detections).right


def test_an_object_counts_above_the_threshold_and_not_at_it() -> None:
    asked = metadata("single_object", needs("dog"))
    assert is_right(asked, seen("dog", 0.3001))
    assert not is_right(asked, seen("dog", 0.3))
    assert not is_right(asked, seen("cat"))
    assert judge(asked, []).reasons == ("expected 1 dog, found 0",)


def test_more_than_asked_is_right_where_nothing_is_excluded() -> None:
    asked = metadata("single_object", needs("dog"))
    assert is_right(asked, seen("dog"), seen("dog"), seen("cat"))


def test_of_two_objects_both_are_needed() -> None:
    asked = metadata("two_object", needs("dog"), needs("cat"))
    assert is_right(asked, seen("cat", 0.31), seen("dog", 0.31))
    assert not is_right(asked, seen("dog"), seen("dog"))
    assert judge(asked, []).reasons == ("expected 1 dog, found 0", "expected 1 cat, found 0")


def test_counting_is_exact_among_detections_above_nine_tenths() -> None:
    asked = metadata("counting", needs("dog", 2), exclude=[needs("dog", 3)])
    sure, unsure = seen("dog", 0.91), seen("dog", 0.9)
    assert is_right(asked, sure, sure)
    assert is_right(asked, sure, unsure, sure)
    assert not is_right(asked, sure, unsure)
    too_many = judge(asked, [sure] * 3)
    assert too_many.reasons == ("expected fewer than 3 dog, found 3",)


def test_boxes_that_overlap_wholly_are_all_counted() -> None:
    asked = metadata("counting", needs("dog", 3), exclude=[needs("dog", 4)])
    assert is_right(asked, *[Detection("dog", 0.95, BOX)] * 3)


def test_of_a_class_the_best_sixteen_count() -> None:
    asked = metadata("counting", needs("dog", 1), exclude=[needs("dog", 17)])
    assert is_right(asked, *[seen("dog")] * 17, *[seen("cat")] * 17)
    sixteen = metadata("counting", needs("dog", 1), exclude=[needs("dog", 16)])
    assert not is_right(sixteen, *[seen("dog")] * 17)
    assert not is_right(metadata("counting", needs("dog", 17)), *[seen("dog")] * 17)


def test_another_class_can_be_excluded() -> None:
    asked = metadata("single_object", needs("dog"), exclude=[needs("cat", 1)])
    assert is_right(asked, seen("dog"))
    assert not is_right(asked, seen("dog"), seen("cat"))


def test_the_color_is_that_of_the_surest_object() -> None:
    asked = metadata("colors", needs("car", color="red"))
    red, blue = seen("car", 0.8, "red"), seen("car", 0.9, "blue")
    assert is_right(asked, red)
    assert not is_right(asked, red, blue)
    assert is_right(asked, seen("car", 0.95, "red"), blue)
    assert judge(asked, [red, blue]).reasons == ("expected 1 red car, found blue",)


def test_the_color_of_another_class_does_not_help() -> None:
    asked = metadata("colors", needs("car", color="red"))
    assert not is_right(asked, seen("car", 0.9, "blue"), seen("dog", 0.95, "red"))


def test_all_objects_that_are_taken_must_have_the_color() -> None:
    asked = metadata("colors", needs("car", 2, color="red"))
    red, blue = seen("car", 0.9, "red"), seen("car", 0.8, "blue")
    assert is_right(asked, red, red, blue)
    assert not is_right(asked, red, blue)


def test_a_color_is_looked_for_only_where_it_matters() -> None:
    def fail() -> str:
        raise AssertionError("not needed")

    lazy = Detection("car", 0.5, BOX, fail)
    assert is_right(metadata("single_object", needs("car")), lazy)
    best = Detection("car", 0.9, BOX, lambda: "red")
    assert is_right(metadata("colors", needs("car", color="red")), lazy, best)


def test_swapped_colors_are_wrong() -> None:
    asked = metadata("color_attr", needs("car", color="red"), needs("dog", color="blue"))
    assert is_right(asked, seen("car", color="red"), seen("dog", color="blue"))
    swapped = judge(asked, [seen("car", color="blue"), seen("dog", color="red")])
    assert swapped.reasons == ("expected 1 red car, found blue", "expected 1 blue dog, found red")


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),
        (0, 30, {"below"}),
        (-30, -30, {"left of", "above"}),  # (30 - 2) / 42.4 = 0.66 on both axes
        (30, 30, {"right of", "below"}),
        (30, -15, {"right of"}),  # (15 - 2) / 33.5 = 0.39
        (2, 2, set()),  # 2 of 20 pixels are shrunk away
        (6, 6, set()),  # (6 - 2) / 8.49 = 0.47
        (7, 7, {"right of", "below"}),  # (7 - 2) / 9.90 = 0.505
        (4, 0, set()),  # (4 - 2) / 4 = 0.5, not above it
        (4.1, 0, {"right of"}),
        (0, 0, set()),
    ],
)
def test_relations_are_of_centers_less_a_tenth_of_the_sides(
    x: float, y: float, expected: set[str]
) -> None:
    assert relations(seen("dog", x=x, y=y).box, seen("cat").box) == expected


def test_wide_boxes_shrink_the_offset_along_their_long_sides_alone() -> None:
    other = (0.0, 0.0, 100.0, 10.0)
    assert relations((20, 0, 120, 10), other) == set()
    assert relations((0, 20, 100, 30), other) == {"below"}


def test_the_relation_is_that_of_the_second_object_to_the_first() -> None:
    asked = metadata("position", needs("cat"), needs("dog", position=("left of", 0)))
    assert is_right(asked, seen("cat", x=50), seen("dog", x=10))
    wrong = judge(asked, [seen("cat", x=10), seen("dog", x=50)])
    assert wrong.reasons == ("expected dog left of cat, found it right of it",)
    assert not is_right(asked, seen("cat", x=50), seen("dog", x=50))


def test_the_relation_is_that_of_the_surest_objects() -> None:
    asked = metadata("position", needs("cat"), needs("dog", position=("left of", 0)))
    sure, unsure = seen("dog", 0.9, x=90), seen("dog", 0.8, x=10)
    assert not is_right(asked, seen("cat", x=50), unsure, sure)


@pytest.mark.parametrize("odd", ["cat", "dog"])
def test_all_objects_stand_so_to_all_others(odd: str) -> None:
    asked = metadata("position", needs("cat", 2), needs("dog", 2, position=("left of", 0)))
    cats, dogs = [seen("cat", x=60), seen("cat", x=90)], [seen("dog", x=0), seen("dog", x=30)]
    assert is_right(asked, *cats, *dogs)
    moved = seen(odd, x=15 if odd == "cat" else 75)
    assert not is_right(
        asked, *(cats[:1] if odd == "cat" else cats), *dogs[: 2 - (odd == "dog")], moved
    )


def test_there_is_no_relation_to_a_missing_or_wrong_object() -> None:
    asked = metadata("position", needs("cat", color="red"), needs("dog", position=("left of", 0)))
    dog = seen("dog", x=10)
    assert is_right(asked, dog, seen("cat", color="red", x=50))
    for others in ([], [seen("cat", color="blue", x=50)]):
        reasons = judge(asked, [dog, *others]).reasons
        assert reasons[1] == "expected dog left of something that is itself missing or wrong"


def test_the_published_prompts_are_read() -> None:
    """The 80 single objects are all classes; the counts are those of the set's README."""
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is not there")
    lines = read_metadata(PUBLISHED)
    counts = {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert Counter(line.tag for line in lines) == counts
    singles = {line.include[0].name for line in lines if line.tag == "single_object"}
    assert singles == set(CLASSES)
    assert len(CLASSES) == 80
    used = {need.color for line in lines for need in line.include} - {None}
    assert used == set(COLORS)


GOOD = {"tag": "single_object", "include": [needs("dog")], "prompt": "a photo of a dog"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "size"}, r"tag: Input should be 'single_object'"),
        ({"include": [needs("unicorn")]}, "unknown class 'unicorn'; the detector tells person, "),
        ({"exclude": [needs("unicorn")]}, "unknown class 'unicorn'"),
        ({"include": [needs("dog", color="teal")]}, "unknown color 'teal'"),
        ({"include": [needs("dog", 0)]}, r"include\.0\.count"),
        ({"include": []}, "include"),
        ({"include": [needs("dog", position=["near", 0])]}, r"include\.0\.position\.0"),
        ({"include": [needs("dog", position=["above", 0])]}, "not an earlier one"),
        ({"include": [needs("cat"), needs("dog", position=["above", -1])]}, "not an earlier one"),
        ({"size": 3}, "size: Extra inputs"),
        ({"prompt": "again"}, "occurs twice"),
    ],
)
def test_what_is_no_metadata_is_refused_by_file_and_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{**GOOD, "prompt": "again"}, {**GOOD, **change}]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=rf"prompts\.jsonl:2: .*{message}"):
        read_metadata(path)


def test_a_file_without_prompts_or_without_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="no prompts in it"):
        read_metadata(path)
    path.write_text("a dog\n")
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: line: Invalid JSON"):
        read_metadata(path)


def verdicts(tag: str, *rights: str) -> list[Verdict]:
    """Of a prompt for each text: "101" is a prompt with three pictures, of which two are right."""
    return [
        Verdict(
            Metadata.model_validate({**GOOD, "tag": tag, "prompt": f"{tag} {number}"}),
            () if right == "1" else ("wrong",),
        )
        for number, text in enumerate(rights)
        for right in text
    ]


def test_the_overall_score_is_the_mean_of_six_tasks_and_not_of_pictures() -> None:
    results = [*verdicts("counting", "1111", "1111", "1100")]
    for tag in set(TASKS) - {"counting"}:
        results += verdicts(tag, "0")
    scores = summarize(results)
    assert scores.tasks["counting"].value == pytest.approx(10 / 12)
    assert scores.overall is not None
    assert scores.overall.value == pytest.approx(10 / 12 / 6)
    assert (scores.num_images, scores.num_prompts) == (17, 8)
    assert list(scores.tasks) == list(TASKS)


def test_without_one_of_the_tasks_there_is_no_overall_score() -> None:
    scores = summarize(verdicts("colors", "10", "11"))
    assert (scores.overall, set(scores.tasks)) == (None, {"colors"})
    with pytest.raises(ValueError, match="no pictures"):
        summarize([])


def test_the_pictures_of_a_prompt_are_drawn_together() -> None:
    """Four equal pictures a prompt tell no more than one: the binomial's width of 100 prompts."""
    once = summarize(verdicts("colors", *["1", "0"] * 50)).tasks["colors"].interval
    four = summarize(verdicts("colors", *["1111", "0000"] * 50)).tasks["colors"].interval
    assert np.allclose(once, four)
    assert np.allclose(four, (0.5 - 0.098, 0.5 + 0.098), atol=0.015)
    apart = summarize(verdicts("colors", *["1", "0"] * 200)).tasks["colors"].interval
    assert apart[1] - apart[0] < 0.6 * (four[1] - four[0])


def test_the_overall_interval_is_that_of_a_mean_of_independent_tasks() -> None:
    results = [verdict for tag in TASKS for verdict in verdicts(tag, *["1", "0"] * 50)]
    overall = summarize(results).overall
    assert overall is not None
    assert np.allclose(overall.interval, (0.5 - 0.04, 0.5 + 0.04), atol=0.006)
    assert summarize(results) == summarize(results)
