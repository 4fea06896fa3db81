"""The table of methods: coefficients, formulas against the papers' equations, refused settings."""

from collections.abc import Callable

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance

from t2i.guidance.branches import Combine, Evaluation, evaluations, plan
from t2i.guidance.guidance_config import GuidanceConfig
from t2i.guidance.methods import METHODS, make_guidance

FRACTIONS = (0.0, 0.37, 1.0)
OMEGA_METHODS = [name for name, method in METHODS.items() if "omega" in method.defaults]
LINEAR = [name for name in METHODS if make_guidance(name).new_combine is None]
W_C, W_S = 1.7, 0.6


def test_the_rows_of_the_spec_are_there() -> None:
    names = "none cfg sg cfg+sg ag ag+sg direct inner compositional ip2p icg s2 apg"
    assert list(METHODS) == names.split()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_coefficients_sum_to_one(name: str, fraction: float) -> None:
    guidance = make_guidance(name)
    assert sum(guidance.coefficients(fraction)) == pytest.approx(1)
    assert len(guidance.coefficients(fraction)) == len(guidance.branches)


@pytest.mark.parametrize("name", [name for name in LINEAR if name in OMEGA_METHODS])
def test_omega_one_is_the_strong_branch_alone(name: str) -> None:
    others = {"block_weight": 0} if name == "s2" else {}
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
    value = {("text", 0.0): S_C, ("null", 0.0): S_0, ("text", 0.1): W_C_}
    guided = sum(w * value[term.condition, term.drop_blocks] for term, w in terms.items())
    assert guided == pytest.approx(S_0 + W_C * (S_C - S_0) - W_S * (W_C_ - S_C))


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
    with pytest.raises(ValueError, match=r"unknown guidance 'pag'; valid: none cfg sg"):
        make_guidance("pag")


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


def test_cfg_equals_diffusers_guider() -> None:
    conditional, unconditional = torch.randn(2, 3, 4, 5, 5)
    theirs = ClassifierFreeGuidance(guidance_scale=2.5)
    theirs.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(500))
    expected = theirs.forward(conditional, unconditional).pred
    weights = make_guidance("cfg", {"omega": 2.5}).coefficients(0.3)
    guided = weights[0] * conditional + weights[1] * unconditional
    torch.testing.assert_close(guided, expected)
