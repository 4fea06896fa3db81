"""Proves that tables come back from both kinds of files, with all that a number depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i.evaluation.metric import Score, Scores, Weights
from t2i.evaluation.results import read_results, result_rows, score_of, write_results

SCORE = Score("fid", 12.5, None, None, 50, "pictures", "lower")
WEIGHTS = [Weights("Inception", "abc", True), Weights("CLIP", "random-0", False)]


def test_rows_come_back(tmp_path: Path) -> None:
    rows = result_rows(
        {"run": "sg", "steps": 50}, "adm", Scores([SCORE], notes=["a", "b"]), WEIGHTS
    )
    more = result_rows({"run": "none"}, "adm", Scores([SCORE]), [])
    path = write_results(tmp_path, [*rows, *more])
    for source in (tmp_path, path, path.with_suffix(".json")):
        found = read_results([source])
        assert [row["run"] for row in found] == ["sg", "none"]
        assert score_of(found[0]) == SCORE
        assert found[0]["weights"] == "Inception:abc CLIP:random-0"
        assert [row["is_comparable"] for row in found] == [False, True]
        assert found[0]["notes"] == "a; b"
        assert (found[0]["steps"], found[1].get("steps")) == (50, None)
    assert len(read_results([tmp_path, path])) == 4


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.parquet: no results here"):
        read_results([tmp_path])
    for name in ("a.parquet", "b.json"):
        (tmp_path / name).write_text("[{}]" if name == "b.json" else "nothing")
        with pytest.raises(ValueError, match=f"{name}: no table of results"):
            read_results([tmp_path / name])
