"""The table of methods: coefficients, formulas against the papers' equations, refused settings."""

from collections.abc import Callable

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.frequency_decoupled_guidance import FrequencyDecoupledGuidance
from diffusers.guiders.perturbed_attention_guidance import PerturbedAttentionGuidance as PAG
from diffusers.guiders.skip_layer_guidance import SkipLayerGuidance

from t2i.guidance.branches import Combine, Evaluation, evaluations, plan
from t2i.guidance.guidance_config import GuidanceConfig
from t2i.guidance.methods import METHODS, make_guidance
from t2i.guidance.weaknesses import as_block_choice

FRACTIONS = (0.0, 0.37, 1.0)
OMEGA_METHODS = [name for name, method in METHODS.items() if "omega" in method.defaults]
LINEAR = [name for name in METHODS if make_guidance(name).new_combine is None]
W_C, W_S = 1.7, 0.6


def test_the_rows_of_the_spec_are_there() -> None:
    names = (
        "none cfg sg cfg+sg ag ag+sg direct inner compositional ip2p icg s2 apg "
        "cfg_zero fdg pdg pdg+c ig cfg+ig sg+ig slg pag tpg ssg"
    )
    assert list(METHODS) == names.split()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_coefficients_sum_to_one(name: str, fraction: float) -> None:
    guidance = make_guidance(name)
    assert sum(guidance.coefficients(fraction)) == pytest.approx(1)
    assert len(guidance.coefficients(fraction)) == len(guidance.branches)


@pytest.mark.parametrize("name", [name for name in LINEAR if name in OMEGA_METHODS])
def test_omega_one_is_the_strong_branch_alone(name: str) -> None:
    others = {key: 0 for key in ("block_weight", "cfg_weight") if key in METHODS[name].defaults}
    others |= {"internal_omega": 1} if "internal_omega" in METHODS[name].defaults else {}
    guidance = make_guidance(name, {"omega": 1, **others})
    assert plan(guidance, 0.5, 0.5) == {evaluations(guidance, 0.5)[0]: 1.0}


@pytest.mark.parametrize("name", METHODS)
def test_outside_the_interval_it_is_the_strong_branch_alone(name: str) -> None:
    guidance = make_guidance(name, interval=(0.2, 0.6))
    for timestep in (0.1, 0.7):
        assert plan(guidance, timestep, 0.5) == {evaluations(guidance, 0.5)[0]: 1.0}


# D_s(c), D_s(0), D_w(c), D_w(0) as arbitrary numbers
S_C, S_0, W_C_, W_0 = 3.1, -0.7, 2.3, 0.9
EQUATIONS: dict[str, Callable[[float, float], float]] = {
    "direct": lambda wc, ws: W_0 + wc * (S_C - W_0) + ws * (S_C - W_C_),
    "inner": lambda wc, ws: (1 + wc + ws) * S_C - wc * S_0 - ws * W_C_,
    "compositional": lambda wc, ws: W_0 + wc * (S_C - W_0) + ws * (W_C_ - W_0),
    "ip2p": lambda wc, ws: W_0 + ws * (W_C_ - W_0) + wc * (S_C - W_C_),
    "sg": lambda omega, _: omega * S_C + (1 - omega) * W_C_,
    "cfg+sg": lambda omega, _: omega * S_C + (1 - omega) * W_0,
}


def prediction(evaluation: Evaluation) -> float:
    table = {("text", 0.1): S_C, ("null", 0.1): S_0, ("text", 0.8): W_C_, ("null", 0.8): W_0}
    return table[evaluation.condition, evaluation.gamma]


@pytest.mark.parametrize("name", EQUATIONS)
def test_it_computes_the_papers_equation(name: str) -> None:
    weights = {"omega": W_C} if "omega" in METHODS[name].defaults else {}
    weights = weights or {"cfg_weight": W_C, "sg_weight": W_S}
    guidance = make_guidance(name, {**weights, "gamma_strong": 0.1, "gamma_weak": 0.8})
    terms = plan(guidance, 0.5, 0.5)
    guided = sum(weight * prediction(evaluation) for evaluation, weight in terms.items())
    assert guided == pytest.approx(EQUATIONS[name](W_C, W_S))


