"""Proves the FLOPs of an image against the network's own, method by method and solver by solver."""

from __future__ import annotations

import pytest

from t2i.guidance.methods import make_guidance
from t2i.models.costs.macs import (
    block_macs,
    ends_macs,
    forward_macs,
    from_route_macs,
    shared_macs,
)
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.sampling.image_flops import image_flops
from t2i.sampling.sampling_config import SolverName

MODEL = TRDiTConfig(num_layers=6, width=64, num_heads=2, routes=((2, 4),), adaln_rank=8)
TOKENS, TEXT = 64, 20


def flops(name: str, steps: int = 10, solver: SolverName = "euler", **settings: float) -> float:
    guidance = make_guidance(name, settings)
    return image_flops(MODEL, guidance, TOKENS, TEXT, steps, solver)


def test_without_guidance_it_is_a_forward_pass_a_step() -> None:
    assert flops("none") == 10 * 2 * forward_macs(MODEL, TOKENS, TEXT)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 10), ("unipc", 10), ("heun", 19)])
def test_solvers_differ_in_evaluations(solver: SolverName, evaluations: int) -> None:
    assert flops("none", solver=solver) == evaluations * flops("none", steps=1)


def test_branches_of_one_condition_share_what_lies_before_the_route() -> None:
    sg = flops("sg", steps=1, gamma_strong=0.0, gamma_weak=0.5, omega=2.0)
    expected = shared_macs(MODEL, TOKENS, TEXT)
    expected += sum(from_route_macs(MODEL, TOKENS, TEXT, gamma) for gamma in (0.0, 0.5))
    assert sg == 2 * expected
    assert flops("cfg", steps=1, omega=2.0) == 2 * flops("none", steps=1)
    # omega 1 is no guidance, and APG asks both branches whatever it makes of them
    assert flops("cfg", steps=1, omega=1.0) == flops("none", steps=1)
    assert flops("apg", steps=1, omega=2.0) == 2 * flops("none", steps=1)


def test_outside_the_interval_there_is_one_branch() -> None:
    guidance = make_guidance("cfg", {"omega": 2.0}, (0.25, 0.75))
    found = image_flops(MODEL, guidance, TOKENS, TEXT, 4, "euler")
    active = sum(guidance.is_active(step / 4) for step in range(4))
    assert 0 < active < 4
    assert found == (4 + active) * flops("none", steps=1)


BLOCK = block_macs(MODEL, TOKENS, TEXT)
SHARED = shared_macs(MODEL, TOKENS, TEXT)
REST = from_route_macs(MODEL, TOKENS, TEXT)


@pytest.mark.parametrize(
    ("name", "settings", "weak"),
    [
        # of six blocks, 2 to 4 routed: block 3 is the middle one, of which the first two are shared
        ("pdg", {}, SHARED + REST - 3 * BLOCK),
        ("pdg+c", {}, REST - 3 * BLOCK),
        ("slg", {}, REST - BLOCK),
        ("slg", {"blocks": [3, 4]}, REST - 2 * BLOCK),
        ("slg", {"blocks": [0, 3]}, SHARED + REST - 2 * BLOCK),
        ("s2", {"omega": 1, "drop_blocks": 0.3}, SHARED + REST - 2 * BLOCK),
        ("pag", {}, REST - 2 * TOKENS**2 * 64),
        ("tpg", {}, REST),
        ("ssg", {}, REST + TOKENS**2 * 64),
        ("ig", {}, ends_macs(MODEL, TOKENS)[1]),
    ],
)
def test_a_weakened_branch_costs_what_it_runs(
    name: str, settings: dict[str, object], weak: int
) -> None:
    guidance = make_guidance(name, settings)
    found = image_flops(MODEL, guidance, TOKENS, TEXT, 1, "euler")
    assert found == 2 * (SHARED + REST + weak)


def test_a_class_model_has_no_text() -> None:
    model = SiTConfig(num_layers=4, width=64, num_heads=2, num_classes=8, routes=((1, 2),))
    found = image_flops(model, make_guidance("none", {}), TOKENS, 0, 3, "euler")
    assert found == 3 * 2 * forward_macs(model, TOKENS)
