"""Proves the parts of the report page that compute; the page as a whole is held end to end."""

import base64
import io
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from launch.evidence.claims import CLAIMS, Finding
from launch.report import (
    TEMPLATE,
    SampledModel,
    loss_curves,
    sample_models,
    score_rows,
    smoothed,
    timings,
)
from t2i.evaluation.metric import Score, Scores
from t2i.evaluation.score_files import score_file, write_scores
from t2i.evaluation.shapes_eval import SCORES
from t2i.html import image_uri, render_page
from t2i.sampling.image_folder import ImageFolder, plan_images
from t2i.sampling.prompts import builtin_prompts
from t2i.shapes import detect, parse_caption
from tests.chromium import WIDTH, look_at


def test_smoothing_halves_a_jump_in_its_half_life() -> None:
    values = smoothed([0.0] + [1.0] * 4, half_life=4)
    assert values[0] == 0
    assert values[4] == pytest.approx(0.5)


def write_samples(folder: Path, prompts: list[str], scores: Scores | None = None) -> None:
    jobs = plan_images(prompts, 1, first_seed=0, settings={})
    for job in jobs:
        ImageFolder(folder).write(job, Image.new("RGB", (128, 128)))
    ImageFolder(folder).finish(jobs)
    if scores:
        write_scores(score_file(folder, "shapes"), scores, [], {})


def a_score(value: float | None) -> Score:
    interval = (None, None) if value is None else (0.0, 0.79)
    return Score("color", value, *interval, 1, "objects", "higher", is_share=True)


def test_samples_stand_beside_the_truth_unguided_first(tmp_path: Path) -> None:
    prompts = builtin_prompts(3)
    for guidance in ("cfg", "none", "sg"):
        write_samples(tmp_path / "nano" / guidance, prompts)
    (model,) = sample_models(tmp_path, {"nano": "a note", "other": "no such model"})
    assert (model.name, model.note) == ("nano", "a note")
    assert model.columns == ["truth", "none", "cfg", "sg"]
    for (prompt, images), wanted in zip(model.rows, prompts, strict=True):
        assert prompt == wanted
        assert detect(picture(images[0])) == parse_caption(prompt)
        assert [picture(image).getextrema() for image in images[1:]] == [((0, 0),) * 3] * 3


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_scores_end_with_each_ceiling_once(tmp_path: Path) -> None:
    scores = Scores([a_score(0.25)], truth={"rendered": [a_score(1.0)]})
    for model in ("demo", "nano"):
        for guidance in ("sg", "none"):
            write_samples(tmp_path / model / guidance, builtin_prompts(1), scores)
    rows = score_rows(tmp_path)
    assert [name for name, _ in rows] == [
        *("demo, none", "demo, sg", "nano, none", "nano, sg"),
        "rendered",
    ]
    assert [row["color"].value for _, row in rows] == [0.25] * 4 + [1.0]


def make_page(picture: str) -> str:
    scores = {name: a_score(None if name == "size" else 0.0) for name in SCORES}
    prompts = [("a <circle> " * 20, [picture] * 4)]
    return render_page(
        TEMPLATE,
        title="<script>",
        funnel=[["download", 5, 4, 0, 1, "dead: <1>"]],
        caption_examples=[(picture, ["a <b> " * 20, "c"])],
        caption_accuracy=[["detailed", "97.0 %"]],
        num_captioned_objects=12,
        loss_curves=picture,
        models=[SampledModel("demo", "rough & ready", ["truth", "a", "b", "c"], prompts)],
        score_names=SCORES,
        scores=[("demo, none", scores)],
        evidence=[(CLAIMS[0], Finding("0.1 < 0.2", "seen"))],
        timings=[{"step": name, "seconds": 1.25, "command": "run <x>"} for name in "ab"],
    )


def test_the_page_shows_and_escapes_its_parts() -> None:
    page = make_page("data:image/png;base64,AAAA")
    assert "<script>" not in page
    for part in (
        "&lt;script&gt;",
        "dead: &lt;1&gt;",
        "1. a &lt;b&gt;",
        "of 12",
        "rough &amp; ready",
        "0.1 &lt; 0.2",
        CLAIMS[0].text,
    ):
        assert part in page
    for part in ("a &lt;circle&gt;", "color at place", "<td>2.5</td>"):
        assert part in page
    assert page.count("data:image/png;base64,AAAA") == 1 + 1 + 4
    assert re.search(r"<td>0\.0\s*<small>0-79</small></td>", page)  # colour, of one object
    assert "<td>-</td>" in page  # size, of no object


@pytest.mark.slow
def test_a_phone_shows_the_page(tmp_path: Path) -> None:
    seen = look_at(make_page(image_uri(Image.new("RGB", (1000, 600), "red"))), tmp_path)
    assert (seen.errors, seen.images, seen.broken) == ([], 6, 0)
    assert seen.width <= WIDTH


def test_loss_curves_are_drawn_from_the_metrics(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"step": 5})]))
    assert picture(loss_curves([str(tmp_path)])).width > 800


def test_timings_are_in_the_order_of_the_steps(tmp_path: Path) -> None:
    for when, name in enumerate(("two", "one")):
        record = {"step": name, "seconds": 2.0, "command": f"run {name}"}
        (tmp_path / name).write_text(json.dumps(record))
        os.utime(tmp_path / name, (when, when))
    assert [record["step"] for record in timings(tmp_path)] == ["two", "one"]