def test_s2_computes_the_papers_equation() -> None:
    # D(c), D(0) and D^(c) as numbers; lambda = W_C, omega_s = W_S
    guidance = make_guidance("s2", {"omega": W_C, "block_weight": W_S})
    terms = plan(guidance, 0.5, 0.5)
    value = {("text", "none"): S_C, ("null", "none"): S_0, ("text", "drop"): W_C_}
    guided = sum(w * value[term.condition, term.weakness.kind] for term, w in terms.items())
    assert guided == pytest.approx(S_0 + W_C * (S_C - S_0) - W_S * (W_C_ - S_C))


# D(c), D(0), and what the weakness makes of them; omega = W_C, the other weight = W_S
WEAKENED: dict[str, tuple[str, str, Callable[[float, float], float]]] = {
    "pdg": ("no_deep_path", "", lambda omega, _: W_0 + omega * (S_C - W_0)),
    "pdg+c": ("no_deep_path", "", lambda omega, _: W_C_ + omega * (S_C - W_C_)),
    "ig": ("internal", "", lambda omega, _: W_C_ + omega * (S_C - W_C_)),
    "cfg+ig": (
        "internal",
        "internal_omega",
        lambda omega, inner: (
            (W_0 + inner * (S_0 - W_0))
            + omega * ((W_C_ + inner * (S_C - W_C_)) - (W_0 + inner * (S_0 - W_0)))
        ),
    ),
    **{
        name: (
            kind,
            "cfg_weight",
            lambda omega, cfg: S_C + (omega - 1) * (S_C - W_C_) + cfg * (S_C - S_0),
        )
        for name, kind in {
            "slg": "skip",
            "pag": "identity",
            "tpg": "shuffle",
            "ssg": "swap",
        }.items()
    },
}


@pytest.mark.parametrize("name", WEAKENED)
def test_it_computes_the_papers_equation_of_a_weakened_branch(name: str) -> None:
    kind, other, equation = WEAKENED[name]
    guidance = make_guidance(name, {"omega": W_C, **({other: W_S} if other else {})})
    value = {
        ("text", "none"): S_C,
        ("null", "none"): S_0,
        ("text", kind): W_C_,
        ("null", kind): W_0,
    }
    terms = plan(guidance, 0.5, 0.5)
    assert {term.weakness.kind for term in terms} == {"none", kind}
    guided = sum(w * value[term.condition, term.weakness.kind] for term, w in terms.items())
    assert guided == pytest.approx(equation(W_C, W_S))


def test_sg_with_an_internal_head_is_sg_between_predictions_that_are_guided_from_it() -> None:
    guidance = make_guidance("sg+ig", {"omega": W_C, "internal_omega": W_S})
    inner = 1.3  # the head's prediction, whatever the gamma
    value = {("none", 0.1): S_C, ("none", 0.8): W_C_, ("internal", 0.0): inner}
    terms = plan(guidance, 0.5, 0.5)
    guided = sum(w * value[term.weakness.kind, term.gamma] for term, w in terms.items())
    strong, weak = (inner + W_S * (one - inner) for one in (S_C, W_C_))
    assert guided == pytest.approx(weak + W_C * (strong - weak))


def test_s2_without_its_weight_is_cfg_and_without_cfg_has_two_branches() -> None:
    cfg = plan(make_guidance("cfg", {"omega": 3}), 0.5, 0.5)
    assert plan(make_guidance("s2", {"omega": 3, "block_weight": 0}), 0.5, 0.5) == cfg
    two = plan(make_guidance("s2", {"omega": 1}), 0.5, 0.5)
    assert [term.condition for term in two] == ["text", "text"]


