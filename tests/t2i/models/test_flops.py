"""Proves parameter and FLOP counts: the published totals, and torch's own counter."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from t2i.config import load_config
from t2i.models import flops
from t2i.models.flops import Config, forward_macs, from_route_macs, parameter_counts, shared_macs
from t2i.models.routing import draw_keep_ids
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig

FULL = TRDiTConfig(
    num_layers=34, width=2048, num_heads=16, text_width=1536, adaln_rank=256, routes=((2, 30),)
)
SMALL = TRDiTConfig(
    num_layers=5, width=64, num_heads=2, text_width=24, adaln_rank=8, routes=((1, 2),)
)
TOKENS, TEXT = 1024, 256


def test_the_full_model_has_2_5_billion_parameters_in_groups_that_sum_to_the_total():
    counts = parameter_counts(FULL)
    with torch.device("meta"):
        model = TRDiT.from_config(FULL)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(counts.values()) == total
    assert 2.45e9 < total < 2.55e9
    width, ffn = FULL.width, FULL.ffn_width
    heads = 2 * FULL.head_width
    assert counts["blocks.self_attention"] == 34 * (4 * width**2 + heads)
    assert counts["blocks.cross_attention"] == 34 * (4 * width**2 + heads)
    assert counts["blocks.ffn"] == 34 * 3 * width * ffn
    assert counts["blocks.modulation"] == 34 * 256 * 7 * width


def test_no_linear_has_a_bias():
    names = [name for name, _ in TRDiT.from_config(SMALL).named_parameters()]
    assert not [name for name in names if "bias" in name]


def test_golden_teraflops_of_the_full_model():
    def tera(macs: int) -> float:
        return 2 * macs / 1e12

    dense = forward_macs(FULL, TOKENS, TEXT)
    strong, weak = (from_route_macs(FULL, TOKENS, TEXT, gamma) for gamma in (0.1, 0.8))
    shared = shared_macs(FULL, TOKENS, TEXT)
    assert math.isclose(tera(dense), 4.45, rel_tol=0.005)
    assert math.isclose(tera(2 * dense), 8.91, rel_tol=0.005)
    assert math.isclose(tera(2 * shared + strong + weak), 5.43, rel_tol=0.005)
    assert math.isclose(tera(shared + strong + weak), 5.17, rel_tol=0.005)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formula_equals_torchs_flop_counter(gamma):
    # bf16 on a CPU writes attention out, so the counter sees its two products
    model = TRDiT.from_config(SMALL).bfloat16()
    text = model.prepare_text(torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool))
    keep_ids = draw_keep_ids(0, "route", 0, torch.arange(2), 16, gamma)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(2, 4, 8, 8), torch.rand(2), text, keep_ids)
    assert counter.get_total_flops() == 2 * 2 * forward_macs(SMALL, 16, 7, gamma)


def test_the_command_prints_the_totals(tmp_path, capsys):
    config_file = tmp_path / "config.yaml"
    config_file.write_text("t2i: {models: {tr_dit: {num_layers: 4, routes: [[1, 2]]}}}")
    assert load_config(config_file, [], Config).tr_dit.num_layers == 4
    assert flops.main(["--config", str(config_file), "--size", "128"]) == 0
    printed = capsys.readouterr().out
    assert "total" in printed
    assert "64 tokens" in printed
    assert "SG(0.1, 0.8), shared prefix" in printed


def test_a_size_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--size 100 must be a multiple of 16"):
        flops.report(SMALL, 100, 8, 0.1, 0.8)
