"""The backbone that a run trains: which settings fit it, and how it is built. Torch comes late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.loading.loader_config import LoaderConfig
from launch.config import LaunchConfig
from t2i.config import ConfigError, Section, section
from t2i.encoders.text_config import TextEncoderConfig
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.objectives.config import InternalConfig
from t2i.training.objectives.masked_config import MaskedConfig
from t2i.training.objectives.model_guidance_config import (
    AutoScale,
    ModelGuidanceConfig,
    check_scale_input,
)
from t2i.training.training_config import TrainingConfig

if TYPE_CHECKING:
    import torch

    from t2i.encoders.text import TextEncoder
    from t2i.models.mask_dit import MaskDiT
    from t2i.models.sit import SiT
    from t2i.models.tr_dit import TRDiT
    from t2i.training.backbone import Backbone


class BackboneSections(Section):
    """The sections of all backbones; ``launch.train.model`` names the field that is used."""

    launch: LaunchConfig = section("launch.train")
    tr_dit: TRDiTConfig = section("t2i.models.tr_dit")
    sit: SiTConfig = section("t2i.models.sit")
    mask_dit: MaskDiTConfig = section("t2i.models.mask_dit")
    text: TextEncoderConfig = section("t2i.encoders.text")

    @property
    def chosen_model(self) -> TRDiTConfig | SiTConfig | MaskDiTConfig:
        """The section that ``launch.train.model`` names."""
        match self.launch.model:
            case "tr_dit":
                return self.tr_dit
            case "sit":
                return self.sit
            case "mask_dit":
                return self.mask_dit


def check_fits(sections: BackboneSections, training: TrainingConfig, loader: LoaderConfig) -> None:
    """Refuse settings of a stage that its model or its objective would ignore or cannot use.

    Raises:
        ConfigError: names the keys and the ways out.
    """
    problems = [
        *_model_problems(sections, training, loader),
        *_objective_problems(sections, training, loader),
        *_patience_problems(training, loader),
    ]
    if problems:
        raise ConfigError(problems[0])


def build_text_encoder(
    sections: BackboneSections, training: TrainingConfig, device: torch.device
) -> TextEncoder | None:
    """The frozen encoder of captions, in the precision of training; None for models of classes."""
    import torch

    from t2i.encoders.text import load_text_encoder

    if sections.launch.model != "tr_dit":
        return None
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    return load_text_encoder(sections.text, device, dtype)


def build_backbone(
    sections: BackboneSections,
    training: TrainingConfig,
    device: torch.device,
    encoder: TextEncoder | None = None,
    reference_captions: Sequence[str] = (),
) -> Backbone:
    """The model with random weights drawn from ``training.seed``, and what conditions it.

    ``encoder``: from `build_text_encoder`; ``reference_captions``: see `num_reference_captions`.
    """
    import torch

    from t2i.models.tr_dit import TRDiT
    from t2i.training.backbone import label_backbone, text_backbone

    torch.manual_seed(training.seed)
    model = build_model(sections)
    if isinstance(model, TRDiT):
        assert encoder is not None
        return text_backbone(model, encoder.encode, device, reference_captions)
    return label_backbone(model, device)


def build_model(sections: BackboneSections) -> TRDiT | SiT | MaskDiT:
    """The model with random weights; ``with torch.device("meta")`` for sizes only."""
    from t2i.models.mask_dit import MaskDiT
    from t2i.models.sit import SiT
    from t2i.models.tr_dit import TRDiT

    match sections.launch.model:
        case "tr_dit":
            return TRDiT(sections.tr_dit)
        case "sit":
            return SiT(sections.sit)
        case "mask_dit":
            return MaskDiT(sections.mask_dit)


def count_parameters(sections: BackboneSections) -> int:
    """Number of trained parameters, without memory for them."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(sections).parameters())


def num_reference_captions(sections: BackboneSections, training: TrainingConfig) -> int:
    """How many captions the model's references are drawn from; 0 = it needs none."""
    objective = training.objective
    if not isinstance(objective, ModelGuidanceConfig) or sections.launch.model != "tr_dit":
        return 0
    return objective.num_reference_captions if objective.num_references else 0


def _model_problems(
    sections: BackboneSections, training: TrainingConfig, loader: LoaderConfig
) -> list[str]:
    name, problems = sections.launch.model, []
    if name == "tr_dit" and loader.labels:
        problems.append(
            "data_pipeline.loader.labels: tr_dit is conditioned on captions and would ignore them; "
            "set it to false, or launch.train.model to sit or mask_dit"
        )
    if name != "tr_dit" and not loader.labels:
        problems.append(
            f"launch.train.model: {name} is conditioned on classes; set data_pipeline.loader.labels "
            "to true (and have labels in the latents)"
        )
    if name == "sit" and sections.sit.prediction != "velocity":
        problems.append(
            "t2i.models.sit.prediction: every objective teaches a velocity; set it to velocity"
        )
    held_out = loader.held_out * len(loader.datasets)
    if sections.launch.validation_samples > held_out:
        problems.append(
            f"launch.train.validation_samples {sections.launch.validation_samples}: only {held_out} "
            "samples are held out; set data_pipeline.loader.held_out (of each dataset) higher"
        )
    routes = {"tr_dit": sections.tr_dit.routes, "sit": sections.sit.routes}
    if training.gamma > 0 and name in routes and not routes[name]:
        problems.append(
            f"t2i.training.gamma {training.gamma:g} skips tokens, but t2i.models.{name}.routes is "
            "empty; set gamma to 0, or name a route"
        )
    if training.deep_path_dropout > 0 and not routes.get(name):
        problems.append(
            f"t2i.training.deep_path_dropout {training.deep_path_dropout:g} leaves out routed layers, "
            f"and {name} has none here; set it to 0, or name a route"
        )
    return problems


