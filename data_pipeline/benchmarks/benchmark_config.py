"""Settings of the data pipeline's benchmarks (section data_pipeline.benchmark); no torch here."""

from __future__ import annotations

from pydantic import Field

from t2i.config import Section


class DataBenchmarkConfig(Section):
    """What is measured and how."""

    shards: str = Field(
        default="outputs/benchmarks/latents", description="folder of the made-up latents"
    )
    num_shards: int = Field(
        default=8, ge=1, description="`loader`: shards that are written and read"
    )
    samples_per_shard: int = Field(default=1000, ge=1)
    moments_shape: tuple[int, int, int] = Field(
        default=(8, 64, 64), description="(2C, h, w), float16"
    )
    batch_size: int = Field(default=64, ge=1)
    num_workers: int = Field(default=2, ge=1, description="of every row")
    prefetch: int = Field(
        default=4, ge=1, description="batches that each worker keeps ready, every row"
    )
    shuffle_buffer: int = Field(default=1000, ge=1, description="samples, webdataset")
    warmup: int = Field(default=1, ge=0, description="rounds before the clock starts")
    repeats: int = Field(default=11, ge=1, description="timed rounds; rows take turns")
    batches: int = Field(default=40, ge=1, description="of each row in a round")
    order_shards: int = Field(default=10_000, ge=1, description="`order`: shards that are made up")
    order_samples: int = Field(default=10_000, ge=1, description="`order`: samples of each")
    order_buckets: int = Field(
        default=8, ge=1, description="resolutions: `order`, of the second row; `catalog`"
    )
    order_global_batch: int = Field(default=3072, ge=1)
    output: str = Field(default="outputs/benchmarks", description="folder of the results")
