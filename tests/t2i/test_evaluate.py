"""Proves the command that scores folders: which images, what it prints and writes, what it refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.evaluate import main
from t2i.evaluation.score_files import read_scores, score_file
from t2i.evaluation.shapes_eval import SCORES
from t2i.sampling.image_folder import ImageFolder, plan_images
from t2i.shapes import Scene, SceneObject, captions, render

RED_CIRCLE = SceneObject("circle", "red", "large", "top left")
BLUE_SQUARE = SceneObject("square", "blue", "small", "center")
GREEN_CROSS = SceneObject("cross", "green", "large", "bottom right")


def draw(*objects: SceneObject) -> Image.Image:
    return render(Scene(objects, "plain", "gray"), np.random.default_rng(0))


def prompt(*objects: SceneObject, level: int = 0) -> str:
    return captions(Scene(objects, "plain", "gray"))[level]


def test_the_command_scores_the_images_of_the_last_finished_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ImageFolder(tmp_path)
    for item in (BLUE_SQUARE, RED_CIRCLE):
        jobs = plan_images(
            [prompt(RED_CIRCLE, level=2)], 1, first_seed=len(item.color), settings={}
        )
        folder.write(jobs[0], draw(item))
        folder.finish(jobs)
    assert len(list(tmp_path.glob("0*.png"))) == 2
    assert main(["shapes", str(tmp_path)]) == 0
    scores, facts = read_scores(score_file(tmp_path, "shapes"))
    assert {score.name: score.value for score in scores.scores}["color_and_shape"] == 1
    assert (facts["metric"], facts["weights"]) == ("shapes", [])
    assert re.search(r"^color_and_shape +100\.0 \(21-100\)$", capsys.readouterr().out, re.MULTILINE)


def test_a_folder_without_a_finished_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nor a finished set of samples \(images\.jsonl\)"):
        main(["shapes", str(tmp_path)])


def write(folder: Path, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[Path]:
    """A finished set of samples; its files."""
    jobs = plan_images(prompts, 1, first_seed=0, settings={})
    for job, image in zip(jobs, images, strict=True):
        ImageFolder(folder).write(job, image)
    ImageFolder(folder).finish(jobs)
    return [folder / job.name for job in jobs]


@pytest.mark.parametrize("num_bytes", [0, 40, 200])
def test_a_cut_picture_is_named(tmp_path: Path, num_bytes: int) -> None:
    (path,) = write(tmp_path, [prompt(RED_CIRCLE)], [draw(RED_CIRCLE)])
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(
        ValueError, match=rf"{path.name}: is no whole picture .* --odd-pictures skip"
    ):
        main(["shapes", str(tmp_path)])


def test_the_ceiling_scores_the_true_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gray = Image.new("RGB", (128, 128), "gray")
    prompts = [prompt(RED_CIRCLE, BLUE_SQUARE), prompt(GREEN_CROSS)]
    write(tmp_path / "none", prompts, [gray, gray])
    write(tmp_path / "sg", prompts[:1], [draw(RED_CIRCLE, BLUE_SQUARE)])
    assert main(["shapes", str(tmp_path / "none"), str(tmp_path / "sg"), "--ceiling"]) == 0
    table = capsys.readouterr().out
    assert re.match(r" +none +sg +rendered +rendered, through the VAE\n", table)
    scores, _ = read_scores(score_file(tmp_path / "none", "shapes"))
    assert {score.name: score.value for score in scores.scores}["place"] == 0
    assert list(scores.truth) == ["rendered", "rendered, through the VAE"]
    for ceiling in scores.truth.values():
        assert [(score.name, score.value) for score in ceiling] == [(name, 1) for name in SCORES]


def test_the_ceiling_refuses_prompts_that_tell_less_than_a_scene(tmp_path: Path) -> None:
    write(tmp_path, [prompt(RED_CIRCLE, level=1)], [draw(RED_CIRCLE)])
    with pytest.raises(ValueError, match="does not tell a whole scene"):
        main(["shapes", str(tmp_path), "--ceiling"])


def test_the_help_explains_every_score(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["shapes", "--help"])
    shown = capsys.readouterr().out
    assert [
        name for name in SCORES if not re.search(rf"^  .*\b{name}\b", shown, re.MULTILINE)
    ] == []
