"""Settings of guidance (section t2i.guidance)."""

from __future__ import annotations

from pydantic import Field, model_validator

from t2i.config import Section
from t2i.guidance.branches import Guidance, Setting
from t2i.guidance.methods import make_guidance
from t2i.guidance.schedules import ScheduleField
from t2i.guidance.weaknesses import BlockChoiceField


class GuidanceConfig(Section):
    """A method by name, and settings that differ from the method's defaults.

    Each setting is a number or a schedule over the steps, see `t2i.guidance.schedules`; ``blocks`` is
    a list of numbers, see `t2i.guidance.weaknesses`.
    """

    name: str = "sg"
    omega: ScheduleField | None = Field(None, description="scale; 1 means no guidance")
    gamma_strong: ScheduleField | None = None
    gamma_weak: ScheduleField | None = None
    # of direct, inner, compositional, ip2p; the former also of slg, pag, tpg, ssg
    cfg_weight: ScheduleField | None = None
    sg_weight: ScheduleField | None = None
    # of s2
    block_weight: ScheduleField | None = None
    drop_blocks: ScheduleField | None = None
    # of apg
    eta: ScheduleField | None = None
    radius: ScheduleField | None = None
    momentum: ScheduleField | None = None
    # of cfg_zero
    zero_steps: ScheduleField | None = None
    # of fdg
    omega_high: ScheduleField | None = None
    # of cfg+ig, sg+ig
    internal_omega: ScheduleField | None = None
    # of slg, pag, tpg, ssg
    blocks: BlockChoiceField | None = None
    swap_ratio: ScheduleField | None = None
    interval: tuple[float, float] = Field((0.0, 1.0), description="guide for t in this range")

    @model_validator(mode="after")
    def _can_be_made(self) -> GuidanceConfig:
        self.build()
        return self

    def given(self) -> dict[str, Setting]:
        """The settings that were given."""
        return {
            key: value
            for key in type(self).model_fields
            if key not in ("name", "interval") and (value := getattr(self, key)) is not None
        }

    def build(self) -> Guidance:
        """The method; ValueError as in `make_guidance`."""
        return make_guidance(self.name, self.given(), self.interval)
