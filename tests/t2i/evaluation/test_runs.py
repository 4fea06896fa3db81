"""Proves `evaluate run`: each method is made and scored once, a second call makes nothing, pictures that are
not kept score the same, and what cannot be is said before anything is made."""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from t2i import generation
from t2i.config import load_config
from t2i.evaluate import main
from t2i.evaluation.evaluation_config import EvaluationConfig
from t2i.evaluation.metrics.adm import AdmSettings
from t2i.evaluation.results import read_results
from t2i.evaluation.score_files import read_scores, score_file
from t2i.generation import Config, with_settings
from t2i.sampling.prompts import read_classes

CONFIG = """
base: {base}
root: {root}
t2i:
  sampling: {{checkpoint: {pipeline}, steps: 2, num_builtin_prompts: 3}}
  evaluation:
    chunk_size: 2
    methods:
      none: {{guidance: {{name: none}}}}
      cfg: {{guidance: {{name: cfg, omega: 2}}, sampling: {{steps: 1}}}}
    metrics:
      shapes: {{}}
      clip: {{random_weights: 0}}
"""
REPO = Path(__file__).resolve().parents[3]
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def config(tmp_path: Path, pipeline_folder: Path) -> Path:
    path = tmp_path / "config.yaml"
    base = REPO / "configs" / "nano.yaml"
    text = CONFIG.format(base=base, root=tmp_path / "out", pipeline=pipeline_folder)
    # the base's methods, but sg, are given anew
    path.write_text(text)
    return path


@pytest.fixture
def run(config: Path) -> Run:
    def start(*overrides: str) -> list[dict[str, Any]]:
        flags = [part for override in overrides for part in ("--set", override)]
        assert main(["run", "--config", str(config), *flags]) == 0
        return read_results([config.parent / "out" / "evaluation"])

    return start


def test_a_run_scores_every_method_and_is_done_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run()
    assert list(dict.fromkeys(row["run"] for row in rows)) == ["none", "cfg", "sg"]
    assert list(dict.fromkeys(row["metric"] for row in rows)) == ["shapes", "clip"]
    first = {row["run"]: row for row in rows}
    assert [first[name]["steps"] for name in ("none", "cfg", "sg")] == [2, 1, 2]
    assert (first["cfg"]["omega"], first["none"]["omega"]) == (2, None)
    # one step of two whole branches against two steps of one: what branches share is the embedding
    assert 1 <= first["none"]["flops_per_image"] / first["cfg"]["flops_per_image"] < 1.4
    assert all(row["seconds_per_image"] > 0 and row["num_images"] == 3 for row in rows)
    assert {row["is_comparable"] for row in rows if row["metric"] == "clip"} == {False}
    monkeypatch.setattr(generation, "make_images", lambda *_: pytest.fail("made again"))
    again = run()
    assert again == rows


def test_pictures_that_are_not_kept_score_the_same(run: Run, tmp_path: Path) -> None:
    kept = run()
    folder = tmp_path / "out" / "features"
    streamed = read_results_of(run, folder, "t2i.evaluation.keep=features")
    values = [
        [(row["run"], row["score_name"], row["value"]) for row in rows] for rows in (kept, streamed)
    ]
    assert [row[:2] for row in values[0]] == [row[:2] for row in values[1]]
    assert [row[2] for row in values[0]] == pytest.approx(
        [row[2] for row in values[1]], nan_ok=True
    )
    assert not list(folder.rglob("*.png"))
    chunks = sorted((folder / "cfg" / "features").iterdir())
    assert [path.name[:5] for path in chunks] == ["00000", "00001"]
    before = chunks[1].stat().st_mtime_ns
    chunks[0].unlink()
    read_results_of(run, folder, "t2i.evaluation.keep=features")
    after = sorted((folder / "cfg" / "features").iterdir())
    assert [path.name for path in after] == [path.name for path in chunks]
    assert after[1].stat().st_mtime_ns == before, "only the missing chunk is made"


@pytest.mark.slow
@pytest.mark.parametrize("keep", [pytest.param("pictures", marks=pytest.mark.long), "features"])
def test_two_processes_write_the_table_of_one(
    keep: str,
    run: Run,
    config: Path,
    tmp_path: Path,
    accelerate_two: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    folder, overrides = tmp_path / "two", [f"t2i.evaluation.keep={keep}"]
    alone = run(*overrides)
    overrides.append(f"t2i.evaluation.output={folder}")
    flags = [part for override in overrides for part in ("--set", override)]
    done = accelerate_two("t2i.evaluate", "run", "--config", str(config), *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shapes") == 1, "the first process alone speaks"
    asked = ("run", "score_name", "num", "checkpoint", "flops_per_image")
    for one, two in zip(alone, read_results([folder]), strict=True):
        assert [one[name] for name in asked] == [two[name] for name in asked]
        nothing = one["value"] is two["value"] is None
        assert nothing or one["value"] == pytest.approx(two["value"], rel=1e-3)


def read_results_of(run: Run, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    run(f"t2i.evaluation.output={folder}", *overrides)
    return read_results([folder])


def test_scores_lie_beside_the_pictures_too(run: Run, tmp_path: Path) -> None:
    rows = run()
    folder = tmp_path / "out" / "evaluation" / "cfg"
    scores, facts = read_scores(score_file(folder, "clip"))
    assert facts["settings"]["random_weights"] == 0
    (row,) = (row for row in rows if row["run"] == "cfg" and row["metric"] == "clip")
    assert scores.scores[0].value == pytest.approx(row["value"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("t2i.evaluation.metrics.fame={}", "metrics.fame: unknown; known: adm, aesthetic, clip"),
        ("t2i.evaluation.metrics.adm={}", "metrics.adm: --weights is missing"),
        ("t2i.evaluation.metrics.clip.weight=x", "--weight Extra inputs are not permitted"),
        ("t2i.evaluation.methods.cfg.guidance.name=x", "unknown guidance 'x'"),
        ("t2i.evaluation.classes=0-9", "shapes needs prompts, and classes have none"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    override: str, message: str, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(override)
    assert not (tmp_path / "out" / "evaluation").exists()


def test_the_protocol_of_the_documentation_can_be_read() -> None:
    text = (REPO / "docs" / "evaluation.md").read_text()
    (block,) = re.findall(r"^    t2i:\n(?:    .*\n)+", text, re.MULTILINE)
    tree = yaml.safe_load(textwrap.dedent(block))["t2i"]["evaluation"]
    evaluation = EvaluationConfig.model_validate(tree)
    base = load_config(REPO / "configs" / "imagenet_sit_xl2_tread.yaml", [], Config)
    (method,) = evaluation.methods.values()
    config = with_settings(base, method.preset, method.guidance, method.sampling)
    assert (config.sampling.images_per_prompt, config.sampling.steps) == (50, 40)
    assert len(read_classes(evaluation.classes or "")) == 1000
    (settings,) = evaluation.metrics.values()
    assert AdmSettings.model_validate(settings).draws == 20
