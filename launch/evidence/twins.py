"""The models that docs/evidence.md compares: twins that differ in one thing, at equal training FLOPs.

A twin is a config and settings that differ from it. Twins of a family have the data, the sizes, the
batch and the schedule of its routed one, and so many steps that all have executed as many FLOPs, by
the counter of `t2i.models.costs.macs`: cheaper steps are more of them. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from launch.backbones import check_fits
from launch.config import stage_section
from launch.train_t2i import Config
from t2i.config import load_config
from t2i.models.costs.macs import training_flops
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.objectives.other_forwards import other_forwards, sample_flops, share_of_steps
from t2i.training.training_config import TrainingConfig

IMAGE_TOKENS = 64  # 128 pixels by the VAE's 8 and patches of 2
TEXT_TOKENS = 64  # of a caption, padding included, as FLOPs are counted
STAGE_1, STAGE_2 = "launch.train.stage1", "launch.train.stage2"
# of the run, in steps: checkpoints that are the weaker networks of guidance ag and ag+sg
EARLY_SHARES = (0.025, 0.05, 0.1, 0.25)
# of the FLOPs: the second stage, whose learning rate falls to zero over most of it
SECOND_SHARE, DECAY_SHARE = 0.3, 0.25
TUNING_SHARE = 0.05  # of the FLOPs that a twin had, in a dense fine-tuning on top of them


@dataclass(frozen=True)
class Family:
    """Twins of one conditioning.

    Attributes:
        config: file below configs/.
        model: the section of ``t2i.models`` that is trained, unless a kind names another.
        budget: steps of the routed twin; its FLOPs are those of all.
        two_stages: every twin has two stages, as the shipped model; else those that need them.
        made_before: folders of the stages of the routed twin of seed 0, which launch/make_nano.sh
            trains.
    """

    config: str
    model: str
    budget: int
    two_stages: bool
    made_before: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """What a twin is.

    Attributes:
        about: a line for the table of models.
        settings: as --set takes them; {model} is the family's.
        ends_dense: the second stage keeps all tokens, so a family of one stage gets a second.
        families: that have it.
    """

    about: str
    settings: tuple[str, ...]
    ends_dense: bool = False
    families: tuple[str, ...] = ("text", "classes")

    @property
    def dense_settings(self) -> tuple[str, ...]:
        """Of a second stage in which nothing is dropped: a masked network's loss is of all tokens."""
        all_tokens = f"{STAGE_2}.training.gamma=0"
        if not any("name: masked" in setting for setting in self.settings):
            return (all_tokens,)
        return all_tokens, f"{STAGE_2}.training.objective={{name: flow_matching}}"


FAMILIES: Mapping[str, Family] = {
    "text": Family(
        "evidence_text.yaml",
        "tr_dit",
        20_000,
        two_stages=True,
        made_before=("outputs/nano_training/runs/stage1", "outputs/nano_training/runs/stage2"),
    ),
    "classes": Family(
        "evidence_classes.yaml",
        "sit",
        10_000,
        two_stages=False,
        made_before=("outputs/nano_training/runs_sit",),
    ),
}
KINDS: Mapping[str, Kind] = {
    "dense": Kind("all tokens run all layers", ("t2i.training.gamma=0",)),
    "routed": Kind("half of the tokens skip the route (TREAD)", ("t2i.training.gamma=0.5",)),
    "sprint": Kind(
        "three quarters skip, deep and shallow states are fused (SPRINT); then dense",
        (
            "t2i.models.{model}.after_route=fuse",
            "t2i.training.gamma=0.75",
            "t2i.training.deep_path_dropout=0.1",
        ),
        ends_dense=True,
    ),
    "guided": Kind(
        "dense, trained on its own guided prediction (Model-guidance, scale 1.5)",
        ("t2i.training.gamma=0", "t2i.training.objective={name: model_guidance, scale: 1.5}"),
    ),
    "internal": Kind(
        "dense, with a second head after two of eight blocks (Internal Guidance)",
        (
            "t2i.training.gamma=0",
            "t2i.models.{model}.internal_after=1",
            "t2i.training.objective={name: internal}",
        ),
    ),
    "masked": Kind(
        "half of the tokens are masked (MaskDiT)",
        (
            "launch.train.model=mask_dit",
            "t2i.training.gamma=0.5",
            "t2i.training.objective={name: masked}",
        ),
        families=("classes",),
    ),
}
NUM_SEEDS = {"dense": 3, "routed": 3}  # one of all others
TUNED = ("routed", "masked")  # kinds of which a dense fine-tuning is made, as papers before did


