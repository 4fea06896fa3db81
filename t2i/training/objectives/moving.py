"""Objectives as the trainer runs them: with what they need beside a batch, and what moves in a run.

Model-guidance needs a teacher and may move its scale; masked flow matching may move its lambda.
What moves is a few numbers, `state`: they are logged, saved in checkpoints and given back on
resume. The other files hold the formulas, which know nothing of a run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.training.averages.ema import averaged_network
from t2i.training.backbone import Backbone
from t2i.training.conditions import Condition, ContrastedConditions
from t2i.training.objectives.config import InternalConfig
from t2i.training.objectives.flow_matching import FlowMatching, Losses, Network
from t2i.training.objectives.internal import InternalFlowMatching
from t2i.training.objectives.masked import MaskedFlowMatching, term_gradients
from t2i.training.objectives.masked_config import BalancedWeight, MaskedConfig, balanced_weight
from t2i.training.objectives.model_guidance import ModelGuidance
from t2i.training.objectives.model_guidance_config import (
    PLAIN,
    AutoScale,
    ModelGuidanceConfig,
    ScaleState,
    update_scale,
)
from t2i.training.objectives.other_forwards import other_forwards
from t2i.training.training_config import TrainingConfig

State = Mapping[str, float | None]
# (name, whole fp32 average) of each of the model's parameters; all processes iterate to the end
GatherAverages = Callable[[], Iterable[tuple[str, Tensor]]]

# of MaskDiT: both of its loss terms go through it
LAST_LAYER = "head.out.weight"


class MovingObjective:
    """Flow matching of one head or two, and what the trainer asks of every objective.

    `begin_step`, `end_step`, `end_validation` and `end_sampling` are called by all processes together.
    """

    objective: FlowMatching | ModelGuidance | MaskedFlowMatching | InternalFlowMatching

    def __init__(self, objective: FlowMatching | InternalFlowMatching) -> None:
        self.objective = objective

    @property
    def state(self) -> State:
        """What has moved, for logs and checkpoints; the constructors of subclasses take it back."""
        return {}

    def begin_step(self, step: int, gather_averages: GatherAverages) -> None:
        """Before the first micro-batch of a step."""

    def training_loss(self, network: Network, batch: TrainingBatch, condition: Condition) -> Losses:
        """Losses of a micro-batch at its step. The tensors lie on one device."""
        assert isinstance(self.objective, FlowMatching | InternalFlowMatching)
        return self.objective.training_loss(network, batch, condition)

    def other_forwards(self, step: int) -> Sequence[float]:
        """gamma of each forward pass of a step's `training_loss` beside the trained one."""
        return ()

    def end_step(self) -> None:
        """After an update; not called when the step was skipped."""

    def validation_loss(
        self, network: Network, batch: TrainingBatch, condition: Condition, timestep: float
    ) -> Losses:
        """Dense flow-matching losses of a held-out batch, all at time ``timestep``."""
        return self.objective.validation_loss(network, batch, condition, timestep)

    def end_validation(self, loss: float) -> None:
        """After a validation with this mean loss over all processes."""

    def end_sampling(self, quality: float) -> None:
        """After samples of the average of this quality, higher is better; the same everywhere."""


class MovingGuidance(MovingObjective):
    """Model-guidance with the run's own weight average as the teacher.

    Each process holds all of the teacher's weights, in the precision of training.
    """

    objective: ModelGuidance

    def __init__(
        self,
        base: FlowMatching,
        config: ModelGuidanceConfig,
        backbone: Backbone,
        dtype: torch.dtype,
        device: torch.device,
        state: State,
    ) -> None:
        """The network must not be sharded yet; see `make_objective`.

        Raises:
            ValueError: the config does not fit the network.
        """
        scale = state.get("scale")
        auto = PLAIN if scale is None else ScaleState(scale, state.get("quality"))
        self.objective = ModelGuidance(base, config, backbone.takes_scale, auto)
        self.config = config
        self.conditioner = backbone.conditioner
        names = {id(parameter): name for name, parameter in backbone.model.named_parameters()}
        averages = {
            name: torch.empty_like(parameter, device=device, dtype=dtype, requires_grad=False)
            for name, parameter in backbone.network.named_parameters()
        }
        self.averages = {
            names[id(parameter)]: averages[name]
            for name, parameter in backbone.network.named_parameters()
        }
        self.teacher = averaged_network(copy.deepcopy(backbone.network).to("meta"), averages)
        self.is_filled = False

    @property
    def state(self) -> State:
        """Scale and running quality, when they are automatic."""
        return asdict(self.objective.auto) if isinstance(self.config.scale, AutoScale) else {}

    def begin_step(self, step: int, gather_averages: GatherAverages) -> None:
        """Make the present average the teacher when it is asked and due."""
        is_due = not self.is_filled or step % self.config.teacher_every == 0
        if self.objective.asks_teacher(step) and is_due:
            for name, average in gather_averages():
                self.averages[name].copy_(average)
            self.is_filled = True

    def training_loss(self, network: Network, batch: TrainingBatch, condition: Condition) -> Losses:
        """Losses against the guided target."""
        conditions = ContrastedConditions(
            condition, self._references(batch), self.conditioner.dropped(batch)
        )
        return self.objective.training_loss(network, self.teacher, batch, conditions)

    def other_forwards(self, step: int) -> Sequence[float]:
        """The teacher's, where it is asked."""
        if not self.objective.asks_teacher(step):
            return ()
        return other_forwards(self.config, self.objective.base.gamma)

    def end_validation(self, loss: float) -> None:
        """Move the automatic scale, if it follows the loss: the quality is minus that."""
        self._move_scale("validation_loss", -loss)

    def end_sampling(self, quality: float) -> None:
        """Move the automatic scale, if it follows samples."""
        self._move_scale("samples", quality)

    def _move_scale(self, seen: str, quality: float) -> None:
        scale = self.config.scale
        if isinstance(scale, AutoScale) and scale.follow == seen:
            auto = update_scale(scale, self.objective.auto, quality)
            self.objective = replace(self.objective, auto=auto)

    def _references(self, batch: TrainingBatch) -> tuple[Condition, ...]:
        if self.config.num_references == 0:
            return (self.conditioner.null(len(batch.sample_ids)),)
        seed, count = self.objective.base.seed, self.config.num_references
        return self.conditioner.references(count, seed, batch.step, batch.sample_ids)


