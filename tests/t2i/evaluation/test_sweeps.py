"""Proves the grid of a sweep, its Pareto front against a search through all pairs, and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from t2i.evaluation.commands.sweep import grid_methods
from t2i.evaluation.sweeps import best_by_budget, draw_sweep, heat_maps, pareto_front, pick_score

POINTS = st.lists(
    st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), min_size=1, max_size=12
)


@given(POINTS, st.booleans())
def test_nothing_beats_what_is_on_the_front(
    points: list[tuple[float, float]], higher_is_better: bool
) -> None:
    front = pareto_front(points, higher_is_better)
    sign = 1 if higher_is_better else -1

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and sign * one[1] >= sign * other[1]

    unbeaten = {point for point in points if not any(beats(other, point) for other in points)}
    assert {points[number] for number in front} == unbeaten
    assert len(front) == len(unbeaten)
    assert [points[number][0] for number in front] == sorted(p[0] for p in unbeaten)


def test_the_grid_leaves_out_what_makes_no_difference() -> None:
    values = {
        "guidance": ["none", "sg"],
        "omega": ["1.5", "2"],
        "gamma_strong": ["0", "0.7"],
        "gamma_weak": ["0.6", "0.8"],
        "steps": ["10"],
    }
    methods = grid_methods(values, "cfg")
    assert [name for name in methods if name.startswith("none")] == ["none,steps=10"]
    gammas = {
        (method.guidance["gamma_strong"], method.guidance["gamma_weak"])
        for name, method in methods.items()
        if name.startswith("sg")
    }
    assert gammas == {("0", "0.6"), ("0", "0.8"), ("0.7", "0.8")}
    assert len(methods) == 1 + 2 * 3
    assert all(method.sampling == {"steps": "10"} for method in methods.values())
    alone = grid_methods({"interval": ["0:1", "0.1:0.8"]}, "cfg")
    assert [method.guidance for method in alone.values()] == [
        {"name": "cfg", "interval": ["0", "1"]},
        {"name": "cfg", "interval": ["0.1", "0.8"]},
    ]


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma_strong must be below gamma_weak"):
        grid_methods({"gamma_strong": ["0.8"], "gamma_weak": ["0.2"]}, "sg")
    with pytest.raises(ValueError, match="--guidance x: unknown; valid: none"):
        grid_methods({"guidance": ["x"]}, "sg")


def rows() -> list[dict[str, Any]]:
    """Two strengths of SG over a grid of gammas, and no guidance."""
    settings = [
        ("sg", omega, strong, weak)
        for omega in (1.5, 2.0)
        for strong in (0.0, 0.2)
        for weak in (0.6, 0.8)
    ]
    settings.append(("none", None, None, None))
    found = []
    for number, (name, omega, strong, weak) in enumerate(settings):
        found.append(
            {
                **{"run": f"{name} {number}", "guidance_name": name, "omega": omega},
                **{"gamma_strong": strong, "gamma_weak": weak, "interval": "", "steps": 50},
                **{"solver": "euler", "metric": "shapes", "score_name": "scene"},
                **{"value": number / 10, "low": number / 20, "high": 1.0, "better": "higher"},
                **{"flops_per_image": 1e9 * (number + 1), "seconds_per_image": 0.1 * (number + 1)},
            }
        )
    return [*found, {**found[0], "score_name": "place", "value": None}]


def test_a_heat_map_for_each_other_setting() -> None:
    picked = pick_score(rows(), "scene", {})
    maps = heat_maps(picked)
    assert list(maps) == ["guidance sg, omega 1.5", "guidance sg, omega 2.0"]
    assert [len(own) for own in maps.values()] == [4, 4]


def test_pictures_and_the_best_for_each_budget(tmp_path: Path) -> None:
    picked = pick_score(rows(), None, {"shapes": "scene"})
    paths = draw_sweep(picked, tmp_path)
    assert [path.name for path in paths] == [
        *("scene-heat-0.png", "scene-heat-1.png"),
        *("scene-flops_per_image.png", "scene-seconds_per_image.png"),
    ]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 100
            assert len(image.convert("RGB").getcolors(10**6) or ()) > 50
    lines = best_by_budget(picked).splitlines()
    assert len(lines) == 1 + 9
    assert lines[-1].split() == ["from", "9", "0.8", "(0.4", "to", "1)", "none", "8"]


def test_a_score_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no such score; there are scene, place"):
        pick_score(rows(), "fid", {})
    with pytest.raises(ValueError, match="nothing is better or worse"):
        pick_score(rows(), "place", {})