DENSE, NULL = ("text", "main", 0.0), ("null", "main", 0.0)
THREE = (("text", "main", 0.1), ("null", "main", 0.8), ("text", "main", 0.8))
# condition, network and gamma of each branch at the first step
BRANCHES = {
    "none": (DENSE,),
    "cfg": (DENSE, NULL),
    "sg": (("text", "main", 0.1), ("text", "main", 0.8)),
    "cfg+sg": (("text", "main", 0.2), ("null", "main", 0.7)),
    "ag": (DENSE, ("text", "aux", 0.0)),
    "ag+sg": (DENSE, ("text", "aux", 0.6)),
    "direct": THREE,
    "inner": (("text", "main", 0.1), ("null", "main", 0.1), ("text", "main", 0.8)),
    "compositional": THREE,
    "ip2p": THREE,
    "icg": (DENSE, ("random", "main", 0.0)),
    "s2": (DENSE, NULL, DENSE),
    "apg": (DENSE, NULL),
    "cfg_zero": (DENSE, NULL),
    "fdg": (DENSE, NULL),
    "pdg": (DENSE, NULL),
    "pdg+c": (DENSE, DENSE),
    "ig": (DENSE, DENSE),
    "cfg+ig": (DENSE, NULL, DENSE, NULL),
    "sg+ig": (("text", "main", 0.1), ("text", "main", 0.8), DENSE),
    **dict.fromkeys(("slg", "pag", "tpg", "ssg"), (DENSE, NULL, DENSE)),
}


@pytest.mark.parametrize("name", METHODS)
def test_each_branch_asks_for_the_papers_condition_network_and_sparsity(name: str) -> None:
    asked = evaluations(make_guidance(name), 0.0)
    assert tuple((one.condition, one.network, one.gamma) for one in asked) == BRANCHES[name]


def test_each_branch_that_drops_tokens_has_its_own_draw() -> None:
    for name in METHODS:
        draws = [(e.draw, e.network) for e in evaluations(make_guidance(name), 0.5) if e.gamma]
        assert len(set(draws)) == len(draws)


def test_ag_sg_follows_the_papers_schedule() -> None:
    strong, weak = evaluations(make_guidance("ag+sg"), 0.0)
    assert (strong.gamma, weak.gamma, weak.network) == (0, 0.6, "aux")
    strong, weak = evaluations(make_guidance("ag+sg"), 1.0)
    assert (strong.gamma, weak.gamma) == (0.6, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma_strong": 0.8, "gamma_weak": 0.1}, "gamma_strong must be below gamma_weak"),
        ({"gamma_strong": 0.5, "gamma_weak": 0.5}, "gamma_strong must be below gamma_weak"),
        ({"gamma_weak": "linear:0.9:0.05"}, "gamma_strong must be below gamma_weak"),
        ({"gamma_weak": 1.0}, r"gamma_weak must be in \[0, 1\)"),
        ({"gamma_strong": -0.1}, r"gamma_strong must be in \[0, 1\)"),
        ({"omega": "inf"}, "omega must be finite, got inf"),
        ({"eta": 1}, "guidance sg has no setting eta; it takes omega, gamma_strong, gamma_weak"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_guidance("sg", settings)


@pytest.mark.parametrize("radius", [0, -1, "-inf", "linear:2:-1"])
def test_apg_clips_to_a_radius_above_zero(radius: float | str) -> None:
    with pytest.raises(ValueError, match="radius must be above 0"):
        make_guidance("apg", {"radius": radius})
    assert str(make_guidance("apg", {"radius": "inf"})).endswith("radius=inf momentum=-0.5")


def test_numbers_in_place_of_the_schedules_of_ag_sg_must_not_cross() -> None:
    with pytest.raises(ValueError, match="gamma_strong must be below gamma_weak"):
        make_guidance("ag+sg", {"omega": "linear:1:2", "gamma_strong": 0.8, "gamma_weak": 0.1})
    make_guidance("ag+sg", {"gamma_strong": 0.1, "gamma_weak": 0.8})
    make_guidance("ag+sg", {"gamma_strong": "linear:0:0.5", "gamma_weak": 0.3})


def test_an_unknown_name_is_answered_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown guidance 'pga'; valid: none cfg sg"):
        make_guidance("pga")


@pytest.mark.parametrize("drop_blocks", [0, 1, "linear:0.1:1.5"])
def test_s2_must_drop_some_blocks_and_not_all(drop_blocks: float | str) -> None:
    with pytest.raises(ValueError, match=r"drop_blocks must be in \(0, 1\)"):
        make_guidance("s2", {"drop_blocks": drop_blocks})


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="interval"):
        make_guidance("cfg", interval=(0.6, 0.2))


def test_a_config_takes_numbers_and_schedules_and_dumps_them() -> None:
    config = GuidanceConfig.model_validate(
        {"name": "sg", "omega": 2, "gamma_weak": "linear:0.9:0.5"}
    )
    assert str(config.build()) == "sg omega=2 gamma_strong=0.1 gamma_weak=linear:0=0.9:1=0.5"
    assert GuidanceConfig.model_validate(config.model_dump(mode="json")) == config


def random_predictions() -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 2, 2)
    first, second, x_t = (torch.randn(shape, generator=generator) for _ in range(3))
    return [first, second], x_t


