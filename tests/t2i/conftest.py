"""A tiny pipeline with random weights, for tests of sampling, pipeline and commands."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch.nano.internvl_model import build_model, build_processor
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae_config import VAEConfig
from t2i.models.routes import AfterRoute
from t2i.models.storage import save_transformer
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.pipeline import write_index

TEXT_WIDTH = 192


def random_transformer(
    seed: int,
    text_width: int = TEXT_WIDTH,
    scale_input: bool = False,
    routed: int = 1,
    internal: bool = False,
    after_route: AfterRoute = "put_back",
) -> TRDiT:
    """A TR-DiT of three layers, one of them routed; no weight is zero, so that all parts act.

    ``internal``: with a head after the first layer.
    """
    config = TRDiTConfig(
        num_layers=3,
        width=32,
        num_heads=2,
        text_width=text_width,
        num_refiner_layers=1,
        adaln_rank=4,
        routes=((routed, routed),),
        scale_input=scale_input,
        internal_after=0 if internal else None,
        after_route=after_route,
    )
    model = TRDiT(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return model


@pytest.fixture(scope="session")
def make_transformer() -> Callable[..., TRDiT]:
    """`random_transformer`: (seed, text_width, ...) -> TRDiT."""
    return random_transformer


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder: random transformer, VAE of 8x and 4 channels, InternVL-nano's sizes."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("pipeline")
    save_transformer(random_transformer(0), folder / "transformer")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    vae.save_pretrained(folder / "vae")
    (folder / "text_encoder").mkdir()
    processor = build_processor(folder / "text_encoder", seed=0)
    build_model(processor, seed=0).save_pretrained(folder / "text_encoder")
    vae_config = VAEConfig(path="vae")
    text_config = TextEncoderConfig(path="text_encoder")
    write_index(folder, vae_config, text_config, (64, 64))
    return folder


@pytest.fixture(scope="session")
def accelerate_two() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function (module, *arguments): run it as two processes under `accelerate launch`."""

    def launch(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        # --multi_gpu starts the processes that --num_processes asks for, on a CPU too
        command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu"]
        command += ["--num_machines", "1", "--num_processes", "2", "--main_process_port", port]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return launch
