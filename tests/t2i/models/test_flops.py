"""Proves parameter and FLOP counts: the published totals, and torch's own counter."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from launch.config import LaunchConfig
from t2i.config import DEFAULT_CONFIG, load_config
from t2i.models import flops
from t2i.models.costs.macs import (
    forward_macs,
    from_route_macs,
    shared_macs,
    training_flops,
)
from t2i.models.flops import CLASS_SETTING, TEXT_SETTING, Config, parameter_counts
from t2i.models.mask_dit import MaskDiT
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.routing import draw_keep_ids
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.models.trained_family import TrainedFamily

CONFIGS = DEFAULT_CONFIG.parent
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
    assert round(tera(dense), 3) == 4.459
    assert round(tera(2 * dense), 3) == 8.918
    assert round(tera(2 * shared + strong + weak), 3) == 5.435
    assert round(tera(shared + strong + weak), 3) == 5.173


MORE = SMALL.model_copy(update={"after_route": "fuse", "internal_after": 0})


@pytest.mark.parametrize("config", [SMALL, MORE], ids=["plain", "with more"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formula_equals_torchs_flop_counter(gamma, config):
    # bf16 on a CPU writes attention out, so the counter sees its two products
    model = TRDiT.from_config(config).bfloat16()
    text = model.prepare_text(torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool))
    keep_ids = draw_keep_ids(0, "route", 0, torch.arange(2), 16, gamma)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(2, 4, 8, 8), torch.rand(2), text, keep_ids)
    assert counter.get_total_flops() == 2 * 2 * forward_macs(config, 16, 7, gamma)


@pytest.mark.parametrize("config", [SMALL, MORE], ids=["plain", "with more"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_training_flops_equal_torchs_flop_counter(gamma, config):
    model = TRDiT.from_config(config).bfloat16()
    internal = {"internal": True} if config.internal_after is not None else {}
    keep_ids = draw_keep_ids(0, "route", 0, torch.arange(2), 16, gamma)
    with FlopCounterMode(display=False) as counter:
        text = model.prepare_text(torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool))
        model(torch.randn(2, 4, 8, 8), torch.rand(2), text, keep_ids, **internal).sum().backward()
    # patches and sinusoids of time need no gradient (text states do, for the weight of their norm)
    no_gradient = 16 * (4 * 4) * 64 + 256 * 64
    expected = training_flops(config, 16, 7, gamma) - 2 * no_gradient
    assert counter.get_total_flops() == 2 * expected


def forward_giga_macs(printed: str) -> float:
    line = next(line for line in printed.splitlines() if "forward, dense" in line)
    return float(line.split()[-1])


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
        flops.report(SMALL, replace(TEXT_SETTING, size=100))


# Sparse Guidance, table 2, recomputed: SiT-XL/2, 256 tokens, r_{2->24}, without attention products
@pytest.mark.parametrize(
    ("gammas", "giga"),
    [((0.0,), 114.39), ((0.0, 0.0), 228.79), ((0.5, 0.9), 97.66), ((0.3, 0.3), 173.11)],
)
def test_golden_gigamacs_of_sit_xl_2(gammas, giga):
    config = SiTConfig.from_size("SiT-XL/2", routes=((2, 24),))
    macs = sum(forward_macs(config, 256, 0, gamma, False) for gamma in gammas)
    assert round(macs / 1e9, 2) == giga


CLASS_FIELDS = {"num_layers": 5, "width": 64, "num_heads": 2, "num_classes": 10}
CLASS_MODELS = [
    SiT(SiTConfig(**CLASS_FIELDS, routes=((1, 2),))),
    SiT(SiTConfig(**CLASS_FIELDS, routes=(), learn_sigma=False)),
    SiT(SiTConfig(**CLASS_FIELDS, routes=((1, 2),), after_route="fuse", internal_after=0)),
    MaskDiT(MaskDiTConfig(**CLASS_FIELDS, decoder_layers=2, decoder_width=32, decoder_heads=4)),
]


@pytest.mark.parametrize(
    "model", CLASS_MODELS, ids=["SiT", "SiT without routes", "SiT with more", "MaskDiT"]
)
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formulas_of_class_conditional_models_equal_torchs_flop_counter(model, gamma):
    model = model.bfloat16()
    dense = gamma == 0 or not flops.can_drop_tokens(model.config)
    keep_ids = None if dense else draw_keep_ids(0, "route", 0, torch.arange(2), 16, gamma)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 10]), keep_ids)
    assert counter.get_total_flops() == 2 * 2 * forward_macs(model.config, 16, 0, gamma)


@pytest.mark.parametrize(
    "model", CLASS_MODELS, ids=["SiT", "SiT without routes", "SiT with more", "MaskDiT"]
)
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_training_flops_of_class_conditional_models_equal_torchs_flop_counter(model, gamma):
    model = model.bfloat16()
    gamma = gamma if flops.can_drop_tokens(model.config) else 0.0
    keep_ids = draw_keep_ids(0, "route", 0, torch.arange(2), 16, gamma) if gamma else None
    with FlopCounterMode(display=False) as counter:
        inputs = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 10]), keep_ids
        internal = {"internal": True} if model.config.internal_after is not None else {}
        model(*inputs, **internal).sum().backward()
    no_gradient = 16 * (4 * 4) * 64 + 256 * 64
    assert counter.get_total_flops() == 2 * (
        training_flops(model.config, 16, 0, gamma) - 2 * no_gradient
    )


def test_the_command_prints_the_golden_table(capsys):
    assert flops.main(["--model", "SiT-XL/2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    last_column = {line[:48].strip(): line.split()[-1] for line in printed if line}
    expected = {
        "forward, dense": 114.39,
        "guided step, CFG (two dense branches)": 228.79,
        "guided step, SG(0.5, 0.9)": 97.66,
        "guided step, AG+SG of mean gamma 0.3": 173.11,
        "image, 40 steps, CFG (two dense branches)": 40 * 228.79,
        "training sample, dense": 3 * 114.39,
    }
    for name, giga in expected.items():
        assert math.isclose(float(last_column[name]), giga, rel_tol=0.001), name


def test_parts_of_a_mask_dit_sum_to_its_parameters():
    config = MaskDiTConfig.from_size("MaskDiT-XL/2")
    counts = parameter_counts(config)
    width, small = 1152, 512
    assert counts["decoder.mlp"] == 8 * (8 * small**2 + 5 * small)
    assert counts["decoder.modulation"] == 8 * 6 * small * (width + 1)
    total = sum(parameter.numel() for parameter in flops.build_model(config).parameters())
    assert sum(counts.values()) == total


@pytest.mark.parametrize(
    "flag", [["--text-tokens", "8"], ["--set", "t2i.models.tr_dit.width=64"], ["--print-config"]]
)
def test_flags_without_a_meaning_beside_model_are_refused(flag):
    with pytest.raises(ValueError, match=f"{flag[0]} is for (TR-DiT|the config's model)"):
        flops.main(["--model", "SiT-XL/2", *flag])


@pytest.mark.parametrize(
    ("name", "giga"),
    [("imagenet_sit_xl2_tread", 114.39), ("imagenet_sit_xl2_mg", 114.39)],
)
def test_the_model_that_a_config_trains_is_counted(name, giga, capsys):
    assert flops.main(["--config", str(CONFIGS / f"{name}.yaml")]) == 0
    assert forward_giga_macs(capsys.readouterr().out) == giga


def test_a_config_of_mask_dit_is_counted_as_its_published_size(capsys):
    assert flops.main(["--config", str(CONFIGS / "imagenet_sit_xl2_maskdit.yaml")]) == 0
    of_config = capsys.readouterr().out
    assert flops.main(["--model", "MaskDiT-XL/2"]) == 0
    assert of_config == capsys.readouterr().out


def test_families_are_those_that_a_run_can_train():
    field = LaunchConfig.model_fields["model"]
    own = TrainedFamily.model_fields["model"]
    assert (own.annotation, own.default) == (field.annotation, field.default)
    for family in get_args(own.annotation):
        config = load_config(DEFAULT_CONFIG, [f"launch.train.model={family}"], Config)
        assert config.trained_model is getattr(config, family)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gamma-strong", "0.9", "--gamma-weak", "0.5"], "0 <= strong < weak < 1"),
        (["--gamma-strong", "-0.1"], "0 <= strong < weak < 1"),
        (["--gamma-weak", "nan"], "0 <= strong < weak < 1"),
        (["--size", "0"], "--size 0 must be at least 1"),
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--text-tokens", "-5"], "--text-tokens -5 must be at least 0"),
        (["--text-tokens", "8", "--set", "launch.train.model=sit"], "--text-tokens is for TR-DiT"),
    ],
)
def test_flags_out_of_range_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        flops.main(flags)


def test_each_family_is_counted_at_its_own_setting():
    assert "256 tokens" in flops.report(SiTConfig(routes=()), CLASS_SETTING)
    assert "SG(" not in flops.report(SiTConfig(routes=()), CLASS_SETTING)
