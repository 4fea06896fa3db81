"""Benchmarks on a tiny model: rows and files are there, FLOPs are those that torch counts."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from t2i import environment
from t2i.benchmark import Config, main
from t2i.benchmarks import rows
from t2i.benchmarks.benchmark_config import BenchmarkConfig
from t2i.benchmarks.inference import Subject, forward_cases, sample_cases
from t2i.benchmarks.rows import Case, measure
from t2i.config import DEFAULT_CONFIG, ConfigError, load_config

TINY = (
    "t2i.models.tr_dit.width=64",
    "t2i.models.tr_dit.num_heads=2",
    "t2i.models.tr_dit.adaln_rank=8",
    "t2i.benchmark.batch_size=2",
    "t2i.benchmark.repeats=2",
    "t2i.benchmark.warmup=0",
)


# where attention is written out, so that torch's counter sees it
BF16 = "t2i.benchmark.dtype=bfloat16"


def subject(*overrides: str) -> Subject:
    config = load_config(DEFAULT_CONFIG, [*TINY, *overrides], Config)
    return Subject(config.model, config.vae, config.benchmark)


@torch.no_grad()
def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_flops_of_a_forward_are_those_that_torch_counts() -> None:
    for case in forward_cases(subject(BF16)):
        assert case.flops == pytest.approx(counted(case.run), rel=0.01), case.name


def test_flops_of_a_guided_step_count_shared_layers_once() -> None:
    names = "[none, cfg, sg, inner, direct, icg]"
    for case in sample_cases(subject(BF16, f"t2i.benchmark.guidance={names}")):
        case.run()  # the first step also joins the conditions' texts
        assert case.flops == pytest.approx(counted(case.run), rel=0.01), case.name


@pytest.mark.parametrize(("what", "num_rows"), [("forward", 5), ("sample", 3), ("grid", 15)])
def test_results_are_written_with_what_made_them(
    what: str, num_rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"--set={item}" for item in (*TINY, f"t2i.benchmark.output={tmp_path}")]
    assert main([what, *overrides]) == 0
    result = json.loads((tmp_path / f"{what}-nano-cpu.json").read_text())
    assert {"device", "torch", "commit", "settings"} < result.keys()
    assert len(result["rows"]) == num_rows
    assert result["rows"][0]["time_ratio"] == result["rows"][0]["flops_ratio"] == 1
    assert all(row["seconds"] > 0 and row["flops"] > 0 for row in result["rows"])
    assert (tmp_path / f"{what}-nano-cpu.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "grid-nano-cpu.png").exists() == (what == "grid")


def test_decoding_is_a_row_of_its_own() -> None:
    cases = sample_cases(subject("t2i.benchmark.decode=true"))
    assert cases[-1].name == "VAE decoding"
    assert cases[-1].run().shape == (2, 3, 128, 128)


def test_a_vae_of_other_latents_is_refused() -> None:
    with pytest.raises(
        ValueError, match="4 channels at 1/8 of the pixels, but latents here have 8"
    ):
        sample_cases(subject("t2i.benchmark.decode=true", "t2i.models.tr_dit.in_channels=8"))


def test_images_per_second_of_whole_images_count_steps_and_decoding(tmp_path: Path) -> None:
    settings = (*TINY, "t2i.benchmark.decode=true", "t2i.benchmark.steps=5")
    overrides = [f"--set={item}" for item in (*settings, f"t2i.benchmark.output={tmp_path}")]
    assert main(["sample", *overrides]) == 0
    *guided, decoding = json.loads((tmp_path / "sample-nano-cpu.json").read_text())["rows"]
    for row in guided:
        seconds = 5 * row["seconds"] + decoding["seconds"]
        assert row["decoded_images_per_second"] == pytest.approx(2 / seconds)
    assert decoding["decoded_images_per_second"] is None
    lines = (tmp_path / "sample-nano-cpu.md").read_text().splitlines()
    assert lines[2].endswith("| images/s with decode / first |")
    assert lines[4].endswith("| 1.000 |")
    assert lines[-1].endswith("|  |")


def test_a_row_has_its_own_peak_of_memory() -> None:
    large = Case("large", lambda: torch.ones(100_000_000), 1, 1)
    small = Case("small", lambda: torch.ones(1_000_000), 1, 1)
    first, second = measure([large, small], BenchmarkConfig(warmup=0, repeats=1), "sample")
    assert first.memory_gb is not None
    assert second.memory_gb is not None
    assert first.memory_gb - second.memory_gb == pytest.approx(0.4 - 0.004, abs=0.1)


def test_the_cell_is_empty_where_the_peak_cannot_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CLEAR_REFS", Path("/proc/none/clear_refs"))
    row = measure([Case("one", lambda: None, 1, 1)], BenchmarkConfig(warmup=0), "sample")[0]
    assert row.memory_gb is None
    result = dict.fromkeys(("what", "batch", "device", "torch", "commit"), "")
    assert rows.table([row], result, BenchmarkConfig()).endswith("|  |\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("launch.train.model=sit", "launch.train.model is sit, but TR-DiT alone is measured"),
        ("t2i.benchmark.size=[100, 100]", r"size \[100, 100\]: both sides must be multiples of 16"),
        ("t2i.benchmark.grid=[0.5]", "t2i.benchmark.grid: .* at least 2 items"),
        ("t2i.benchmark.grid=[0.5, 0.5]", r"grid \[0.5, 0.5\] must rise"),
        ("t2i.benchmark.gammas=[1.0]", "t2i.benchmark.gammas.0: .* less than 1"),
        ("t2i.benchmark.guidance=[]", "t2i.benchmark.guidance: .* at least 1 item"),
    ],
)
def test_what_cannot_be_measured_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["grid", "--set", override])
