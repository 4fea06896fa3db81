"""Cases of `forward`, `sample` and `grid`: a model with random weights that denoises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.benchmarks.benchmark_config import LATENT_DOWNSAMPLE, BenchmarkConfig
from t2i.benchmarks.rows import Case, Row
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.branches import Guidance, plan
from t2i.guidance.methods import make_guidance
from t2i.models.costs.macs import forward_macs
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.sampling.image_flops import predictions_macs

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.models.tr_dit import TRDiT
    from t2i.sampling.sampler import GuidedField

# Where a guided step is measured: inside every interval, at the middle of every schedule.
TIMESTEP = 0.5


class Subject:
    """The model with random weights and a batch of random inputs."""

    def __init__(self, config: TRDiTConfig, vae: VAEConfig, settings: BenchmarkConfig) -> None:
        import torch

        from t2i.encoders.text import TextStates
        from t2i.encoders.vae import DTYPES
        from t2i.models.tr_dit import TRDiT

        self.config, self.vae_config, self.settings = config, vae, settings
        self.device = torch.device(self.settings.device)
        torch.manual_seed(0)
        with self.device:
            self.model: TRDiT = TRDiT(config).to(DTYPES[self.settings.dtype]).eval()
        if self.settings.compile:
            self.model.compile_blocks()
        height, width = (side // LATENT_DOWNSAMPLE for side in self.settings.size)
        batch, text_tokens = self.settings.batch_size, self.settings.text_tokens
        self.latents = torch.randn(batch, config.in_channels, height, width, device=self.device)
        self.num_tokens = height * width // config.patch_size**2
        states = torch.randn(batch, text_tokens, config.text_width, device=self.device)
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
        wanted = plan(guidance, TIMESTEP, TIMESTEP)
        tokens = self.num_tokens, self.settings.text_tokens
        return 2.0 * predictions_macs(self.config, wanted, *tokens)


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
    """A guided step of each method; with `decode` the VAE's decoding as the last row.

    Raises:
        ValueError: an unknown method, or a VAE whose latents are not the model's.
    """
    cases = [step_case(subject, make_guidance(name)) for name in subject.settings.guidance]
    if not subject.settings.decode:
        return cases
    from t2i.encoders.vae import load_vae

    vae = load_vae(subject.vae_config, subject.device)
    channels, downsample = subject.config.in_channels, LATENT_DOWNSAMPLE
    if (vae.num_channels, vae.downsample) != (channels, downsample):
        raise ValueError(
            f"t2i.encoders.vae.path {subject.vae_config.path}: {vae.num_channels} channels at 1/"
            f"{vae.downsample} of the pixels, but latents here have {channels} at 1/{downsample}; "
            "choose another VAE, or --set t2i.benchmark.decode=false"
        )
    return [
        *cases,
        Case("VAE decoding", lambda: vae.decode(subject.latents), len(subject.latents), 0),
    ]


def with_decoding(rows: Sequence[Row]) -> list[Row]:
    """Rows of `sample` that end with the decoding -> with images/s of all steps and the decoding."""
    *guided, decoding = rows
    whole = []
    for row in guided:
        seconds_per_image = 1 / row.images_per_second + 1 / decoding.images_per_second
        whole.append(replace(row, decoded_images_per_second=1 / seconds_per_image))
    return [*whole, decoding]


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
    middle = (np.nanmin(speeds) + np.nanmax(speeds)) / 2
    for i, j in pairs:
        color = "black" if speeds[i, j] > middle else "white"
        axes.text(j, i, f"{speeds[i, j]:.2f}", ha="center", va="center", color=color, fontsize=8)
    labels = [f"{gamma:g}" for gamma in grid]
    axes.set_xticks(range(len(grid)), labels)
    axes.set_yticks(range(len(grid)), labels)
    axes.set_xlabel("gamma_weak")
    axes.set_ylabel("gamma_strong")
    axes.set_title("images per second, relative to the slowest pair")
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=120)