def _patience_problems(training: TrainingConfig, loader: LoaderConfig) -> list[str]:
    is_remote = any("://" in dataset.path for dataset in loader.datasets)
    if not is_remote or loader.retry_minutes < training.timeout_minutes:
        return []
    return [
        f"data_pipeline.loader.retry_minutes {loader.retry_minutes:g} must be below "
        f"t2i.training.timeout_minutes {training.timeout_minutes:g}, which ends a run that waits"
    ]


def _objective_problems(
    sections: BackboneSections, training: TrainingConfig, loader: LoaderConfig
) -> list[str]:
    key, name = "t2i.training.objective", sections.launch.model
    is_masked, gamma = isinstance(training.objective, MaskedConfig), training.gamma
    problems = []
    if is_masked and name != "mask_dit":
        problems.append(
            f"{key}: masked needs a model that can mask; set launch.train.model to mask_dit (it is "
            f"{name}), or the objective to flow_matching"
        )
    if is_masked and gamma == 0:
        problems.append(f"{key}: masked needs t2i.training.gamma above 0; the papers use 0.5")
    if name == "mask_dit" and gamma > 0 and not is_masked:
        problems.append(
            f"{key}: mask_dit masks tokens at t2i.training.gamma {gamma:g}, and only objective "
            "masked has a loss for them; choose it, or set gamma to 0"
        )
    has_head = sections.chosen_model.internal_after is not None
    if has_head and not isinstance(training.objective, InternalConfig):
        problems.append(
            f"t2i.models.{name}.internal_after {sections.chosen_model.internal_after}: objective "
            f"{training.objective.name} does not train an internal head; set it to null, or the "
            "objective to internal"
        )
    if not has_head and isinstance(training.objective, InternalConfig):
        problems.append(
            f"{key}: internal trains a head inside the network, and {name} has none; set "
            "internal_after of tr_dit or sit to a block before the route, or the objective to "
            "flow_matching"
        )
    if isinstance(training.objective, ModelGuidanceConfig):
        problems += _guidance_problems(training.objective, sections, loader)
    elif sections.chosen_model.scale_input:
        problems.append(
            f"t2i.models.{name}.scale_input: objective {training.objective.name} feeds no scale; "
            "set it to false, or the objective to "
            "{name: model_guidance, scale: {low: 1.0, high: 2.0}}"
        )
    return problems


def _guidance_problems(
    config: ModelGuidanceConfig, sections: BackboneSections, loader: LoaderConfig
) -> list[str]:
    key, problems = "t2i.training.objective", []
    try:
        check_scale_input(config, sections.chosen_model.scale_input)
    except ValueError as error:
        problems.append(f"{key}: {error}")
    follow = config.scale.follow if isinstance(config.scale, AutoScale) else None
    if follow == "validation_loss" and sections.launch.validation_samples == 0:
        problems.append(
            f"{key}.scale: an automatic scale follows the validation loss; set "
            "launch.train.validation_samples (and data_pipeline.loader.held_out) above 0, or follow: "
            "samples"
        )
    if follow == "samples" and sections.launch.samples_metric is None:
        problems.append(
            f"{key}.scale: it follows samples; set launch.train.samples_metric, such as "
            "{name: shapes}, and t2i.training.sample_every above 0"
        )
    problems += _reference_problems(config, sections)
    if config.num_references == 0 and loader.caption_dropout == 0:
        problems.append(
            f"{key}: the null condition is never trained; set data_pipeline.loader.caption_dropout "
            "above 0 (the paper: 0.1), or contrast with num_references other conditions"
        )
    if config.num_references > 0 and loader.caption_dropout > 0:
        problems.append(
            f"{key}.num_references {config.num_references} puts other conditions in the place of the "
            f"empty one, which data_pipeline.loader.caption_dropout {loader.caption_dropout:g} trains "
            "all the same; set it to 0, or num_references to 0"
        )
    return problems


def _reference_problems(config: ModelGuidanceConfig, sections: BackboneSections) -> list[str]:
    key, name, problems = "t2i.training.objective", sections.launch.model, []
    num_captions = config.num_reference_captions
    if config.num_references > num_captions and name == "tr_dit":
        problems.append(
            f"{key}.num_references {config.num_references}: they are drawn from "
            f"num_reference_captions {num_captions}; set at most that many, or more captions"
        )
    uses_captions = name == "tr_dit" and config.num_references > 0
    if num_captions != ModelGuidanceConfig().num_reference_captions and not uses_captions:
        problems.append(
            f"{key}.num_reference_captions {num_captions}: only tr_dit with num_references above 0 "
            f"draws captions (the model is {name}, num_references {config.num_references}); leave "
            "it out"
        )
    num_classes = {"sit": sections.sit.num_classes, "mask_dit": sections.mask_dit.num_classes}
    if name in num_classes and config.num_references > num_classes[name]:
        problems.append(
            f"{key}.num_references {config.num_references}: the model has {num_classes[name]} "
            "classes; set at most that many"
        )
    return problems
