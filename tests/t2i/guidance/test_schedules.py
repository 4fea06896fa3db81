"""Schedules: values at chosen step fractions, the text form and its errors."""

import math

import pytest

from t2i.guidance.schedules import as_schedule


def test_a_number_is_constant() -> None:
    assert [as_schedule(1.8)(u) for u in (0, 0.3, 1)] == [1.8] * 3
    assert as_schedule("1.8") == as_schedule(1.8)


def test_linear_goes_straight() -> None:
    schedule = as_schedule("linear:1:3")
    assert [schedule(u) for u in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 3]


def test_cosine_is_the_papers_schedule_with_mean_0_3() -> None:
    weak, strong = as_schedule("cosine:0.6:0"), as_schedule("cosine:0:0.6")
    fractions = [i / 39 for i in range(40)]
    for u in fractions:
        assert weak(u) == pytest.approx(0.3 * (1 + math.cos(math.pi * u)))
        assert strong(u) == pytest.approx(0.6 - weak(u))
    assert sum(map(weak, fractions)) / 40 == pytest.approx(0.3)


def test_piecewise_holds_its_value_until_the_next_point() -> None:
    schedule = as_schedule("piecewise:0=1:0.3=2.5:0.8=1.5")
    assert [schedule(u) for u in (0, 0.29, 0.3, 0.79, 0.8, 1)] == [1, 1, 2.5, 2.5, 1.5, 1.5]


@pytest.mark.parametrize("text", ["0.5", "linear:0.6:0", "cosine:0:0.6", "piecewise:0=1:0.3=2.5"])
def test_the_text_form_reads_back(text: str) -> None:
    assert as_schedule(str(as_schedule(text))) == as_schedule(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "high", "linear:1", "sine:0:1", "linear:a:b"),
        *("linear:0.5=1:0.2=2", "linear:0=1:2=3"),
        *("nan", float("nan"), "linear:nan:1", "linear:inf:0", "linear:nan=1:1=2"),
    ],
)
def test_bad_text_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"schedule|fractions"):
        as_schedule(text)
