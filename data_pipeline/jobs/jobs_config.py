"""Settings of jobs (section data_pipeline.jobs)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from t2i.config import Section


class JobsConfig(Section):
    """How jobs are run. ``num_workers`` and what follows it concern ``executor: ray``."""

    executor: Literal["local", "ray"] = "local"
    num_workers: int = Field(default=1, ge=1)
    num_cpus_per_worker: float = Field(default=1.0, ge=0)
    num_gpus_per_worker: float = Field(default=0.0, ge=0)
    ray_address: str = "auto"
    """"auto": $RAY_ADDRESS or the running cluster, else one started for the job; "local": always
    a new one; or host:port."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts at a shard whose input, output or worker fails outside of its items."""
    retry_seconds: float = Field(default=1.0, ge=0)
    """Pause before the second attempt; doubled each time."""
    max_quarantined_per_shard: int = Field(default=10, ge=0)
    max_error_share: float = Field(default=0.5, gt=0, le=1)
    """A shard in which more of the items end in exceptions is not committed: the fault is not
    in the items."""
