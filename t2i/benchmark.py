"""Measure the speed of the model and of guided sampling, rows side by side in one run.

    python -m t2i.benchmark forward                                   sparsities, nano
    python -m t2i.benchmark sample --config configs/benchmark_cpu.yaml
    python -m t2i.benchmark sample --set t2i.benchmark.guidance='[cfg, sg, apg]'
    python -m t2i.benchmark grid --config configs/tr_dit_2b5.yaml --set t2i.benchmark.device=cuda

Weights and inputs are random: they do not change the time. Rows take turns, so that a change of
the machine's speed meets all of them, and each is given by its median. Beside the time stands what
the arithmetic says: FLOPs of the matrix products that are executed, as a ratio to the first row.
Results go to <output>/<command>-<name>-<device>.json with versions and commit, and to a table
(.md); `grid` draws a heat map (.png) of images per second over both sparsities.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.benchmark_config import BenchmarkConfig
from t2i.config import (
    REPO_FOLDER,
    Section,
    add_config_arguments,
    config_from_args,
    describe_config,
    section,
)
from t2i.console import get_logger, progress, run_command
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.branches import Guidance, plan
from t2i.guidance.methods import make_guidance
from t2i.models.macs import forward_macs, from_route_macs, shared_macs
from t2i.models.tr_dit_config import TRDiTConfig

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.models.tr_dit import TRDiT
    from t2i.sampling.sampler import GuidedField

LOG = get_logger("benchmark")
LATENT_DOWNSAMPLE = 8
# Where a guided step is measured: inside every interval, at the middle of every schedule.
TIMESTEP = 0.5


class Config(Section):
    """What this command reads."""

    benchmark: BenchmarkConfig = section("t2i.benchmark")
    model: TRDiTConfig = section("t2i.models.tr_dit")
    vae: VAEConfig = section("t2i.encoders.vae")


@dataclass(frozen=True)
class Case:
    """One row: what to run, how many images a run stands for, and its FLOPs."""

    name: str
    run: Callable[[], object]
    images: float
    flops: float


@dataclass(frozen=True)
class Row:
    """What was measured of a case; ratios are to the first row."""

    name: str
    seconds: float
    seconds_min: float
    images_per_second: float
    flops: float
    tflops_per_second: float
    time_ratio: float
    flops_ratio: float
    memory_gb: float


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2i.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        choices=("forward", "sample", "grid"),
        help="forward: one pass per sparsity; sample: guided steps; grid: SG over both sparsities",
    )
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    LOG.info(describe_config(args))
    import torch

    subject = Subject(config)
    build = {"forward": forward_cases, "sample": sample_cases, "grid": grid_cases}[args.what]
    with torch.inference_mode():
        rows = measure(build(subject), config.benchmark, args.what)
    settings = {**config.benchmark.model_dump(mode="json"), "model": config.model.model_dump()}
    result = {"what": args.what, **environment(config.benchmark), "settings": settings}
    stem = write(rows, result, config.benchmark)
    if args.what == "grid":
        draw_grid(rows, config.benchmark.grid, stem.with_suffix(".png"))
    LOG.info("%s", stem.with_suffix(".json"))
    return 0


class Subject:
    """The model with random weights and a batch of random inputs."""

    def __init__(self, config: Config) -> None:
        import torch

        from t2i.encoders.text import TextStates
        from t2i.encoders.vae import DTYPES
        from t2i.models.tr_dit import TRDiT

        self.config, self.settings = config.model, config.benchmark
        self.vae_config = config.vae
        self.device = torch.device(self.settings.device)
        torch.manual_seed(0)
        with self.device:
            self.model: TRDiT = TRDiT(config.model).to(DTYPES[self.settings.dtype]).eval()
        if self.settings.compile:
            self.model.compile_blocks()
        height, width = (side // LATENT_DOWNSAMPLE for side in self.settings.size)
        batch, text_tokens = self.settings.batch_size, self.settings.text_tokens
        self.latents = torch.randn(
            batch, config.model.in_channels, height, width, device=self.device
        )
        self.num_tokens = height * width // config.model.patch_size**2
        states = torch.randn(batch, text_tokens, config.model.text_width, device=self.device)
        mask = torch.ones(batch, text_tokens, dtype=torch.bool, device=self.device)
        self.text = TextStates(states, mask)

    def field(self, guidance: Guidance) -> GuidedField:
        """The guided velocity of the batch, for 50 steps."""
        import torch

        from t2i.sampling.sampler import ConditionText, GuidedField

        rows_B = torch.arange(len(self.latents), device=self.device)
        texts = dict.fromkeys(guidance.conditions, ConditionText(self.text, rows_B))
        networks = {"main": self.model, "aux": self.model}
        return GuidedField(networks, texts, guidance, rows_B, self.settings.steps)

    def step_flops(self, guidance: Guidance) -> float:
        """Executed FLOPs of a guided step for one image: shared layers once per condition."""
        arguments = self.config, self.num_tokens, self.settings.text_tokens
        wanted = plan(guidance, TIMESTEP, TIMESTEP)
        shared = {(one.network, one.condition, one.drop_blocks) for one in wanted}
        macs = len(shared) * shared_macs(*arguments)
        macs += sum(from_route_macs(*arguments, one.gamma) for one in wanted)
        return 2.0 * macs


def forward_cases(subject: Subject) -> list[Case]:
    """A forward pass at each sparsity, text keys and values ready."""
    import torch

    from t2i.models.routing import draw_keep_ids

    settings, batch = subject.settings, len(subject.latents)
    timestep_B = torch.full((batch,), TIMESTEP, device=subject.device)
    text = subject.model.prepare_text(subject.text.states, subject.text.mask)
    scale_B = torch.ones_like(timestep_B) if subject.config.scale_input else None
    cases = []
    for gamma in settings.gammas:
        ids = torch.arange(batch)
        keep_ids = draw_keep_ids(0, "benchmark", 0, ids, subject.num_tokens, gamma, subject.device)
        macs = forward_macs(subject.config, subject.num_tokens, settings.text_tokens, gamma)

        def run(keep_ids: Tensor | None = keep_ids if gamma else None) -> object:
            return subject.model(
                subject.latents, timestep_B, text, keep_ids, guidance_scale_B=scale_B
            )

        cases.append(Case(f"gamma {gamma:g}", run, batch, 2.0 * macs * batch))
    return cases


def sample_cases(subject: Subject) -> list[Case]:
    """A guided step of each method, with 1 / steps of the decoding if that counts."""
    cases = [step_case(subject, make_guidance(name)) for name in subject.settings.guidance]
    if not subject.settings.decode:
        return cases
    from t2i.encoders.vae import load_vae

    vae = load_vae(subject.vae_config, subject.device)
    return [
        *cases,
        Case("VAE decoding", lambda: vae.decode(subject.latents), len(subject.latents), 0),
    ]


def grid_cases(subject: Subject) -> list[Case]:
    """A step of SG at each pair of sparsities, the weak one larger."""
    grid = subject.settings.grid
    pairs = [(strong, weak) for strong in grid for weak in grid if strong < weak]
    return [
        step_case(subject, make_guidance("sg", {"gamma_strong": strong, "gamma_weak": weak}))
        for strong, weak in pairs
    ]


def step_case(subject: Subject, guidance: Guidance) -> Case:
    """One guided step; it stands for 1 / steps of the batch's images."""
    field, settings = subject.field(guidance), subject.settings
    middle = settings.steps // 2
    images = len(subject.latents) / settings.steps
    flops = subject.step_flops(guidance) * len(subject.latents)
    return Case(str(guidance), lambda: field(subject.latents, TIMESTEP, middle), images, flops)


