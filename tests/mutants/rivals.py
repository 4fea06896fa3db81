"""Faults of Sparse Guidance's rivals: weak branches, SPRINT's fusion, internal heads, other rules."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

METHODS = ("tests/t2i/guidance/test_methods.py",)
SAMPLER = ("tests/t2i/sampling/test_sampler.py",)
SAMPLER_OF_CLASSES = ("tests/t2i/sampling/test_sampler_of_classes.py",)
FLOPS = ("tests/t2i/sampling/test_image_flops.py",)
PERTURBATION = ("tests/t2i/models/test_perturbation.py",)
FLOW_MATCHING = ("tests/t2i/training/objectives/test_flow_matching.py",)
INTERNAL = ("tests/t2i/training/objectives/test_internal.py",)

ROWS = "t2i/guidance/methods.py"
PROJECTION = "t2i/guidance/projection.py"
FREQUENCIES = "t2i/guidance/frequencies.py"
PERTURBING = "t2i/sampling/perturbing.py"
CHANGED = "t2i/models/perturbation.py"
FUSION = "t2i/models/fusion.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "pdg's weak branch is told the prompt",
        ROWS,
        'Branch("null", weakness=Weakness("no_deep_path"))',
        'Branch(weakness=Weakness("no_deep_path"))',
        METHODS,
    ),
    Mutant(
        "cfg+ig guides the null prediction from the other head alone",
        ROWS,
        "            (1 - internal_omega(u)) * omega(u),\n"
        "            (1 - internal_omega(u)) * (1 - omega(u)),\n",
        "            (1 - internal_omega(u)) * (1 - omega(u)),\n"
        "            (1 - internal_omega(u)) * omega(u),\n",
        METHODS,
    ),
    Mutant(
        "slg pag tpg ssg: CFG beside them pulls towards the empty prompt",
        ROWS,
        "lambda u: (omega(u) + cfg_weight(u), -cfg_weight(u), 1 - omega(u))",
        "lambda u: (omega(u) - cfg_weight(u), cfg_weight(u), 1 - omega(u))",
        METHODS,
    ),
    Mutant(
        "pag leaves out the block",
        ROWS,
        'Weakness("identity", blocks)',
        'Weakness("skip", blocks)',
        METHODS,
    ),
    Mutant(
        "cfg_zero stands still for a step more",
        PROJECTION,
        "if len(self.fractions) <= self.zero_steps(fraction):",
        "if len(self.fractions) <= self.zero_steps(fraction) + 1:",
        METHODS,
    ),
    Mutant(
        "cfg_zero counts evaluations, not steps",
        PROJECTION,
        "self.fractions.add(fraction)",
        "self.fractions.add(fraction + len(self.fractions))",
        METHODS,
    ),
    Mutant(
        "cfg_zero projects the wrong prediction",
        PROJECTION,
        "nearest = project(conditional, unconditional)",
        "nearest = project(unconditional, conditional)",
        METHODS,
    ),
    Mutant(
        "fdg's scales are swapped",
        FREQUENCIES,
        "self.omega(fraction) * low + self.omega_high(fraction) * (difference - low)",
        "self.omega_high(fraction) * low + self.omega(fraction) * (difference - low)",
        METHODS,
    ),
    Mutant(
        "fdg blurs once",
        FREQUENCIES,
        "return blur(double)",
        "return double",
        METHODS,
    ),
    Mutant(
        "tokens stay where they were moved",
        CHANGED,
        "return x_BTD + (block(moved_BTD) - moved_BTD)",
        "return block(moved_BTD)",
        PERTURBATION,
    ),
    Mutant(
        "ssg swaps the most alike",
        CHANGED,
        "similarity_BTT.flatten(1).argmin(dim=1)",
        "similarity_BTT.flatten(1).nan_to_num(posinf=-9.0).argmax(dim=1)",
        PERTURBATION,
    ),
    Mutant(
        "ssg's pairs may share a token",
        CHANGED,
        "            similarity_BTT[rows_B, :, token_B] = math.inf\n",
        "",
        PERTURBATION,
    ),
    Mutant(
        "pag attends as ever in TR-DiT",
        "t2i/models/layers.py",
        "        if is_identity:\n",
        "        if is_identity and x_BTD.shape[1] < 0:\n",
        PERTURBATION,
    ),
    Mutant(
        "pag attends as ever in SiT",
        "t2i/models/sit_layers.py",
        "        if is_identity:\n",
        "        if is_identity and x_BTD.shape[1] < 0:\n",
        PERTURBATION,
    ),
    Mutant(
        "sprint puts tokens that skipped back as they were",
        FUSION,
        "aside_BTD = shallow_BTD if fusion is None else fusion.masked(shallow_BTD)",
        "aside_BTD = shallow_BTD",
        PERTURBATION,
    ),
    Mutant(
        "sprint's halves are swapped",
        FUSION,
        "torch.cat((deep_BTD, shallow_BTD), dim=-1)",
        "torch.cat((shallow_BTD, deep_BTD), dim=-1)",
        PERTURBATION,
    ),
    Mutant(
        "a dropped deep path is dropped for all samples",
        FUSION,
        "torch.where(drop_deep_B[:, None, None], aside_BTD, deep_BTD)",
        "torch.where(drop_deep_B.any(), aside_BTD, deep_BTD)",
        FLOW_MATCHING,
    ),
    Mutant(
        "the deep path is dropped by the batch's order",
        "t2i/training/objectives/flow_matching.py",
        "draw = (batch.step, batch.sample_ids, (), batch.moments.device)",
        "draw = (batch.step, torch.arange(len(batch.sample_ids)), (), batch.moments.device)",
        FLOW_MATCHING,
    ),
    Mutant(
        "the internal head of TR-DiT reads the last tokens before the route",
        "t2i/models/tr_dit.py",
        "hidden = replace(hidden, tokens_BTD=tokens_BTD, middle_BTD=tokens_BTD)",
        "hidden = replace(hidden, tokens_BTD=tokens_BTD, middle_BTD=hidden.tokens_BTD)",
        PERTURBATION,
    ),
    Mutant(
        "the internal head of SiT is the last one",
        "t2i/models/sit.py",
        "return self._prediction(self.internal_head, hidden.middle_BTD, condition_BD, hidden.grid)",
        "return self._prediction(self.head, hidden.middle_BTD, condition_BD, hidden.grid)",
        PERTURBATION,
    ),
    Mutant(
        "both heads weigh the same",
        "t2i/training/objectives/internal.py",
        "final.loss_B + self.weight * internal.loss_B",
        "final.loss_B + internal.loss_B",
        INTERNAL,
    ),
    Mutant(
        "a perturbed prefix is shared",
        PERTURBING,
        "return min(weakness.blocks.of(config.num_layers)) >= first",
        "return True",
        SAMPLER_OF_CLASSES,
    ),
    Mutant(
        "nothing is shared with a perturbed branch",
        PERTURBING,
        "return min(weakness.blocks.of(config.num_layers)) >= first",
        "return False",
        FLOPS,
    ),
    Mutant(
        "tokens are shuffled alike for all images",
        PERTURBING,
        'rng.words(RUN_SEED, f"order of tokens {block}", step, seeds_B, num_tokens)',
        'rng.words(RUN_SEED, f"order of tokens {block}", step, 0 * seeds_B + len(seeds_B), num_tokens)',
        SAMPLER,
    ),
)
