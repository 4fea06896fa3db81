"""Guided sampling of latents: runs what a guidance method asks for, and nothing twice.

A condition is text (TR-DiT) or class labels (SiT, DiT, MaskDiT). For a batch of images, text keys
and values are computed once per caption and reused at every step by every branch. At a step, equal
branches are merged and those of weight zero left out (`t2i.guidance.branches.plan`); the layers
before the route run once per condition; branches that keep equally many tokens run as one batch.

All draws of an image come from its own seed: in another batch it is the same up to rounding.

Shape suffixes: B images, C latent channels, H x W latents, K kept tokens, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from t2i import rng
from t2i.encoders.text import TextStates
from t2i.guidance.branches import (
    Condition,
    Evaluation,
    Guidance,
    Network,
    batches,
    evaluations,
    plan,
)
from t2i.guidance.weaknesses import NO_WEAKNESS, Weakness
from t2i.models.backbone import Backbone
from t2i.models.perturbation import Perturbation
from t2i.models.routes import num_kept
from t2i.models.routing import Kept, draw_keep
from t2i.models.sit import SiT
from t2i.models.tr_dit import TextContext, TRDiT, concatenate_text
from t2i.sampling.perturbing import (
    RUN_SEED,
    check_weaknesses,
    make_perturbation,
    shares_first_blocks,
)
from t2i.sampling.solvers import OnStep, integrate, step_fraction, time_grid


@dataclass(frozen=True)
class ConditionText:
    """One condition of B images: P distinct captions, and which of them each image has."""

    states: TextStates
    rows_B: Tensor


# number of the step -> which of a pool each image has, (B,) int64
Rows = Callable[[int], Tensor]


@dataclass(frozen=True)
class Redrawn:
    """A condition that B images draw anew at each step from a pool: P captions, or labels (P,) int64."""

    pool: TextStates | Tensor
    rows: Rows


# one condition of B images: text, class labels (B,) int64, or either drawn anew at each step
Given = ConditionText | Tensor | Redrawn
# what a network reads of it at each step
Context = TextContext | Tensor


class GuidedField:
    """The guided velocity as a function of (x_t, t, step): what a solver integrates."""

    def __init__(
        self,
        networks: Mapping[str, Backbone],
        conditions: Mapping[Condition, Given],
        guidance: Guidance,
        seeds_B: Tensor,
        num_steps: int,
        bernoulli: bool = False,
        model_scale: float | None = None,
    ) -> None:
        """Prepare every condition that the method asks for, for each network.

        Args:
            networks: "main", and "aux" for methods that ask for a second network.
            conditions: those that the method asks for, each for the B images.
            guidance: the method.
            seeds_B: (B,) int64, one seed per image.
            num_steps: steps of the solver, for schedules.
            bernoulli: keep each token with probability 1 - gamma, not a fixed number of tokens.
            model_scale: w that networks with a scale input are fed, 0 with the null condition as in
                their training; None = 1, plain.

        Raises:
            ValueError: the method asks for an aux network and there is none, or for a route, a
                block or a head that the network does not have; a network that predicts noise (DiT)
                by itself; a model_scale and no network that takes it.
        """
        if guidance.uses("aux") and "aux" not in networks:
            raise ValueError(
                f"guidance {guidance.name} needs a second, weaker network: --aux CHECKPOINT"
            )
        for network in networks.values():
            if isinstance(network, SiT) and network.config.prediction != "velocity":
                raise ValueError(
                    f"the network predicts {network.config.prediction}, sampling needs a velocity: "
                    "wrap it in t2i.models.epsilon.EpsilonToVelocity"
                )
        check_weaknesses(guidance, networks["main"])
        if model_scale is not None and not any(one.config.scale_input for one in networks.values()):
            raise ValueError(
                "the model has no scale input: leave --model-scale (model_scale) out; --omega sets "
                "the scale of a guidance method"
            )
        self.networks = networks
        self.guidance = guidance
        self.seeds_B = seeds_B
        self.num_steps = num_steps
        self.bernoulli = bernoulli
        self.model_scale = 1.0 if model_scale is None else model_scale
        self.combine = guidance.new_combine() if guidance.new_combine else None
        pairs = dict.fromkeys((branch.network, branch.condition) for branch in guidance.branches)
        self.prepared: dict[tuple[str, Condition], Context] = {
            (name, condition): prepare(networks[name], conditions[condition])
            for name, condition in pairs
        }
        self.rows: dict[Condition, Rows] = {
            name: given.rows for name, given in conditions.items() if isinstance(given, Redrawn)
        }
        self.joined: dict[tuple[str, tuple[Condition, ...]], tuple[int | None, Context]] = {}

    def __call__(self, x_BCHW: Tensor, timestep: float, step: int) -> Tensor:
        """The guided velocity, (B, C, H, W) float32; ``x_BCHW`` float32, ``timestep`` in [0, 1)."""
        fraction = step_fraction(step, self.num_steps)
        if self.combine is None or not self.guidance.is_active(timestep):
            weights = plan(self.guidance, timestep, fraction)
            predictions = self.predict(tuple(weights), x_BCHW, timestep, step)
            return weighted_sum(weights, predictions)
        wanted = evaluations(self.guidance, fraction)
        predictions = self.predict(tuple(dict.fromkeys(wanted)), x_BCHW, timestep, step)
        in_order = [predictions[evaluation] for evaluation in wanted]
        return self.combine(in_order, x_BCHW, timestep, fraction)

    def predict(
        self, wanted: Sequence[Evaluation], x_BCHW: Tensor, timestep: float, step: int
    ) -> dict[Evaluation, Tensor]:
        """The float32 velocity (B, C, H, W) of each of some distinct evaluations."""
        velocities: dict[Evaluation, Tensor] = {}
        for name, prefix in dict.fromkeys(map(self._prefix, wanted)):
            own = [
                evaluation for evaluation in wanted if self._prefix(evaluation) == (name, prefix)
            ]
            network = self.networks[name]
            num_tokens = x_BCHW[0, 0].numel() // network.config.patch_size**2
            conditions = tuple(dict.fromkeys(evaluation.condition for evaluation in own))
            hidden = self._before_route(name, conditions, x_BCHW, timestep, step, prefix)
            for batch in self._batches(own, num_tokens):
                together = self._from_route(name, conditions, hidden, batch, num_tokens, step)
                velocities.update(zip(batch, together.float().chunk(len(batch)), strict=True))
        return velocities

    def _prefix(self, evaluation: Evaluation) -> tuple[Network, Weakness]:
        """Whose blocks before the route a prediction is made from, and how they are weakened."""
        config = self.networks[evaluation.network].config
        is_shared = shares_first_blocks(evaluation.weakness, config)
        return evaluation.network, NO_WEAKNESS if is_shared else evaluation.weakness

    def _batches(
        self, wanted: Sequence[Evaluation], num_tokens: int
    ) -> list[tuple[Evaluation, ...]]:
        """What one forward computes: branches that keep equally many tokens in each image."""
        if self.bernoulli:
            return [(evaluation,) for evaluation in wanted]
        return batches(wanted, partial(num_kept, num_tokens))

    def _before_route(
        self,
        name: Network,
        conditions: tuple[Condition, ...],
        x_BCHW: Tensor,
        timestep: float,
        step: int,
        weakness: Weakness,
    ) -> Any:
        """The first layers, once per condition: all rows of the first condition, then the next."""
        network = self.networks[name]
        timestep_B = torch.full((len(x_BCHW),), timestep, device=x_BCHW.device)
        rows = torch.arange(len(x_BCHW), device=x_BCHW.device).repeat(len(conditions))
        if network.config.scale_input:  # it tells the conditions apart
            scales = [0.0 if one == "null" else self.model_scale for one in conditions]
            scale_B = torch.tensor(scales, device=x_BCHW.device).repeat_interleave(len(x_BCHW))
            hidden = network.embed(x_BCHW[rows], timestep_B[rows], scale_B)
        else:
            hidden = network.embed(x_BCHW, timestep_B).select(rows)
        num_tokens = x_BCHW[0, 0].numel() // network.config.patch_size**2
        perturbation = self._perturbation(weakness, name, step, num_tokens, len(conditions))
        return network.before_route(hidden, self._context(name, conditions, step), perturbation)

    def _from_route(
        self,
        name: Network,
        conditions: tuple[Condition, ...],
        hidden: Any,
        batch: tuple[Evaluation, ...],
        num_tokens: int,
        step: int,
    ) -> Tensor:
        """The remaining layers for branches of one weakness that keep equally many tokens, one after
        the other."""
        asked = tuple(evaluation.condition for evaluation in batch)
        if asked != conditions:
            images = torch.arange(len(self.seeds_B), device=self.seeds_B.device)
            rows = torch.cat([images + len(images) * conditions.index(one) for one in asked])
            hidden = hidden.select(rows)
        context, weakness = self._context(name, asked, step), batch[0].weakness
        if weakness.kind == "internal":
            return self.networks[name].internal_velocity(hidden, context)
        keep_ids = keep_mask = None
        gamma = batch[0].gamma
        if (self.bernoulli and gamma > 0) or num_kept(num_tokens, gamma) < num_tokens:
            num_draws = self.networks[name].config.num_draws
            kept = self._keep(batch, num_tokens, step, num_draws)
            keep_ids, keep_mask = kept.ids_BK, kept.mask_BK
        perturbation = self._perturbation(weakness, name, step, num_tokens, len(batch))
        return self.networks[name].from_route(hidden, context, keep_ids, keep_mask, perturbation)

    def _perturbation(
        self, weakness: Weakness, name: Network, step: int, num_tokens: int, copies: int
    ) -> Perturbation:
        """What a network does differently for rows that hold all images ``copies`` times."""
        return make_perturbation(
            weakness, self.networks[name], step, self.seeds_B, num_tokens, copies
        )

    def _keep(
        self, batch: tuple[Evaluation, ...], num_tokens: int, step: int, num_draws: int
    ) -> Kept:
        """The kept tokens of each branch and image, fresh per image, step and draw."""
        draws = [
            draw_keep(
                RUN_SEED,
                f"routing {evaluation.draw}",
                step,
                self.seeds_B,
                num_tokens,
                evaluation.gamma,
                self.bernoulli,
                self.seeds_B.device,
                num_draws,
            )
            for evaluation in batch
        ]
        if self.bernoulli:  # a batch of one branch
            return draws[0]
        return Kept(torch.cat([draw.ids_BK for draw in draws], dim=-2))

    def _context(self, name: str, conditions: tuple[Condition, ...], step: int) -> Context:
        """Several prepared conditions, one after the other; joined anew only when one is redrawn."""
        key = name, conditions
        drawn_at = None if self.rows.keys().isdisjoint(conditions) else step
        if key not in self.joined or self.joined[key][0] != drawn_at:
            contexts = [self._drawn(name, condition, step) for condition in conditions]
            self.joined[key] = drawn_at, join(contexts)
        return self.joined[key][1]

    def _drawn(self, name: str, condition: Condition, step: int) -> Context:
        """A prepared condition of the B images at a step."""
        context = self.prepared[name, condition]
        if condition not in self.rows:
            return context
        rows_B = self.rows[condition](step)
        return context[rows_B] if isinstance(context, Tensor) else context.select(rows_B)


def prepare(network: Backbone, given: Given) -> Context:
    """Labels as they are; of text all blocks' keys and values, computed once per caption.

    Of a condition that is redrawn, those of its pool.
    """
    if isinstance(given, ConditionText):
        return _prepare_text(network, given.states).select(given.rows_B)
    pool = given.pool if isinstance(given, Redrawn) else given
    return pool if isinstance(pool, Tensor) else _prepare_text(network, pool)


def _prepare_text(network: Backbone, texts: TextStates) -> TextContext:
    assert isinstance(network, TRDiT)
    return network.prepare_text(texts.states, texts.mask)


def join(contexts: Sequence[Context]) -> Context:
    """One batch out of the contexts of several conditions, all text or all labels."""
    texts = [context for context in contexts if isinstance(context, TextContext)]
    labels = [context for context in contexts if isinstance(context, Tensor)]
    return concatenate_text(texts) if texts else torch.cat(labels)


def weighted_sum(
    weights: Mapping[Evaluation, float], values: Mapping[Evaluation, Tensor]
) -> Tensor:
    """The sum of weight times value, in float32."""
    first, *others = weights
    total = weights[first] * values[first]
    for evaluation in others:
        total = total.add(values[evaluation], alpha=weights[evaluation])
    return total


@torch.inference_mode()
def sample_latents(
    networks: Mapping[str, Backbone],
    conditions: Mapping[Condition, Given],
    guidance: Guidance,
    seeds: Sequence[int],
    latent_shape: tuple[int, int, int],
    num_steps: int = 50,
    solver: str = "euler",
    shift: float = 1.0,
    on_step: OnStep | None = None,
    bernoulli: bool = False,
    model_scale: float | None = None,
) -> Tensor:
    """Noise to latents, one image per seed.

    Args:
        networks: "main" and, for methods that ask for it, "aux"; all on one device.
        conditions: those that the method asks for, each for the B images: text, or class labels.
        guidance: the method, see `t2i.guidance.methods.make_guidance`.
        seeds: B integers in [0, 2**63); all draws of an image come from its own.
        latent_shape: C, H, W.
        num_steps, solver, shift: see `t2i.sampling.solvers`.
        on_step: called after each step with (step, t, x); what it returns replaces x.
        bernoulli: keep each token with probability 1 - gamma, not a fixed number of tokens.
        model_scale: see `GuidedField`.

    Returns:
        (B, C, H, W) float32 normalised latents.

    Raises:
        ValueError: unknown solver, a missing aux network, a network that predicts noise (DiT) by
            itself, gamma > 0 for a model without routes, a model_scale that no network takes.
    """
    device = next(networks["main"].parameters()).device
    seeds_B = torch.tensor(seeds, dtype=torch.int64, device=device)
    field = GuidedField(networks, conditions, guidance, seeds_B, num_steps, bernoulli, model_scale)
    noise = rng.normal(RUN_SEED, "sampling noise", 0, seeds_B, latent_shape, device)
    return integrate(field, noise, time_grid(num_steps, shift), solver, on_step)
