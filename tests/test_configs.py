"""Proves that every file in configs/ loads in every command, that the big model has its size, and that
nobody counts on longer captions than the text encoder reads."""

import importlib
from pathlib import Path

import pytest
import torch

from launch.plan_config import PlanConfig
from recaption.captioner_config import CaptionerConfig
from recaption.granularity import LEVELS
from t2i.benchmarks.benchmark_config import BenchmarkConfig
from t2i.config import SECTIONS, Section, load_config, section, section_names
from t2i.encoders.text_config import TextEncoderConfig
from t2i.models.flops import TEXT_SETTING
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig

REPO = Path(__file__).resolve().parent.parent
CONFIGS = sorted((REPO / "configs").glob("*.yaml"))
COMMANDS = (
    "data_pipeline.sources.shapes",
    "data_pipeline.sources.class_folders",
    "data_pipeline.download",
    "data_pipeline.filter",
    "data_pipeline.latents",
    "data_pipeline.benchmark",
    "recaption.cli",
    "recaption.gallery",
    "launch.train_t2i",
    "launch.plan",
    "launch.report",
    "t2i.sample",
    "t2i.evaluate",
    "t2i.export",
    "t2i.benchmark",
    "t2i.models.flops",
)


def schema_of(command: str) -> type[Section]:
    schema = importlib.import_module(command).Config
    assert issubclass(schema, Section)
    return schema


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_config_loads_in_the_command(path: Path, command: str) -> None:
    load_config(path, [], schema_of(command))


def test_every_section_is_read_by_a_command() -> None:
    read = {name for command in COMMANDS for name in section_names(schema_of(command)).values()}
    assert read == set(SECTIONS)


def test_tr_dit_2b5_has_two_and_a_half_billion_parameters() -> None:
    class Config(Section):
        tr_dit: TRDiTConfig = section("t2i.models.tr_dit")

    config = load_config(REPO / "configs" / "tr_dit_2b5.yaml", [], Config).tr_dit
    with torch.device("meta"):
        model = TRDiT.from_config(config)
    assert 2.45e9 <= sum(parameter.numel() for parameter in model.parameters()) <= 2.55e9


class TextLengths(Section):
    text: TextEncoderConfig = section("t2i.encoders.text")
    benchmark: BenchmarkConfig = section("t2i.benchmark")
    plan: PlanConfig = section("launch.plan")
    captioner: CaptionerConfig = section("recaption.captioner")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_config_counts_on_captions_that_the_text_encoder_cuts(path: Path) -> None:
    config = load_config(path, [], TextLengths)
    assert config.benchmark.text_tokens <= config.text.max_tokens
    assert (config.plan.text_tokens or 0) <= config.text.max_tokens


def test_tr_dit_2b5_reads_its_captions_whole_and_counts_alike_everywhere() -> None:
    """The longest answer, its end token included, is all that a caption can have."""
    config = load_config(REPO / "configs" / "tr_dit_2b5.yaml", [], TextLengths)
    longest = max(config.captioner.levels.limit(level) for level in LEVELS)
    assert longest <= config.text.max_tokens
    assert config.benchmark.text_tokens == config.plan.text_tokens == TEXT_SETTING.text_tokens