@dataclass(frozen=True)
class Stage:
    """One call of launch/train_t2i.py.

    Attributes:
        number: of the stage, 1 or 2.
        folder: of the run.
        settings: as --set takes them.
        steps: of the stage.
        keep_at: steps of its early checkpoints.
    """

    number: Literal[1, 2]
    folder: Path
    settings: tuple[str, ...]
    steps: int
    keep_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Twin:
    """A model of the comparison.

    Attributes:
        family, kind: see `FAMILIES`, `KINDS`.
        seed: of weights and draws.
        is_tuned: whether it is its namesake after a dense fine-tuning.
    """

    family: str
    kind: str
    seed: int = 0
    is_tuned: bool = False

    @property
    def name(self) -> str:
        """For example classes-routed-0, classes-routed-0-tuned."""
        return f"{self.family}-{self.kind}-{self.seed}" + ("-tuned" if self.is_tuned else "")

    @property
    def config_file(self) -> Path:
        """Below the repository's root."""
        return Path("configs") / FAMILIES[self.family].config

    @property
    def own_settings(self) -> tuple[str, ...]:
        """Those of its kind and seed."""
        model = FAMILIES[self.family].model
        own = [setting.replace("{model}", model) for setting in KINDS[self.kind].settings]
        return (*own, f"t2i.training.seed={self.seed}")

    def folder(self, stage: int, output: Path) -> Path:
        """Of the run of a stage; ``output`` is the folder of all twins."""
        if self == Twin(self.family, "routed"):
            return Path(FAMILIES[self.family].made_before[stage - 1])
        return output / self.name / f"stage{stage}"

    def stages(self, root: Path, output: Path) -> list[Stage]:
        """Its trainings, in order.

        Args:
            root: of the repository, for the configs.
            output: folder of all twins.
        """
        family, kind = FAMILIES[self.family], KINDS[self.kind]
        sparse, dense = (flops_of_step(root, self, is_dense) for is_dense in (False, True))
        budget = family.budget * flops_of_step(root, Twin(self.family, "routed"))
        whole = round(budget / sparse)
        if self.is_tuned:
            return [self._tuning(output, round(TUNING_SHARE * budget / dense))]
        if not family.two_stages and not kind.ends_dense:
            return [self._first(output, whole, whole, decay=round(SECOND_SHARE * whole))]
        rest = round(SECOND_SHARE * budget / (dense if kind.ends_dense else sparse))
        first = self._first(output, round((1 - SECOND_SHARE) * budget / sparse), whole, decay=0)
        return [first, self._second(output, rest)]

    def _first(self, output: Path, steps: int, whole: int, decay: int) -> Stage:
        """At a constant rate but for ``decay`` steps; ``whole``: of the run, for early checkpoints."""
        folder = self.folder(1, output)
        keep_at = tuple(max(1, round(share * whole)) for share in EARLY_SHARES)
        settings = (
            *(*self.own_settings, f"{STAGE_1}.folder={folder}"),
            *(f"{STAGE_1}.training.steps={steps}", f"{STAGE_1}.training.keep_at={list(keep_at)}"),
            f"{STAGE_1}.training.decay_steps={decay}",
        )
        return Stage(1, folder, settings, steps, keep_at)

    def _second(self, output: Path, steps: int) -> Stage:
        """On from the first, at its rate, which falls to zero."""
        folder, kind = self.folder(2, output), KINDS[self.kind]
        training = {
            "steps": steps,
            "decay_steps": round(DECAY_SHARE / SECOND_SHARE * steps),
            "learning_rate": "2.0e-3",
            "warmup_steps": 0,
        }
        settings = (
            *(*self.own_settings, *(kind.dense_settings if kind.ends_dense else ())),
            *(f"{STAGE_2}.folder={folder}", f"{STAGE_2}.start_from_run={self.folder(1, output)}"),
            f"{STAGE_2}.start_with_optimizer=true",
            *(f"{STAGE_2}.training.{key}={value}" for key, value in training.items()),
        )
        return Stage(2, folder, settings, steps)

    def _tuning(self, output: Path, steps: int) -> Stage:
        """A stage of all tokens on top of the twin's last one, at a quarter of its rate."""
        folder, base = self.folder(2, output), Twin(self.family, self.kind, self.seed)
        last = base.folder(2 if FAMILIES[self.family].two_stages else 1, output)
        training = {
            "steps": steps,
            "decay_steps": steps,
            "learning_rate": "5.0e-4",
            "warmup_steps": 0,
        }
        settings = (
            *(*self.own_settings, *KINDS[self.kind].dense_settings),
            *(f"{STAGE_2}.folder={folder}", f"{STAGE_2}.start_from_run={last}"),
            *(f"{STAGE_2}.training.{key}={value}" for key, value in training.items()),
        )
        return Stage(2, folder, settings, steps)


