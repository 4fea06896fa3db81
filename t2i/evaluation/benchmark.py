"""How fast metrics are: Inception with reading and resizing beside the network alone, and the cores."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from t2i.environment import peak_resident_gb, reset_peak_resident
from t2i.evaluation.context import Context
from t2i.evaluation.frechet import frechet_distance
from t2i.evaluation.metrics.adm import AdmSettings, InceptionRows
from t2i.evaluation.moments import statistics_of
from t2i.evaluation.picture_sets import open_set, read_batches
from t2i.evaluation.precision_recall import precision_recall

DIMENSIONS = 2048


@dataclass(frozen=True)
class Figures:
    """What was measured; times are seconds, memory is the peak above what was held before.

    Attributes:
        inception_images_per_second: from files to rows.
        network_images_per_second: of tensors that are ready, by the same network.
        inception_ratio: the first over the second.
        precision_recall_seconds, precision_recall_gb: of ``num_rows`` x ``num_rows``.
        frechet_seconds: of 2,048 dimensions, the reference's factor at hand, the samples' not.
        num_pictures, picture_side, batch_size, num_rows: of these measurements.
    """

    inception_images_per_second: float
    network_images_per_second: float
    inception_ratio: float
    precision_recall_seconds: float
    precision_recall_gb: float | None
    frechet_seconds: float
    num_pictures: int
    picture_side: int
    batch_size: int
    num_rows: int


def measure(context: Context, num_pictures: int, side: int, num_rows: int, repeats: int) -> Figures:
    """Measure all; the median of ``repeats`` turns, in which the two sides of a ratio alternate."""
    scorer = InceptionRows(AdmSettings(random_weights=0), context)
    with TemporaryDirectory() as folder:
        _draw(Path(folder), num_pictures, side)
        whole, alone = _inception_seconds(scorer, Path(folder), context, repeats)
    seconds, memory = _precision_recall(num_rows, context.device)
    return Figures(
        inception_images_per_second=num_pictures / whole,
        network_images_per_second=num_pictures / alone,
        inception_ratio=alone / whole,
        precision_recall_seconds=seconds,
        precision_recall_gb=memory,
        frechet_seconds=_frechet_seconds(),
        num_pictures=num_pictures,
        picture_side=side,
        batch_size=context.batch_size,
        num_rows=num_rows,
    )


def as_markdown(figures: Figures, environment: dict[str, str]) -> str:
    """A table; absolute times are given for what they are, ratios are what carries over."""
    lines = [
        f"{environment['device']}, torch {environment['torch']}, commit {environment['commit']}"
    ]
    lines += ["", "| | |", "|---|---:|"]
    lines += [
        f"| {name.replace('_', ' ')} | {'-' if value is None else f'{value:.4g}'} |"
        for name, value in asdict(figures).items()
    ]
    return "\n".join(lines) + "\n"


def _draw(folder: Path, num: int, side: int) -> None:
    """Pictures that compress as photos do, about: noise, smoothed."""
    numbers = np.random.default_rng(0)
    for index in range(num):
        small = numbers.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side)).save(folder / f"{index:05d}.png")


def _inception_seconds(
    scorer: InceptionRows, folder: Path, context: Context, repeats: int
) -> tuple[float, float]:
    pictures = open_set(folder)
    size = context.batch_size
    ready_B3HW = torch.rand(size, 3, 299, 299, device=context.device) * 255

    def whole() -> None:
        for batch in read_batches(pictures, size, "refuse", num_threads=context.num_threads):
            scorer.rows(batch)

    def alone() -> None:
        left = pictures.num
        while left:
            scorer.network(ready_B3HW[: min(left, size)]).pool3.cpu()
            left -= min(left, size)

    with torch.inference_mode():
        alone()  # the first run of a network is slower
        times = [(_seconds(whole), _seconds(alone)) for _ in range(repeats)]
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def _precision_recall(num_rows: int, device: torch.device) -> tuple[float, float | None]:
    generator = torch.Generator().manual_seed(0)
    one, other = (
        torch.randn(num_rows, DIMENSIONS, generator=generator).to(device) for _ in range(2)
    )
    is_reset = reset_peak_resident()
    before = peak_resident_gb() if is_reset else 0.0
    seconds = _seconds(lambda: precision_recall(one, other))
    return seconds, peak_resident_gb() - before if is_reset else None


def _frechet_seconds() -> float:
    generator = torch.Generator().manual_seed(0)
    one, other = (
        statistics_of(torch.randn(DIMENSIONS + 500, DIMENSIONS, generator=generator))
        for _ in range(2)
    )
    _ = one.factor_DR
    return _seconds(lambda: frechet_distance(one, other))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
