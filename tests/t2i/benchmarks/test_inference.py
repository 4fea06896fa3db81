"""Benchmarks on a tiny model: rows and files are there, FLOPs are those that torch counts."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from t2i.benchmark import Config, main
from t2i.benchmarks.inference import Subject, forward_cases, sample_cases
from t2i.config import DEFAULT_CONFIG, load_config

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


def test_decoding_is_a_row_of_its_own(tmp_path: Path) -> None:
    cases = sample_cases(subject("t2i.benchmark.decode=true"))
    assert cases[-1].name == "VAE decoding"
    assert cases[-1].run().shape == (2, 3, 128, 128)