def measure(cases: Sequence[Case], settings: BenchmarkConfig, what: str) -> list[Row]:
    """Run all cases in turn; the median of each."""
    import torch

    on_cuda = settings.device.startswith("cuda")
    seconds: list[list[float]] = [[] for _ in cases]
    memory = [0.0] * len(cases)
    with progress(what, settings.warmup + settings.repeats, "rounds") as bar:
        for number in range(settings.warmup + settings.repeats):
            for i, case in enumerate(cases):
                if on_cuda:
                    torch.cuda.reset_peak_memory_stats()
                    torch.cuda.synchronize()
                started = time.perf_counter()
                case.run()
                if on_cuda:
                    torch.cuda.synchronize()
                if number >= settings.warmup:
                    seconds[i].append(time.perf_counter() - started)
                memory[i] = peak_memory_gb(on_cuda)
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
            memory_gb=gigabytes,
        )
        for case, median, times, gigabytes in zip(cases, medians, seconds, memory, strict=True)
    ]


def peak_memory_gb(on_cuda: bool) -> float:
    """Of the GPU since the last reset, or resident in this process so far."""
    import torch

    if on_cuda:
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def environment(settings: BenchmarkConfig) -> dict[str, Any]:
    """Device, versions, commit."""
    import torch

    device = platform.processor() or platform.machine()
    if settings.device.startswith("cuda"):
        device = torch.cuda.get_device_name(settings.device)
    else:
        device += f", {torch.get_num_threads()} threads"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPO_FOLDER, capture_output=True, text=True
    ).stdout.strip()
    return {
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


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
    """Markdown. Absolute times are given for a GPU only: those of a CPU say little elsewhere."""
    absolute = settings.device.startswith("cuda")
    heads = ["time / first", "FLOPs / first", "time / FLOPs", "GFLOPs", "peak GB"]
    heads += ["images/s", "TFLOP/s"] if absolute else []
    height, width = settings.size
    lines = [
        f"`{result['what']}`, {settings.name}, {height}x{width}, batch {settings.batch_size}, "
        f"{settings.text_tokens} text tokens, {settings.dtype}; {result['device']}, "
        f"torch {result['torch']}, commit {result['commit']}; median of {settings.repeats}",
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for row in rows:
        cells = [f"{row.time_ratio:.3f}", "", "", "", f"{row.memory_gb:.2f}"]
        if row.flops:
            excess = row.time_ratio / row.flops_ratio
            cells[1:4] = [f"{row.flops_ratio:.3f}", f"{excess:.3f}", f"{row.flops / 1e9:.4g}"]
        if absolute:
            cells += [f"{row.images_per_second:.3g}", f"{row.tflops_per_second:.1f}"]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_grid(rows: Sequence[Row], grid: Sequence[float], path: Path) -> None:
    """Heat map: strong sparsity down, weak one across (SG figure A1)."""
    import numpy as np
    from matplotlib.figure import Figure

    speeds = np.full((len(grid), len(grid)), np.nan)
    pairs = [(i, j) for i in range(len(grid)) for j in range(len(grid)) if grid[i] < grid[j]]
    slowest = max(row.seconds for row in rows)
    for (i, j), row in zip(pairs, rows, strict=True):
        speeds[i, j] = slowest / row.seconds
    figure = Figure(figsize=(5.5, 4.5), layout="tight")
    axes = figure.subplots()
    image = axes.imshow(speeds, cmap="viridis")
    for i, j in pairs:
        axes.text(j, i, f"{speeds[i, j]:.2f}", ha="center", va="center", color="white", fontsize=8)
    labels = [f"{gamma:g}" for gamma in grid]
    axes.set_xticks(range(len(grid)), labels)
    axes.set_yticks(range(len(grid)), labels)
    axes.set_xlabel("gamma_weak")
    axes.set_ylabel("gamma_strong")
    axes.set_title("images per second, relative to the slowest pair")
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
