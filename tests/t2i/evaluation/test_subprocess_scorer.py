"""Proves that a scorer in another process may die, hang or babble: it is started again, a row that ends
it twice is given up and named, and one that never works ends the job. Real processes, real pipes."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from t2i.console import get_logger
from t2i.evaluation.subprocess_scorer import SubprocessScorer

SCRIPT = """
import json, os, sys, time
log = open(sys.argv[1], "a")
print("start", file=log, flush=True)
print(json.dumps({"ready": "test", "weights": "abc"}), flush=True)
for line in sys.stdin:
    row = json.loads(line)
    word = row["prompt"]
    if word == "die" or (word == "die once" and open(sys.argv[1]).read().count("start") == 1):
        os._exit(3)
    if word == "hang":
        time.sleep(60)
    if word == "babble":
        print("Loading checkpoint shards", flush=True)
    elif word == "unable":
        print(json.dumps({"error": "too wide"}), flush=True)
    else:
        print(json.dumps({"score": len(row["image"])}), flush=True)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "scorer.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "scorer.py"), str(tmp_path / "log")]


def starts(command: list[str]) -> int:
    return Path(command[-1]).read_text().count("start")


def test_a_scorer_answers_row_by_row(command: list[str]) -> None:
    with SubprocessScorer(command) as scorer:
        assert (scorer.name, scorer.weights) == ("test", "abc")
        assert [scorer.score(image, "x") for image in ("a", "bcd")] == [1, 3]
        process = scorer.process
    assert process.poll() is not None
    assert starts(command) == 1


@pytest.mark.parametrize(
    ("word", "starts_expected", "reason"),
    [
        ("die", 3, "it ended the scorer 2 times (it ended with code 3)"),
        ("hang", 3, "it ended the scorer 2 times (it said nothing for 0.5 seconds)"),
        ("babble", 3, "it ended the scorer 2 times (it said 'Loading checkpoint shards'"),
        ("unable", 1, "too wide"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(
    word: str,
    starts_expected: int,
    reason: str,
    command: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(get_logger("evaluate").parent, "propagate", True)
    with caplog.at_level(logging.ERROR), SubprocessScorer(command, row_seconds=0.5) as scorer:
        assert scorer.score("good.png", "x") == 8
        assert scorer.score("bad.png", word) is None
        assert scorer.score("good.png", "x") == 8
    assert f"bad.png has no score: {reason}" in caplog.text
    assert starts(command) == starts_expected


def test_a_death_that_was_chance_costs_no_row(command: list[str]) -> None:
    with SubprocessScorer(command) as scorer:
        assert scorer.score("good.png", "die once") == 8
    assert starts(command) == 2


def test_row_after_row_without_a_score_ends_the_job(command: list[str]) -> None:
    with SubprocessScorer(command) as scorer:
        for _ in range(4):
            assert scorer.score("bad.png", "unable") is None
        with pytest.raises(
            ValueError, match="5 pictures in a row have no score, the last one: too"
        ):
            scorer.score("bad.png", "unable")


@pytest.mark.parametrize("line", ["import nothing_like_this", "print('hello')", "input()"])
def test_a_scorer_that_does_not_get_ready_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="did not get ready"):
        SubprocessScorer([sys.executable, "-c", line], start_seconds=1)
    with pytest.raises(ValueError, match="cannot be run"):
        SubprocessScorer(["/no/such/python"])
