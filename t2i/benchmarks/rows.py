"""What all benchmarks share: cases that take turns, rows of figures, files and tables."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2i.benchmarks.benchmark_config import BenchmarkConfig
from t2i.console import progress
from t2i.environment import peak_resident_gb, reset_peak_resident
from t2i.hardware import known_peak_tflops


@dataclass(frozen=True)
class Case:
    """One row: what to run, how many images a run stands for, and its FLOPs."""

    name: str
    run: Callable[[], object]
    images: float
    flops: float


@dataclass(frozen=True)
class Row:
    """What was measured of a case; ratios are to the first row, `mfu` is in [0, 1].

    `memory_gb`: the peak while the case ran, of the GPU or resident in this process; None where the
    system does not tell. `decoded_images_per_second`: of whole images, steps and decoding; None for
    rows that are not guided steps, or without decoding.
    """

    name: str
    seconds: float
    seconds_min: float
    images_per_second: float
    flops: float
    tflops_per_second: float
    time_ratio: float
    flops_ratio: float
    mfu: float | None
    memory_gb: float | None
    decoded_images_per_second: float | None = None


def measure(
    cases: Sequence[Case], settings: BenchmarkConfig, what: str, peak_tflops: float | None = None
) -> list[Row]:
    """Run all cases in turn; the median of each.

    In a group of processes all of them measure; figures are those of one process, to which
    ``peak_tflops`` (None = no MFU) belongs too.
    """
    on_cuda = settings.device.startswith("cuda")
    seconds: list[list[float]] = [[] for _ in cases]
    memory: list[float | None] = [None] * len(cases)
    is_first = os.environ.get("RANK", "0") == "0"
    rounds = progress(what, settings.warmup + settings.repeats, "rounds")
    with rounds if is_first else nullcontext() as bar:
        for number in range(settings.warmup + settings.repeats):
            for i, case in enumerate(cases):
                taken, memory[i] = run_once(case, on_cuda)
                if number >= settings.warmup:
                    seconds[i].append(taken)
            if bar is not None:
                bar.update()
    medians = [statistics.median(times) for times in seconds]
    return [
        Row(
            name=case.name,
            seconds=median,
            seconds_min=min(times),
            images_per_second=case.images / median,
            flops=case.flops,
            tflops_per_second=case.flops / median / 1e12,
            time_ratio=median / medians[0],
            flops_ratio=case.flops / cases[0].flops,
            mfu=case.flops / median / 1e12 / peak_tflops if peak_tflops else None,
            memory_gb=gigabytes,
        )
        for case, median, times, gigabytes in zip(cases, medians, seconds, memory, strict=True)
    ]


def run_once(case: Case, on_cuda: bool) -> tuple[float, float | None]:
    """Seconds that a case took, by CUDA's events on a GPU, and its peak of memory in GB."""
    import torch

    if not on_cuda:
        is_reset = reset_peak_resident()
        started = time.perf_counter()
        case.run()
        seconds = time.perf_counter() - started
        return seconds, peak_resident_gb() if is_reset else None
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    begin.record()
    case.run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated() / 1e9


def peak_tflops(settings: BenchmarkConfig, in_bf16: bool) -> float | None:
    """What MFU is measured against: the config's value, or the device's peak in bf16, or None."""
    if settings.peak_tflops is not None or not settings.device.startswith("cuda") or not in_bf16:
        return settings.peak_tflops
    import torch

    return known_peak_tflops(torch.cuda.get_device_name(settings.device))


def write(rows: Sequence[Row], result: Mapping[str, Any], settings: BenchmarkConfig) -> Path:
    """Write the .json and the .md; print the table. Returns their path without the ending."""
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    kind = "cuda" if settings.device.startswith("cuda") else "cpu"
    stem = folder / f"{result['what']}-{settings.name}-{kind}"
    values = {**result, "rows": [asdict(row) for row in rows]}
    stem.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
    text = table(rows, result, settings)
    stem.with_suffix(".md").write_text(text)
    print(text)
    return stem


def table(rows: Sequence[Row], result: Mapping[str, Any], settings: BenchmarkConfig) -> str:
    """Markdown. Of a CPU, no absolute times: they say little elsewhere."""
    absolute = settings.device.startswith("cuda")
    heads = ["time / first", "FLOPs / first", "time / FLOPs", "GFLOPs", "peak GB"]
    heads += ["s", "images/s", "TFLOP/s", "MFU"] if absolute else []
    first_decoded = rows[0].decoded_images_per_second
    if first_decoded is not None:
        heads.append("images/s with decode" + ("" if absolute else " / first"))
    height, width = settings.size
    lines = [
        f"`{result['what']}`, {settings.name}, {height}x{width}, {result['batch']}; "
        f"{result['device']}, "
        f"torch {result['torch']}, commit {result['commit']}; median of {settings.repeats}",
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for row in rows:
        memory = "" if row.memory_gb is None else f"{row.memory_gb:.2f}"
        cells = [f"{row.time_ratio:.3f}", "", "", "", memory]
        if row.flops:
            excess = row.time_ratio / row.flops_ratio
            cells[1:4] = [f"{row.flops_ratio:.3f}", f"{excess:.3f}", f"{row.flops / 1e9:.4g}"]
        if absolute:
            cells += [f"{row.seconds:.3g}", f"{row.images_per_second:.3g}"]
            cells += [f"{row.tflops_per_second:.3g}", f"{row.mfu:.1%}" if row.mfu else ""]
        if first_decoded is not None:
            decoded = row.decoded_images_per_second
            speed = decoded if absolute or decoded is None else decoded / first_decoded
            cells.append("" if speed is None else f"{speed:.3f}")
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
