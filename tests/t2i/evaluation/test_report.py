"""Proves the page of results: which numbers are marked, what is compared in pairs, that text is escaped,
and that a phone shows all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2i.evaluation.metric import Score, Scores, Weights
from t2i.evaluation.report import line, make_report, with_distinct_runs
from t2i.evaluation.results import result_rows
from t2i.evaluation.score_files import score_file, write_scores
from tests.chromium import WIDTH, look_at

GUIDANCE = {"none": 1.0, "<cfg>": 2.0, "sg": 1.5}


@pytest.fixture
def rows(tmp_path: Path, write_set: Callable[..., Path]) -> list[dict[str, Any]]:
    """Three methods on the same prompts and seeds, two metrics, one of random weights."""
    found = []
    for number, (run, omega) in enumerate(GUIDANCE.items()):
        folder = write_set(tmp_path / run.strip("<>"), number)
        facts = {
            **{
                "run": run,
                "folder": str(folder),
                "checkpoint": "abc",
                "guidance": f"{run} {omega}",
            },
            **{"guidance_name": run, "omega": omega, "gamma_strong": None, "gamma_weak": None},
            **{"interval": "(0, 1)", "steps": 50, "solver": "euler", "size": "128x128"},
            **{"dtype": "float32", "num_images": 6, "flops_per_image": 1e9 * (number + 1)},
            **{"seconds_per_image": 0.1, "device": "cpu", "torch": "2", "commit": "d" * 40},
        }
        share = number / 2
        scene = Score("scene", share, share / 2, (1 + share) / 2, 6, "pictures", "higher", True)
        per_picture = {"scene": [float(place < 3 * number) for place in range(6)]}
        shapes = Scores([scene], per_picture, notes=["few <pictures>"])
        write_scores(score_file(folder, "shapes"), shapes, [], {})
        found += result_rows(facts, "shapes", shapes, [])
        fid = Scores([Score("fid", 30.0 - number, None, None, 6, "pictures", "lower")])
        write_scores(score_file(folder, "adm"), fid, [], {})
        found += result_rows(facts, "adm", fid, [Weights("Inception", "random-0", False)])
    return found


def test_the_best_of_a_row_is_marked(rows: list[dict[str, Any]]) -> None:
    own = [row for row in rows if row["score_name"] == "scene"]
    found = line("scene", [*own, None])
    assert [cell.best for cell in found.cells] == [False, False, True, False]
    assert [cell.value for cell in found.cells] == ["0.0", "50.0", "100.0", "-"]
    assert found.cells[1].interval == "25-75"
    lower = line("fid", [row for row in rows if row["score_name"] == "fid"])
    assert [cell.best for cell in lower.cells] == [False, False, True]


def test_the_page(rows: list[dict[str, Any]]) -> None:
    page = make_report(rows, "A <title>")
    for text in ("A &lt;title&gt;", "&lt;cfg&gt;", "few &lt;pictures&gt;", "Inception:random-0"):
        assert text in page
    assert "<cfg>" not in page
    assert page.count("These numbers do not compare with published ones") == 1
    # scene of 0, 3 and 6 of 6 pictures, all of a prompt alike
    assert "scene: &lt;cfg&gt; +0.5 (+0 to +1)" in page
    assert "scene: sg +1 (+1 to +1)" in page
    assert page.count("<img") == 2 * 3 + 4, "two prompts of three methods; two costs of two metrics"


def test_runs_of_one_name_are_told_apart() -> None:
    rows = [{"run": "sg", "folder": folder} for folder in ("a/sg", "b/sg")]
    rows.append({"run": "none", "folder": "a/none"})
    assert [row["run"] for row in with_distinct_runs(rows)] == ["a/sg", "b/sg", "none"]


@pytest.mark.slow
def test_a_phone_shows_it(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    seen = look_at(make_report(rows, "Evaluation"), tmp_path)
    assert seen.errors == []
    assert (seen.images, seen.broken) == (10, 0)
    assert seen.width <= WIDTH
    assert seen.text > 500
