"""Proves that scores come back from their files, and how tables show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i.evaluation.metric import Score, Scores, Weights
from t2i.evaluation.score_files import (
    format_score,
    format_table,
    read_scores,
    score_file,
    write_scores,
)

SHARE = Score("scene", 0.5, 0.25, 0.75, 8, "pictures", "higher", is_share=True)
NUMBER = Score("fid", 12.345, 11.0, 13.5, 50, "pictures", "lower")
NOTHING = Score("place", None, None, None, 0, "objects", "higher", is_share=True)


def test_scores_come_back(tmp_path: Path) -> None:
    scores = Scores([SHARE, NOTHING], {"scene": [0.0, 1.0]}, {"truth": [SHARE]}, ["a note"])
    path = score_file(tmp_path, "shapes")
    write_scores(path, scores, [Weights("VAE", "abc", False)], {"metric": "shapes"})
    found, facts = read_scores(path)
    assert found == scores
    assert facts["metric"] == "shapes"
    assert facts["weights"] == [{"network": "VAE", "hash": "abc", "is_published": False}]
    assert score_file(Path("a/batch.npz"), "adm") == Path("a/batch.npz.scores/adm.json")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="evaluate shapes FOLDER"):
        read_scores(tmp_path / "shapes.json")
    (tmp_path / "shapes.json").write_text('{"scores": []}')
    with pytest.raises(ValueError, match=r"shapes\.json: no file of scores"):
        read_scores(tmp_path / "shapes.json")


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (SHARE, "50.0 (25-75)"),
        (NUMBER, "12.35 (11 to 13.5)"),
        (Score("fid", 12.0, None, None, 50, "pictures", "lower"), "12"),
        (NOTHING, "-"),
        (None, "-"),
    ],
)
def test_a_score_as_text(score: Score | None, text: str) -> None:
    assert format_score(score) == text


def test_a_table_has_a_row_per_score_and_counts_at_its_end() -> None:
    table = format_table({"cfg": [SHARE, NOTHING], "sg": [SHARE]}).splitlines()
    assert [line.split()[0] for line in table] == ["cfg", "scene", "place", "pictures", "objects"]
    assert table[2].split() == ["place", "-", "-"]
    assert table[3].split() == ["pictures", "8", "8"]
    assert len({len(line) for line in table}) == 1
