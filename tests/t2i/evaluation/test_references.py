"""Proves that statistics of a reference too large to hold are those of all its rows, on one process and
on two, that they are remembered, and that its rows are spread over all of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from t2i.evaluate import main
from t2i.evaluation.context import Context
from t2i.evaluation.metric import Scores, Weights
from t2i.evaluation.picture_sets import Picture
from t2i.evaluation.references import Reference
from t2i.evaluation.score_files import read_scores, score_file


class TwoNumbers:
    """Mean and spread of each picture; counts how many it has seen."""

    rows_name = "two numbers"
    weights = (Weights("a network", "abc", True),)

    def __init__(self) -> None:
        self.num_seen = 0

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        self.num_seen += len(pictures)
        pixels = [torch.from_numpy(picture.pixels_HW3.astype(np.float32)) for picture in pictures]
        return {"both": torch.stack([torch.stack((x.mean(), x.std())) for x in pixels])}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        raise NotImplementedError


def test_streamed_statistics_are_those_of_all_rows(
    tmp_path: Path, context: Context, write_set: Callable[..., Path]
) -> None:
    folder = str(write_set(tmp_path / "set", 0, per_prompt=7))
    context = replace(context, cache=tmp_path / "cache")
    whole = Reference(folder, TwoNumbers(), context, ("both",))
    expected = whole.statistics("both")
    scorer = TwoNumbers()
    streamed = Reference(folder, scorer, context, ("both",), max_rows=5)
    found = streamed.statistics("both")
    assert scorer.num_seen == 14
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found.mean_D, expected.mean_D, rtol=1e-12)
    np.testing.assert_allclose(found.covariance_DD, expected.covariance_DD, rtol=1e-9)
    again = Reference(folder, scorer, context, ("both",), max_rows=5).statistics("both")
    assert scorer.num_seen == 14, "they are remembered"
    assert again is not None
    np.testing.assert_array_equal(again.covariance_DD, found.covariance_DD)
    assert streamed.rows is not None
    assert streamed.rows["indices"].tolist() == [0, 2, 5, 8, 11]
    assert whole.rows is not None
    assert torch.equal(streamed.rows["both"], whole.rows["both"][[0, 2, 5, 8, 11]])


@pytest.mark.slow
def test_two_processes_sum_up_like_one(
    tmp_path: Path,
    write_set: Callable[..., Path],
    accelerate_two: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Inception at random weights; the reference's five pictures count as too many to hold."""
    samples = write_set(tmp_path / "samples", 0, prompts=("a",), per_prompt=4)
    reference = write_set(tmp_path / "reference", 1, prompts=("a",), per_prompt=5)
    arguments = ["adm", str(samples), "--reference", str(reference), "--random-weights", "0"]
    arguments += ["--draws", "0", "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--cache", str(tmp_path / "another")]) == 0
    one = {score.name: score.value for score in read_scores(score_file(samples, "adm"))[0].scores}
    done = accelerate_two("t2i.evaluate", *arguments, "--reference-rows", "4")
    assert done.returncode == 0, done.stderr
    two = {score.name: score.value for score in read_scores(score_file(samples, "adm"))[0].scores}
    for name in ("fid", "sfid", "inception_score"):
        assert one[name] == pytest.approx(two[name], rel=1e-4)