def flops_of_step(root: Path, twin: Twin, is_dense: bool = False) -> float:
    """FLOPs of a step's sample, teachers included; of a stage that keeps all tokens, or its own."""
    dense = KINDS[twin.kind].dense_settings if is_dense else ()
    config = load_config(root / twin.config_file, [*twin.own_settings, *dense], Config)
    difference = config.launch.stage2.training if is_dense else {}
    keys = {"gamma", "objective"} & difference.keys()
    chosen: dict[str, Any] = {key: difference[key] for key in keys}
    stage: TrainingConfig = stage_section(config.training, chosen, STAGE_2)
    model = config.chosen_model
    text_tokens = TEXT_TOKENS if isinstance(model, TRDiTConfig) else 0
    of_gamma = partial(training_flops, model, IMAGE_TOKENS, text_tokens)
    others = other_forwards(stage.objective, stage.gamma)
    share = share_of_steps(stage.objective, FAMILIES[twin.family].budget)
    return sample_flops(of_gamma, stage.gamma, others, share)


def check(root: Path, twin: Twin, output: Path) -> None:
    """Refuse a twin whose stages cannot be trained; see `check_fits`."""
    for stage in twin.stages(root, output):
        config = load_config(root / twin.config_file, list(stage.settings), Config)
        difference = config.launch.stage(stage.number).training
        own = stage_section(config.training, difference, f"launch.train.stage{stage.number}")
        check_fits(config, own, config.loader)


def kinds_of(family: str) -> list[str]:
    """The kinds that a family has."""
    return [kind for kind, about in KINDS.items() if family in about.families]


def all_twins() -> list[Twin]:
    """Every model, classes first since they are quick, seeds and fine-tunings last."""
    of_seed = [
        Twin(family, kind, seed)
        for seed in range(max(NUM_SEEDS.values()))
        for family in sorted(FAMILIES)
        for kind in kinds_of(family)
        if seed < NUM_SEEDS.get(kind, 1)
    ]
    tuned = [
        Twin(family, kind, is_tuned=True)
        for family in sorted(FAMILIES)
        for kind in TUNED
        if kind in kinds_of(family)
    ]
    first = [twin for twin in of_seed if twin.seed == 0]
    return [*first, *tuned, *(twin for twin in of_seed if twin.seed)]
