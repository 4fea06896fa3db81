"""Proves verdicts against made-up scores, the page against its stored tables, and the way from models to
a page in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.evidence import page, score, train
from launch.evidence.claims import CLAIMS, Tables, findings, judged
from launch.evidence.stored import Pictures, Stored, difference
from launch.evidence.study import Try, all_tries, main_rows, studies
from launch.evidence.twins import Twin
from t2i.evaluation.intervals import Interval
from t2i.evaluation.metric import Score
from t2i.guidance.methods import make_guidance
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.storage import save_transformer

ROOT = Path(__file__).resolve().parents[3]
BETTER = {"frechet": "lower", "saturation": None, "contrast": None}


def row(run: str, name: str, value: float, half: float = 0.01, **facts: Any) -> dict[str, Any]:
    """A row of a table of results."""
    method = run.partition(",")[0].partition("@")[2]
    settings = dict(part.split("=") for part in run.split(",")[1:] if "=" in part)
    return {
        **{"run": run, "metric": "made up", "score_name": name, "value": value},
        **{"low": value - half, "high": value + half, "num": 128, "unit": "prompts"},
        **{"better": BETTER.get(name, "higher"), "is_share": name == "scene"},
        **{"guidance_name": method, "flops_per_image": 1e9, "seconds_per_image": 0.1},
        **{key: number(settings.get(key)) for key in ("omega", "gamma_strong", "gamma_weak")},
        **facts,
    }


def number(text: str | None) -> float | None:
    """A setting that is one number over all steps."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def tables_of(family: str, values: dict[str, float], half: float = 0.01) -> Tables:
    """Every try scored; those of a row in ``values`` have its distance, all others 0.5."""
    rows = []
    for one in all_tries(family):
        distance = values.get(one.row, 0.5)
        rows += [
            row(one.name, "frechet", distance, half),
            row(one.name, "scene", 1 - distance, half),
        ]
        rows += [row(one.name, name, 0.3) for name in ("precision", "recall", "diversity")]
        rows += [row(one.name, name, 0.2) for name in ("saturation", "contrast", "shape", "place")]
    pictures = {
        (one["run"], "diversity"): Pictures([one["value"]] * 8, [0, 0, 1, 1, 2, 2, 3, 3])
        for one in rows
        if one["score_name"] == "diversity"
    }
    return Tables(Stored(rows), Stored(rows, pictures))


def verdicts(values: dict[str, float], half: float = 0.01) -> dict[str, str]:
    tables = {family: tables_of(family, values, half) for family in ("text", "classes")}
    return {claim.text: found.verdict for claim, found in findings(tables)}


def test_verdicts_follow_the_numbers() -> None:
    beaten = "SG beats CFG on a routed model"
    assert verdicts({"routed@sg": 0.1})[beaten] == "seen"
    assert verdicts({"routed@cfg": 0.1})[beaten] == "not seen"
    assert verdicts({"routed@sg": 0.495})[beaten] == "unclear at this size"
    assert verdicts({"routed@sg": 0.1}, half=0.5)[beaten] == "unclear at this size"
    helps_less = "CFG helps token-sparse models less than dense ones"
    assert verdicts({"dense@cfg": 0.1, "routed@cfg": 0.4})[helps_less] == "seen"
    assert verdicts({"dense@cfg": 0.4, "routed@cfg": 0.1})[helps_less] == "not seen"
    assert all(found == "no data yet" for found in {f.verdict for _, f in findings({})})


def test_a_cheaper_setting_counts_where_it_is_as_good() -> None:
    tables = tables_of("classes", {"dense@cfg": 0.2, "routed@sg": 0.2})
    for run in tables.validation.runs_of("routed@sg"):
        tables.validation.facts[run] = {**tables.validation.facts[run], "flops_per_image": 4e8}
    claim = next(claim for claim in CLAIMS if "at fewer FLOPs" in claim.text)
    found = claim.find(tables)
    assert found is not None
    assert found.verdict == "seen"
    assert "60 % fewer FLOPs than dense@cfg" in found.numbers


def test_a_difference_of_independent_scores_adds_their_widths_as_squares() -> None:
    one = Score("frechet", 3.0, 2.7, 3.3, 100, "pictures", "lower")
    other = Score("frechet", 1.0, 0.6, 1.4, 50, "pictures", "lower")
    found = difference(one, other)
    assert (found.value, found.low, found.high, found.num) == pytest.approx((2.0, 1.5, 2.5, 50))
    assert judged(Interval(1, 0.5, 1.5, 9), is_claimed_above=True) == "seen"
    assert judged(Interval(1, 0.5, 1.5, 9), is_claimed_above=False) == "not seen"
    assert judged(Interval(0, -0.5, 0.5, 9), is_claimed_above=False) == "unclear at this size"