class MovingMasked(MovingObjective):
    """Masked flow matching; an automatic lambda follows the gradients of whole global batches.

    The gradients are measured beside training: a forward pass of its own, and from the losses back
    to the last layer alone. The engine would take a second backward pass through its own forward
    pass for training.
    """

    objective: MaskedFlowMatching

    def __init__(
        self, base: FlowMatching, config: MaskedConfig, backbone: Backbone, state: State
    ) -> None:
        """The network must not be wrapped yet; see `make_objective`."""
        self.objective = MaskedFlowMatching(base, config)
        self.weight_config = config.weight
        self.weight = state.get("lambda")
        self.parameters = dict(backbone.network.named_parameters())
        self.skeleton = copy.deepcopy(backbone.network).to("meta")
        self.is_measuring = False
        self.gradients: list[Tensor] = []

    @property
    def state(self) -> State:
        """lambda, when it is automatic."""
        return {"lambda": self.weight} if isinstance(self.weight_config, BalancedWeight) else {}

    def begin_step(self, step: int, gather_averages: GatherAverages) -> None:
        """Decide whether to measure."""
        weight = self.weight_config
        self.is_measuring = isinstance(weight, BalancedWeight) and step % weight.every == 0
        self.gradients = []  # a skipped step may have left some

    def training_loss(self, network: Network, batch: TrainingBatch, condition: Condition) -> Losses:
        """Both terms, weighted by the present lambda."""
        if self.is_measuring:
            self.gradients.append(self._term_gradients(batch, condition))
        terms = self.objective.training_terms(network, batch, condition)
        if not isinstance(self.weight_config, BalancedWeight):
            return terms.weighted(self.weight_config)
        return terms.weighted(1.0 if self.weight is None else self.weight)

    def other_forwards(self, step: int) -> Sequence[float]:
        """The one that lambda is measured by, where it is."""
        if not self.is_measuring:
            return ()
        return other_forwards(self.objective.config, self.objective.base.gamma)

    def end_step(self) -> None:
        """Move lambda by the norms of the gradients of all micro-batches of all processes."""
        if self.is_measuring:
            assert isinstance(self.weight_config, BalancedWeight)
            gradients = torch.stack(self.gradients).sum(dim=0)
            dist.all_reduce(gradients)
            visible_norm, masked_norm = gradients.flatten(1).norm(dim=1).tolist()
            self.weight = balanced_weight(
                self.weight_config, self.weight, visible_norm, masked_norm
            )

    def _term_gradients(self, batch: TrainingBatch, condition: Condition) -> Tensor:
        """Of the last layer's present weights, (2, ...) float32."""
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        weights[LAST_LAYER].requires_grad_()

        def network(*inputs: object, **masks: object) -> Tensor:
            answer: Tensor = torch.func.functional_call(
                self.skeleton, weights, inputs, masks, strict=True
            )
            return answer

        terms = self.objective.training_terms(network, batch, condition)
        return term_gradients(terms, weights[LAST_LAYER])


def make_objective(
    config: TrainingConfig, backbone: Backbone, device: torch.device, state: State
) -> MovingObjective:
    """The objective of a run.

    Args:
        backbone: with its starting weights, before an engine wraps (and perhaps shards) it.
        device: of training.
        state: of a checkpoint's `MovingObjective.state`; {} = new. What another objective has left
            in it is not read.

    Raises:
        ValueError: objective and backbone do not fit together.
    """
    is_bernoulli = config.routing_draw == "bernoulli"
    base = FlowMatching(
        config.seed,
        config.gamma,
        config.timestep,
        backbone.patch_size,
        is_bernoulli,
        backbone.num_draws,
        config.deep_path_dropout,
    )
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    match config.objective:
        case ModelGuidanceConfig() as guidance:
            return MovingGuidance(base, guidance, backbone, dtype, device, state)
        case MaskedConfig() as masked:
            return MovingMasked(base, masked, backbone, state)
        case InternalConfig(weight=weight):
            return MovingObjective(InternalFlowMatching(base, weight))
        case _:
            return MovingObjective(base)
