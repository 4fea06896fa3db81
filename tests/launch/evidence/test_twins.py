"""Proves that the twins of the evidence fit their models, differ in one thing and cost the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from launch.evidence.train import chosen, main
from launch.evidence.twins import FAMILIES, Twin, all_twins, check, flops_of_step
from launch.train_t2i import Config
from t2i.config import load_config

ROOT = Path(__file__).resolve().parents[3]
OUTPUT = Path("outputs/evidence")
TWINS = all_twins()


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_twin_has_a_config_that_can_be_trained_and_its_family_s_flops(twin: Twin) -> None:
    check(ROOT, twin, OUTPUT)
    stages = twin.stages(ROOT, OUTPUT)
    budget = FAMILIES[twin.family].budget * flops_of_step(ROOT, Twin(twin.family, "routed"))
    costs = [flops_of_step(ROOT, twin, is_dense) for is_dense in (False, True)]
    is_dense_at_end = twin.kind == "sprint" or twin.is_tuned
    spent = sum(stage.steps * costs[stage.number == 2 and is_dense_at_end] for stage in stages)
    assert spent == pytest.approx((0.05 if twin.is_tuned else 1) * budget, rel=2e-3)


def test_the_twins_are_those_of_the_study() -> None:
    names = [twin.name for twin in TWINS]
    assert len(set(names)) == len(names) == 22
    assert {twin.kind for twin in TWINS if twin.family == "text"} == {
        *("dense", "routed", "sprint", "guided", "internal")
    }
    for family, kind in itertools.product(FAMILIES, ("dense", "routed")):
        seeds = {t.seed for t in TWINS if (t.family, t.kind, t.is_tuned) == (family, kind, False)}
        assert seeds == {0, 1, 2}


@pytest.mark.parametrize(
    ("twin", "expected"),
    [
        (Twin("text", "routed"), (14000, 6000)),
        (Twin("classes", "routed"), (10000,)),
    ],
    ids=["text", "classes"],
)
def test_the_routed_twin_is_the_family_that_make_nano_trains(
    twin: Twin, expected: tuple[int, ...]
) -> None:
    """So that it is not trained twice, and the shipped model is the study's."""
    stages = twin.stages(ROOT, OUTPUT)
    assert tuple(stage.steps for stage in stages) == expected
    base = {"text": "nano_training", "classes": "nano_training_sit"}[twin.family]
    own = load_config(ROOT / "configs" / f"{base}.yaml", [], Config)
    for stage in stages:
        config = load_config(ROOT / twin.config_file, list(stage.settings), Config)
        theirs = own.launch.stage(stage.number)
        assert config.launch.stage(stage.number).folder == theirs.folder
        assert str(stage.folder) == theirs.folder
        mine = config.launch.stage(stage.number).training
        whole = [
            {**c.training.model_dump(), **d} for c, d in ((config, mine), (own, theirs.training))
        ]
        different = {key for key in whole[0] if whole[0][key] != whole[1][key]}
        assert different <= {"keep_at"} - ({"keep_at"} if stage.number == 1 else set())


def test_seeds_differ_in_their_seed_alone() -> None:
    first, second = (Twin("text", "dense", seed).stages(ROOT, OUTPUT)[0] for seed in (0, 1))
    different = set(first.settings) ^ set(second.settings)
    assert {setting.split("=")[0] for setting in different} == {
        *("t2i.training.seed", "launch.train.stage1.folder")
    }


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "classes-sprint-0"]) == 0
    assert "8115 + 2195" in capsys.readouterr().out
    assert [twin.name for twin in chosen(["text-dense-1", "classes-dense-0"])] == [
        *("classes-dense-0", "text-dense-1")
    ]
    with pytest.raises(
        ValueError, match="no model is called 'classes-dense'; there are classes-de"
    ):
        chosen(["classes-dense"])