@pytest.mark.parametrize("family", ["text", "classes"])
def test_every_try_is_a_method_with_a_name_of_its_own(family: str) -> None:
    tries = [*main_rows(family), *(one for own in studies(family).values() for one in own)]
    by_name: dict[str, Try] = {}
    for one in tries:
        settings = dict(one.settings)
        interval = settings.pop("interval", (0.0, 1.0))
        make_guidance(one.guidance, settings, interval)
        assert by_name.setdefault(one.name, one) == one
        assert "/" not in one.name
        assert ":" not in one.name
    assert {one.name for one in all_tries(family)} == by_name.keys()


def test_the_page_shows_stored_numbers_and_draws_them(tmp_path: Path) -> None:
    tables = {
        family: tables_of(family, {"routed@sg": 0.123, "routed@cfg": 0.25})
        for family in ("text", "classes")
    }
    parts = page.make_parts(tables, tmp_path)
    text = page.markdown(parts)
    best = tables["classes"].best("routed@sg", "frechet")
    line = next(line for line in text.splitlines() if line.startswith(f"| `{best}` |"))
    assert "0.123 (0.113 to 0.133)" in line
    assert "| Sparse Guidance, table 1 | SG beats CFG on a routed model | frechet 0.123" in text
    assert len(list(tmp_path.glob("*.png"))) >= 6
    html = page.as_html(parts)
    assert html.count("data:image/png;base64,") == len(list(tmp_path.glob("*.png")))
    assert "0.123 (0.113 to 0.133)" in html
    assert "None" not in text


def test_the_page_in_the_docs_is_that_of_the_stored_scores(tmp_path: Path) -> None:
    """Every number is derived again."""
    stored = ROOT / page.PAGE
    if not stored.is_file():
        pytest.skip("the study is not finished: there is no page yet")
    assert page.markdown(page.make_parts(page.read_tables(), tmp_path)) == stored.read_text()


@pytest.mark.slow
def test_models_are_scored_and_shown_in_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model of random weights is there: its rows are scored, the best again, and the page is written."""
    for module in (score, page, train):
        monkeypatch.setattr(module, "ROOT", ROOT)
        monkeypatch.setattr(module, "OUTPUT", tmp_path / "out")
    for module in (score, page):
        monkeypatch.setattr(module, "TABLES", tmp_path / "docs")
    monkeypatch.setattr(page, "PAGE", tmp_path / "evidence.md")
    monkeypatch.setattr(score, "NUM_REFERENCES", 8)
    monkeypatch.setattr(score, "STEPS", 1)
    monkeypatch.setattr(score, "PHASES", {k: few(v) for k, v in score.PHASES.items()})
    wanted = (
        "routed@none",
        "routed@sg,omega=2.5,gamma_strong=0.1,gamma_weak=0.8",
        "routed@pdg,omega=1.5",
    )
    some = [one for one in all_tries("classes") if one.name in wanted]
    assert len(some) == 3
    monkeypatch.setattr(score, "all_tries", lambda _: [*some, Try("dense", "none")])
    torch.manual_seed(0)
    model = SiT(SiTConfig(num_layers=3, width=32, num_heads=2, num_classes=24, routes=((1, 1),)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_transformer(model, tmp_path / "out" / Twin("classes", "routed").name / "export")
    assert score.main(["--family", "classes"]) == 0
    rows = json.loads((tmp_path / "docs" / "classes-validation.json").read_text())
    assert {one["run"] for one in rows} == {one.name for one in some}
    tested = Stored.read(tmp_path / "docs" / "classes-test.parquet", score.pictures("classes"))
    assert [one.partition(",")[0] for one in tested.runs] == [
        "routed@none",
        "routed@sg",
        "routed@pdg",
    ]
    pair = tested.difference(tested.runs[1], "routed@none", "saturation")
    assert pair is not None
    means = [tested.score(run, "saturation") for run in (tested.runs[1], "routed@none")]
    assert pair.value == pytest.approx(means[0].value - means[1].value, abs=1e-5)
    assert page.main([]) == 0
    assert "no data yet" in (tmp_path / "evidence.md").read_text()


def few(phase: score.Phase) -> score.Phase:
    """Two pictures of each class."""
    return score.Phase(phase.name, phase.first, {"text": 2, "classes": 2}, phase.seed)
