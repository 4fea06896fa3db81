"""Proves that held-out prompts are of scenes that no training of the nano family sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.nano.prompts import CONFIGS, held_out_prompts, main, scenes_of
from t2i.sampling.prompts import builtin_prompts, read_prompts
from t2i.shapes import captions, parse_scene


def test_no_bundled_prompt_tells_a_scene_of_a_training() -> None:
    prompts = {parse_scene(prompt) for prompt in builtin_prompts(512)}
    for config in CONFIGS:
        scenes = scenes_of(config)
        assert len(scenes) > 200
        assert not prompts & scenes, f"{config}: make the prompts again (launch.nano.prompts)"


def test_the_scenes_of_a_config_are_those_that_its_source_draws(tmp_path: Path) -> None:
    from data_pipeline.sources.shapes import ShapesConfig, load_pictures, make_source

    make_source(ShapesConfig(folder=str(tmp_path / "web"), num_images=5, seed=3))
    config = tmp_path / "config.yaml"
    config.write_text("data_pipeline: {source: {folder: web, num_images: 5, seed: 3}}\n")
    drawn = {picture.scene for picture in load_pictures(tmp_path / "web")}
    assert scenes_of(config) == drawn


def test_prompts_are_seeded_different_and_as_many_of_each_number_of_objects() -> None:
    prompts = held_out_prompts(30, set())
    assert prompts == held_out_prompts(30, set())
    assert not set(prompts) & set(held_out_prompts(30, set(), seed=1))
    numbers = [len(parse_scene(prompt).objects) for prompt in prompts]
    assert numbers == [1, 2, 3] * 10


def test_a_scene_that_is_trained_on_is_replaced_and_no_other() -> None:
    free = held_out_prompts(30, set())
    seen = {parse_scene(free[3])}
    prompts = held_out_prompts(30, seen)
    assert [a == b for a, b in zip(free, prompts, strict=True)] == [i != 3 for i in range(30)]


def test_too_many_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.nano.prompts.MAX_DRAWS", 3)
    with pytest.raises(ValueError, match=r"prompt \d+ of 30: no scene .* ask for fewer"):
        held_out_prompts(30, set())


def test_the_command_writes_a_file_that_sampling_reads(tmp_path: Path) -> None:
    output = tmp_path / "new" / "prompts.txt"
    config = tmp_path / "config.yaml"
    config.write_text("data_pipeline: {source: {folder: web, num_images: 50}}\n")
    assert main(["--output", str(output), "--num", "7", "--configs", str(config)]) == 0
    prompts = read_prompts([], output)
    assert [captions(parse_scene(prompt))[0] for prompt in prompts] == prompts
    assert len(prompts) == 7
    assert not {parse_scene(prompt) for prompt in prompts} & scenes_of(config)