def projection(**settings: float | str) -> Combine:
    new_combine = make_guidance("apg", {"omega": 2.5, **settings}).new_combine
    assert new_combine is not None
    return new_combine()


@pytest.mark.parametrize("name", ["eta", "radius", "momentum"])
def test_the_settings_of_apg_may_change_over_the_steps(name: str) -> None:
    ends = {"eta": (0, 1), "radius": (0.5, 3), "momentum": (-0.5, 0.5)}[name]
    changing = projection(**{name: f"linear:{ends[0]}:{ends[1]}"})
    constants = [projection(**{name: value}) for value in ends]
    predictions, x_t = random_predictions()
    for fraction, same, other in ((0.0, *constants), (1.0, *constants[::-1])):
        guided = changing(predictions, x_t, 0.3, fraction)
        expected, unlike = (rule(predictions, x_t, 0.3, fraction) for rule in (same, other))
        torch.testing.assert_close(guided, expected)
        # before the second step there is nothing that momentum could weigh
        assert (name, fraction) == ("momentum", 0.0) or not torch.allclose(guided, unlike)


def test_neutral_apg_is_cfg() -> None:
    (conditional, unconditional), x_t = random_predictions()
    rule = projection(eta=1, radius="inf", momentum=0)
    guided = rule([conditional, unconditional], x_t, 0.3, 0.3)
    torch.testing.assert_close(guided, 2.5 * conditional - 1.5 * unconditional)


def test_apg_agrees_with_diffusers_over_several_steps() -> None:
    rule = projection(eta=0.3, radius=1.5, momentum=-0.5)
    buffer = MomentumBuffer(-0.5)
    (conditional, unconditional), x_t = random_predictions()
    for timestep in (0.0, 0.4, 0.8):
        data = [x_t + (1 - timestep) * velocity for velocity in (conditional, unconditional)]
        expected = normalized_guidance(
            *data, 1.5, buffer, eta=0.3, norm_threshold=1.5, use_original_formulation=True
        )
        guided = rule([conditional, unconditional], x_t, timestep, timestep)
        torch.testing.assert_close(x_t + (1 - timestep) * guided, expected)


def test_momentum_counts_the_steps_of_a_solver_that_evaluates_twice() -> None:
    """Heun, by hand. At eta = 1 without a radius: D(c) + (omega - 1) / (1 - t) average, with t = 0.5
    and omega = 3 the difference to D(c) is 4 averages, and an average holds half the velocities'
    differences: 2 (difference + momentum * what the first evaluations of earlier steps left)."""
    rule = projection(omega=3, eta=1, radius="inf", momentum=-0.5)
    zero = torch.zeros(1, 1)

    def added(difference: float, fraction: float) -> float:
        predictions = [zero + difference, zero]
        return (rule(predictions, zero, 0.5, fraction) - predictions[0]).item()

    # the first evaluations, 8, 6 and 3, leave 8, then 6 - 8 / 2 = 2
    assert [added(8, 0.0), added(20, 0.0)] == [2 * 8, 2 * 20]
    assert [added(6, 0.5), added(10, 0.5)] == [2 * (6 - 4), 2 * (10 - 4)]
    assert added(3, 1.0) == 2 * (3 - 1)


