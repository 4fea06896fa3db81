"""Proves the filter: the limit is strict, every image dropped has its reason, facts come from the
ledger or the samples alike, and the command keeps keys without copying pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.filter import FilterConfig, main, make_job, reason_to_drop
from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import run_job
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig

SCORES = [5.0, math.nextafter(5.0, 6), 4.9, 6.5, None]


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "aesthetic_score_laion_v2": 6.0,
        "watermark_score": 0.1,
        "nsfw_score_opennsfw2": 0.1,
        "image_width": 512,
        "image_height": 512,
        **changes,
    }


def make_images(url: str, in_ledger: bool) -> None:
    """Two shards of images with SCORES and one failed row, as a download leaves them."""
    for shard_id in ("00000", "00001"):
        with StepOutput.open(url).writer(shard_id) as writer:
            for number, score in enumerate(SCORES):
                key = f"{shard_id}{number:06d}"
                columns = {"aesthetic_score_laion_v2": score}
                parts = {"jpg": b"picture", "json": json.dumps(columns).encode()}
                row = Row(key, "ok", columns=columns if in_ledger else {})
                writer.add(Outcome(row, Sample(key, parts)))
            writer.add(Outcome(Row(f"{shard_id}000009", "failed", "http 404")))
            writer.commit()


@pytest.mark.parametrize("in_ledger", [True, False])
def test_only_scores_strictly_above_the_limit_are_kept(tmp_path: Path, in_ledger: bool) -> None:
    config = FilterConfig(input=str(tmp_path / "images"), output=str(tmp_path / "kept"))
    make_images(config.input, in_ledger)
    summary = run_job(make_job(config, StorageConfig()), JobsConfig())
    assert (summary.exit_code, summary.funnel.num_in, summary.funnel.num_ok) == (0, 10, 4)
    assert summary.funnel.reasons == {
        ("filtered", "aesthetic<=5"): 4,
        ("filtered", "no_score"): 2,
    }
    kept = StepOutput.open(config.output)
    assert kept.ok_keys("00001") == ["00001000001", "00001000003"]
    assert kept.rows("00000")["aesthetic"].to_pylist()[2:] == pytest.approx([4.9, 6.5, None])
    assert kept.storage.list("shards/") == []


def test_the_same_works_on_s3(s3_url: str, s3_config: StorageConfig) -> None:
    for in_ledger in (True, False):
        folder = f"{s3_url}/{in_ledger}"
        with StepOutput.open(f"{folder}/images", s3_config).writer("00000") as writer:
            score = {"aesthetic_score_laion_v2": 6.0}
            sample = Sample("a", {"json": json.dumps(score).encode()})
            writer.add(Outcome(Row("a", "ok", columns=score if in_ledger else {}), sample))
            writer.commit()
        config = FilterConfig(input=f"{folder}/images", output=f"{folder}/kept")
        assert run_job(make_job(config, s3_config), JobsConfig()).funnel.num_ok == 1


@pytest.mark.parametrize(
    ("limits", "changes", "reason"),
    [
        ({}, {}, ""),
        ({}, {"aesthetic_score_laion_v2": 5.0}, "aesthetic<=5"),
        ({"min_aesthetic": 5.25}, {"aesthetic_score_laion_v2": 5.25}, "aesthetic<=5.25"),
        ({}, {"aesthetic_score_laion_v2": None}, "no_score"),
        ({"unscored": "keep"}, {"aesthetic_score_laion_v2": None}, ""),
        ({"min_aesthetic": None}, {"aesthetic_score_laion_v2": None}, ""),
        ({"max_watermark": 0.5}, {"watermark_score": 0.5}, ""),
        ({"max_watermark": 0.5}, {"watermark_score": 0.51}, "watermark>0.5"),
        ({"max_watermark": 0.5}, {"watermark_score": None}, "no_watermark_score"),
        ({"max_nsfw": 0.2}, {"nsfw_score_opennsfw2": 0.3}, "nsfw>0.2"),
        ({"min_side": 256}, {"image_width": 255}, "side<256"),
        ({"min_side": 256}, {"image_height": 255}, "side<256"),
        ({"min_side": 256}, {"image_width": 256}, ""),
        ({"min_side": 256}, {"image_width": None}, "no_size"),
    ],
)
def test_each_limit_has_its_own_reason(
    limits: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    assert reason_to_drop(FilterConfig(**limits), facts(**changes)) == reason


@given(limit=st.floats(0, 10), score=st.floats(0, 10))
def test_kept_is_above_and_dropped_is_not(limit: float, score: float) -> None:
    config = FilterConfig(min_aesthetic=limit)
    kept = reason_to_drop(config, facts(aesthetic_score_laion_v2=score)) == ""
    assert kept == (score > limit)


def run_command_on(tmp_path: Path, *arguments: str) -> int:
    path = tmp_path / "config.yaml"
    limits = {"input": str(tmp_path / "images"), "output": str(tmp_path / "kept")}
    path.write_text(yaml.safe_dump({"data_pipeline": {"filter": limits}}))
    return main(["--config", str(path), *arguments])


def test_the_command_filters_resumes_and_refuses_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(str(tmp_path / "images"), in_ledger=True)
    for _ in range(2):
        assert run_command_on(tmp_path) == 0
        assert "kept 4 of 10 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"filter\.min_aesthetic was 5\.0, now 4\.5"):
        run_command_on(tmp_path, "--set", "data_pipeline.filter.min_aesthetic=4.5")


def test_an_input_without_shards_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_pipeline\.download"):
        run_command_on(tmp_path)
