"""Proves that rows are made once for the same pictures and networks, and made anew when either changes,
and that several processes make what one makes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from t2i.evaluation.context import Context
from t2i.evaluation.metric import Score, Scores, Weights
from t2i.evaluation.picture_sets import Picture, open_set
from t2i.evaluation.score_files import read_scores, score_file
from t2i.evaluation.scoring import rows_of, score_set


class MeanScorer:
    """The mean of each picture; counts how many it has seen."""

    rows_name = "mean"

    def __init__(self, weights_hash: str = "a") -> None:
        self.weights = (Weights("a network", weights_hash, True),)
        self.num_seen = 0

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        self.num_seen += len(pictures)
        return {"mean": torch.tensor([float(p.pixels_HW3.mean()) for p in pictures])}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        mean = float(rows["mean"].mean())
        score = Score("mean", mean, None, None, len(rows["mean"]), "pictures", "higher")
        return Scores([score], notes=list(prompts or ()))


def test_rows_are_remembered_by_what_they_are_made_of(
    tmp_path: Path, context: Context, write_set: Callable[..., Path]
) -> None:
    folder = write_set(tmp_path / "set", 0)
    context = replace(context, cache=tmp_path / "cache")
    scorer = MeanScorer()
    first = rows_of(scorer, open_set(folder), context, "mean")
    again = rows_of(scorer, open_set(folder), context, "mean again")
    assert scorer.num_seen == 6
    assert first["indices"].tolist() == list(range(6))
    torch.testing.assert_close(first["mean"], again["mean"], rtol=0, atol=0)
    other = MeanScorer("other weights")
    rows_of(other, open_set(folder), context, "mean")
    assert other.num_seen == 6
    Image.new("RGB", (32, 32)).save(open_set(folder).files[3])
    changed = rows_of(scorer, open_set(folder), context, "mean")
    assert scorer.num_seen == 12
    assert changed["mean"][3] == 0


def test_skipped_pictures_leave_their_prompts_too(
    tmp_path: Path, context: Context, write_set: Callable[..., Path]
) -> None:
    pictures = open_set(write_set(tmp_path, 0, prompts=("a", "b", "c"), per_prompt=1))
    pictures.files[1].write_bytes(b"cut")
    found = score_set(MeanScorer(), pictures, replace(context, policy="skip"), "mean")
    assert found.notes == ["a", "c"]
    assert found.scores[0].num == 2


@pytest.mark.slow
def test_two_processes_score_like_one(
    tmp_path: Path,
    write_set: Callable[..., Path],
    accelerate_two: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """A set of five and a reference of three, so that the shares are not equal."""
    samples = write_set(tmp_path / "samples", 0, prompts=("a", "b", "c", "d", "e"), per_prompt=1)
    reference = write_set(tmp_path / "reference", 1, prompts=("a",), per_prompt=3)
    arguments = ["cmmd", str(samples), "--reference", str(reference), "--random-weights", "0"]
    arguments += ["--draws", "5", "--cache"]
    found = []
    for number in (0, 1):
        cache = str(tmp_path / f"cache{number}")
        if number:
            done = accelerate_two("t2i.evaluate", *arguments, cache)
        else:
            command = [sys.executable, "-m", "t2i.evaluate", *arguments, cache]
            done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("cmmd") == 1, "the first process alone speaks"
        assert ("2/2" in done.stderr) == (number == 1), "each has its share"
        found.append(read_scores(score_file(samples, "cmmd"))[0].scores[0])
    one, two = found
    assert one.value == pytest.approx(two.value, rel=1e-6)
    assert (one.low, one.high, one.num) == (pytest.approx(two.low), pytest.approx(two.high), 5)