def test_a_second_evaluation_leaves_the_next_step_as_it_was() -> None:
    heun, euler = projection(radius=1.5), projection(radius=1.5)
    predictions, x_t = random_predictions()
    for step in range(4):
        moved = [(1 + step) * velocity.roll(step) for velocity in predictions]
        fraction = step / 3
        first = heun(moved, x_t, 0.2, fraction)
        torch.testing.assert_close(first, euler(moved, x_t, 0.2, fraction), rtol=0, atol=0)
        heun(predictions, x_t + 1, 0.4, fraction)


@pytest.mark.parametrize("name", ["apg", "cfg_zero", "fdg"])
def test_rules_that_are_no_fixed_sum_act_on_each_sample_by_itself(name: str) -> None:
    conditional, unconditional, x_t = torch.randn(3, 4, 4, 8, 8)
    guidance = make_guidance(name)
    assert guidance.new_combine is not None
    together, alone = guidance.new_combine(), guidance.new_combine()
    for step in range(3):
        both = together((conditional, unconditional), x_t, step / 10, step / 9)
        one = alone((conditional[1:2], unconditional[1:2]), x_t[1:2], step / 10, step / 9)
        torch.testing.assert_close(both[1:2], one)


def test_cfg_zero_agrees_with_diffusers_over_several_steps() -> None:
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=2)
    combine = new_combine("cfg_zero", {"omega": 3.0, "zero_steps": 2})
    for step in range(4):
        conditional, unconditional = torch.randn(2, 2, 4, 8, 8)
        guider.set_state(step=step, num_inference_steps=4, timestep=torch.tensor(0))
        expected = guider.forward(conditional, unconditional).pred
        for _ in range(2):  # a solver's second evaluation is of the same step
            actual = combine((conditional, unconditional), conditional, step / 4, step / 3)
        torch.testing.assert_close(actual, expected)


def test_cfg_zero_between_parallel_predictions_is_the_conditional_one() -> None:
    conditional = torch.randn(2, 4, 8, 8)
    combine = new_combine("cfg_zero", {"omega": 3.0, "zero_steps": 0})
    guided = combine((conditional, 0.3 * conditional), conditional, 0.5, 0.5)
    torch.testing.assert_close(guided, conditional)


@pytest.mark.parametrize("side", [8, 16])
def test_fdg_agrees_with_diffusers(side: int) -> None:
    pytest.importorskip("kornia", reason="diffusers computes its pyramid with kornia")
    guider = FrequencyDecoupledGuidance(guidance_scales=[4.0, 1.7])
    guider.set_state(step=1, num_inference_steps=4, timestep=torch.tensor(0))
    conditional, unconditional = torch.randn(2, 2, 4, side, side)
    expected = guider.forward(conditional, unconditional).pred
    combine = new_combine("fdg", {"omega": 1.7, "omega_high": 4.0})
    actual = combine((conditional, unconditional), conditional, 0.5, 0.5)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_fdg_with_two_equal_scales_is_cfg_and_parts_flat_from_fine() -> None:
    conditional, unconditional = torch.randn(2, 2, 4, 16, 16)
    combine = new_combine("fdg", {"omega": 2.5, "omega_high": 2.5})
    guided = combine((conditional, unconditional), conditional, 0.5, 0.5)
    torch.testing.assert_close(guided, unconditional + 2.5 * (conditional - unconditional))
    combine = new_combine("fdg", {"omega": 2.0, "omega_high": 100.0})
    flat = torch.ones(1, 4, 16, 16)  # a flat difference has low frequencies alone
    torch.testing.assert_close(combine((flat, 0 * flat), flat, 0.5, 0.5), 2 * flat)
    checks = torch.ones(16, 16)
    checks[::2, ::2] = checks[1::2, 1::2] = -1
    fine = checks.expand(1, 4, 16, 16)  # the finest checks have high ones alone
    assert (combine((fine, 0 * fine), fine, 0.5, 0.5) - 100 * fine).abs().max() < 1e-3


def test_fdg_refuses_latents_that_it_cannot_halve() -> None:
    odd = torch.randn(1, 4, 9, 8)
    with pytest.raises(ValueError, match=r"both of their sides must be even .* got 9x8"):
        new_combine("fdg", {})((odd, odd), odd, 0.5, 0.5)


