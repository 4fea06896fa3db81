"""Proves the parts of the report page that compute; the page as a whole is held end to end."""

import json
from pathlib import Path

import pytest
from PIL import Image

from launch.report import (
    guidance_folders,
    loss_curves,
    sample_grids,
    score_table,
    smoothed,
    table,
    timing_table,
)
from t2i.sampling.image_folder import ImageFolder, plan_images


def test_smoothing_halves_a_jump_in_its_half_life() -> None:
    values = smoothed([0.0] + [1.0] * 4, half_life=4)
    assert values[0] == 0
    assert values[4] == pytest.approx(0.5)


def test_tables_escape_what_they_show() -> None:
    assert "&lt;script&gt;" in table(["a"], [["<script>"]])


def test_samples_are_shown_with_their_prompts_unguided_first(tmp_path: Path) -> None:
    for guidance in ("cfg", "none", "sg"):
        folder = tmp_path / "nano" / guidance
        jobs = plan_images(["a red <circle>"], 1, first_seed=0, settings={})
        ImageFolder(folder).write(jobs[0], Image.new("RGB", (8, 8)))
        ImageFolder(folder).finish(jobs)
        (folder / "scores.json").write_text(json.dumps({"color": 0.25}))
    assert [path.name for path in guidance_folders(tmp_path / "nano")] == ["none", "cfg", "sg"]
    page = sample_grids(tmp_path)
    assert page.count("<img") == 3
    assert "a red &lt;circle&gt;" in page
    assert score_table(tmp_path).count("0.25") == 3


def test_loss_curves_are_drawn_from_the_metrics(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"step": 5})]))
    assert loss_curves([str(tmp_path)]).startswith("<img")


def test_timings_add_up(tmp_path: Path) -> None:
    for name, seconds in (("one", 1.5), ("two", 2.0)):
        record = {"step": name, "seconds": seconds, "command": f"run {name}"}
        (tmp_path / name).write_text(json.dumps(record))
    assert "<td>3.5</td>" in timing_table(tmp_path)