def new_combine(name: str, settings: dict[str, float]) -> Combine:
    """The rule of a method for one trajectory."""
    guidance = make_guidance(name, settings)
    assert guidance.new_combine is not None
    return guidance.new_combine()


def test_cfg_equals_diffusers_guider() -> None:
    conditional, unconditional = torch.randn(2, 3, 4, 5, 5)
    theirs = ClassifierFreeGuidance(guidance_scale=2.5)
    theirs.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(500))
    expected = theirs.forward(conditional, unconditional).pred
    weights = make_guidance("cfg", {"omega": 2.5}).coefficients(0.3)
    guided = weights[0] * conditional + weights[1] * unconditional
    torch.testing.assert_close(guided, expected)


@pytest.mark.parametrize(("name", "guider_class"), {"slg": SkipLayerGuidance, "pag": PAG}.items())
@pytest.mark.parametrize("with_cfg", [False, True])
def test_weakened_branches_are_weighed_as_diffusers_does(
    name: str, guider_class: type, with_cfg: bool
) -> None:
    """In the papers' form, whose scales are 0 without guidance: ours less one."""
    scales = {"slg": "skip_layer_guidance_scale", "pag": "perturbed_guidance_scale"}
    layers = {"slg": "skip_layer_guidance_layers", "pag": "perturbed_guidance_layers"}
    weight = 3.0 if with_cfg else 0.0
    settings = {scales[name]: 2.8, layers[name]: [0], "guidance_scale": weight}
    during = scales[name].removesuffix("_scale")
    settings |= {f"{during}_start": 0.0, f"{during}_stop": 1.0, "use_original_formulation": True}
    guider = guider_class(**settings)
    guider.set_state(step=1, num_inference_steps=4, timestep=torch.tensor(0))
    conditional, unconditional, weak = torch.randn(3, 2, 4, 8, 8)
    predictions = {"pred_cond": conditional, "pred_cond_skip": weak}
    predictions |= {"pred_uncond": unconditional} if with_cfg else {}
    expected = guider.forward(**predictions).pred
    guidance = make_guidance(name, {"omega": 3.8, "cfg_weight": weight})
    weights = guidance.coefficients(0.5)
    actual = weights[0] * conditional + weights[1] * unconditional + weights[2] * weak
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("given", [[7, 8], "7,8", (7, 8)])
def test_blocks_are_a_list_or_text(given: object) -> None:
    config = GuidanceConfig.model_validate({"name": "slg", "blocks": given})
    assert config.model_dump()["blocks"] == [7, 8]
    assert str(config.build()) == "slg omega=3.8 cfg_weight=0 blocks=7,8"
    assert GuidanceConfig.model_validate(config.model_dump()) == config


def test_blocks_count_from_either_end_and_the_default_is_the_middle_one() -> None:
    assert as_block_choice("0,-1,33").of(34) == (0, 33)
    assert as_block_choice("middle").of(34) == (17,)
    assert as_block_choice(-2).of(34) == (32,)
    with pytest.raises(ValueError, match=r"blocks 34: the network has blocks 0 to 33"):
        as_block_choice("34").of(34)


@pytest.mark.parametrize("value", ["", "seven", [], None, "1,,2", [1.5, "x"]])
def test_what_is_no_choice_of_blocks_is_answered_with_the_forms(value: object) -> None:
    with pytest.raises(ValueError, match="is no choice of blocks: give numbers such as 7,8,9"):
        as_block_choice(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ssg", {"swap_ratio": 0.6}, r"swap_ratio must be in \(0, 0.5\], got 0.6"),
        ("ssg", {"swap_ratio": 0}, r"swap_ratio must be in \(0, 0.5\], got 0"),
        ("cfg_zero", {"zero_steps": 1.5}, "zero_steps must be a number of steps"),
        ("cfg_zero", {"zero_steps": -1}, "zero_steps must be a number of steps"),
        ("pag", {"swap_ratio": 0.1}, "guidance pag has no setting swap_ratio; it takes omega"),
    ],
)
def test_bad_settings_of_the_rivals_are_refused(
    name: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_guidance(name, settings)
