"""Make a pipeline folder of a training run: the newest checkpoint that verifies, or an average of
its snapshots of any relative width (runs with t2i.training.power_averages and snapshot_every).

    python -m t2i.export
    python -m t2i.export --run outputs/nano/runs/stage2 --output outputs/nano/export
    python -m t2i.export --weights weights --dtype bfloat16
    python -m t2i.export --width 0.075
    python -m t2i.export --width 0.15 --step 2000
    python -m t2i.export --run outputs/nano/runs/stage1 --step 100 --output outputs/nano/aux

The last one is the weaker network of guidance ag and ag+sg, python -m t2i.sample --aux FOLDER:
t2i.training.keep_at says which early checkpoints a run never removes.

The folder holds model_index.json, transformer/ (config.json, safetensors), vae/, text_encoder/
and a model card; that of a class-conditional model config.json, its weights and the card. Run again,
the command does nothing unless the run has gone on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field

from t2i.config import (
    ConfigError,
    Section,
    add_config_arguments,
    config_from_args,
    describe_config,
    section,
)
from t2i.console import command_parser, get_logger, progress, run_command
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae_config import VAEConfig
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.training_config import LARGEST_WIDTH

if TYPE_CHECKING:
    from t2i.models.mask_dit import MaskDiT
    from t2i.models.sit import SiT
    from t2i.models.tr_dit import TRDiT
    from t2i.training.trained import Trained

LOG = get_logger("export")
SOURCE_NAME = "export.json"


class ExportConfig(Section):
    """From which run to which pipeline folder."""

    run: str = Field("outputs/nano/runs/stage2", description="a training run's folder")
    output: str = Field("outputs/nano/export", description="the pipeline folder to make")
    weights: Literal["ema", "weights", "power"] = Field(
        "ema", description="of a checkpoint; power: the average of `width`, out of the snapshots"
    )
    width: float | None = Field(None, description="relative width sigma_rel of a power average")
    step: int | None = Field(
        None, description="of the checkpoint, or the last snapshot; None = the newest"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    size: tuple[int, int] = Field((128, 128), description="height and width the model is made for")
    encoders: Literal["copy", "reference"] = Field(
        "copy", description="VAE and text encoder: copy their folders, or only name them"
    )


class Config(Section):
    export: ExportConfig = section("t2i.export")
    vae: VAEConfig = section("t2i.encoders.vae")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m t2i.export", __doc__)
    parser.add_argument("--run", metavar="DIR", help="training run (default: the config's)")
    parser.add_argument("--output", metavar="DIR", help="pipeline folder to make")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--weights", choices=("ema", "weights"), help="default: ema")
    which.add_argument(
        "--width", type=float, metavar="SIGMA", help="the average of this relative width instead"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="of the checkpoint, or the last snapshot, to take"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--encoders", choices=("copy", "reference"), help="default: copy")
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    config = config.model_copy(update={"export": with_flags(config.export, args)})
    LOG.info(describe_config(args))

    from t2i.training.trained import find_average, find_trained

    run, output = Path(config.export.run), Path(config.export.output)
    if config.export.width is not None:
        found = find_average(run, config.export.width, config.export.step)
    else:
        found = find_trained(run, config.export.weights, config.export.step)
    source = describe_source(found, config.export)
    if read_source(output) == source:
        LOG.info("%s is already made of %s", output, found.checkpoint.path)
        return 0
    if output.exists() and read_source(output) is None and any(output.iterdir()):
        raise ValueError(
            f"{output}: not empty and not made by this command; choose another --output"
        )
    temporary = output.with_name(f"{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    export(found, config, source, temporary)
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    line = "%s -> %s (%s, %s)"
    LOG.info(line, found.checkpoint.path, output, found.description, config.export.dtype)
    return 0


def with_flags(config: ExportConfig, args: argparse.Namespace) -> ExportConfig:
    """The settings with those of the command line.

    Raises:
        ConfigError: a width that cannot be, or without the weights it needs.
    """
    names = ("run", "output", "weights", "width", "step", "dtype", "encoders")
    given = {key: getattr(args, key) for key in names if getattr(args, key) is not None}
    if "width" in given:
        given["weights"] = "power"
    elif "weights" in given:
        given["width"] = None
    config = config.model_copy(update=given)
    if (config.weights == "power") != (config.width is not None):
        raise ConfigError(
            f"t2i.export.weights {config.weights} with width {config.width}: power and a width "
            "belong together; give --width SIGMA, or --weights ema"
        )
    if config.width is not None and not 0 < config.width < LARGEST_WIDTH:
        raise ConfigError(
            f"t2i.export.width {config.width}: a relative width lies between 0 and {LARGEST_WIDTH}"
        )
    return config


def export(found: Trained, config: Config, source: dict[str, Any], folder: Path) -> None:
    """Fill a new folder with the pipeline of trained weights.

    Raises:
        ValueError: the weights do not fit the model of its config; names them.
    """
    from t2i.models.storage import save_transformer

    trained = found.settings
    model = load_trained(found, config.export)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if trained_model(trained) == "tr_dit":
        save_transformer(model, folder / "transformer")
        add_components(config, trained, folder)
        card = model_card(found, config, num_parameters)
    else:
        save_transformer(model, folder)
        card = class_model_card(found, config, num_parameters)
    (folder / "README.md").write_text(card)
    (folder / SOURCE_NAME).write_text(json.dumps(source, indent=2) + "\n")


def add_components(config: Config, trained: dict[str, Any], folder: Path) -> None:
    """VAE, text encoder and index of a text-to-image pipeline."""
    from t2i.pipeline import copy_component, write_index

    vae, text = config.vae, TextEncoderConfig.model_validate(trained["t2i"]["encoders"]["text"])
    if config.export.encoders == "copy":
        vae = copy_component(vae, folder, "vae")
        text = copy_component(text, folder, "text_encoder")
    write_index(folder, named(vae, folder), named(text, folder), config.export.size)


def trained_model(trained: dict[str, Any]) -> str:
    """launch.train.model of a run's settings; tr_dit where they do not say."""
    name: str = trained.get("launch", {}).get("train", {}).get("model", "tr_dit")
    return name


def load_trained(found: Trained, config: ExportConfig) -> TRDiT | SiT | MaskDiT:
    """The model of trained weights. Raises as `export`."""
    import torch

    from t2i.encoders.vae import DTYPES
    from t2i.models.mask_dit import MaskDiT
    from t2i.models.sit import SiT
    from t2i.models.storage import load_weights
    from t2i.models.tr_dit import TRDiT

    trained = found.settings
    name = trained_model(trained)
    values = trained["t2i"]["models"][name]
    model: TRDiT | SiT | MaskDiT
    with torch.device("meta"):
        match name:
            case "sit":
                model = SiT(SiTConfig.model_validate(values))
            case "mask_dit":
                model = MaskDiT(MaskDiTConfig.model_validate(values))
            case _:
                model = TRDiT(TRDiTConfig.model_validate(values))
    weights = {}
    with progress("weights", len(found.tensors), "tensor") as bar:
        for key in found.tensors:
            weights[key] = found.tensors[key].to(DTYPES[config.dtype])
            bar.update()
    load_weights(model, weights, f"{found.checkpoint.path}, {config.weights}")
    return model


def named(config: Any, folder: Path) -> Any:
    """A component's config whose path holds wherever the command is run: absolute, if on disk."""
    path = Path(config.path)
    if (folder / path).is_dir() and not path.is_absolute():
        return config
    return config.model_copy(update={"path": str(path.resolve())}) if path.is_dir() else config


def describe_source(found: Trained, config: ExportConfig) -> dict[str, Any]:
    """What an export is made of: equal descriptions give equal folders."""
    return {
        "checkpoint": str(found.checkpoint.path.resolve()),
        "step": found.checkpoint.state.step,
        "sha256": found.sha256,
        "weights": found.description,
        "dtype": config.dtype,
        "encoders": config.encoders,
        "size": list(config.size),
    }


def read_source(folder: Path) -> dict[str, Any] | None:
    """What an export folder says it is made of, None if it is not one."""
    path = folder / SOURCE_NAME
    return json.loads(path.read_text()) if path.is_file() else None


def model_card(found: Trained, config: Config, num_parameters: int) -> str:
    """README.md: what the model is, how it was trained, on what, how well, and how to use it."""
    height, width = config.export.size
    components = {
        "resolution": f"{height}x{width}",
        "VAE": config.vae.path,
        "text encoder": found.settings["t2i"]["encoders"]["text"]["path"],
    }
    return f"""---
library_name: sparse-t2i
pipeline_tag: text-to-image
license: apache-2.0
---
# TR-DiT, exported from {Path(config.export.run).name}

A text-to-image diffusion transformer trained with token routing, for guidance by sparsity.

```python
from t2i.pipeline import TextToImagePipeline

pipeline = TextToImagePipeline.from_pretrained("{config.export.output}")
pipeline("a prompt", guidance="sg", guidance_scale=1.8, gamma_strong=0.1, gamma_weak=0.8).images[0]
```

{facts(found, config, num_parameters, components)}"""


def class_model_card(found: Trained, config: Config, num_parameters: int) -> str:
    """README.md of a class-conditional model."""
    name = trained_model(found.settings)
    loader = {"sit": "load_sit", "mask_dit": "load_mask_dit"}[name]
    return f"""---
library_name: sparse-t2i
license: apache-2.0
---
# {name}, exported from {Path(config.export.run).name}

A class-conditional diffusion transformer in the latents of a VAE.

```python
from pathlib import Path
from t2i.models.{name} import {loader}

model = {loader}(Path("{config.export.output}"))
```

{facts(found, config, num_parameters, {})}"""


def facts(found: Trained, config: Config, num_parameters: int, components: dict[str, str]) -> str:
    """The end of a model card: a table with ``components`` in it, and the run's settings."""
    trained, step = found.settings, found.checkpoint.state.step
    training = trained["t2i"].get("training", {})
    loader = trained.get("data_pipeline", {}).get("loader", {})
    metrics = last_metrics(Path(config.export.run) / "metrics.jsonl", step)
    rows = {
        "parameters": f"{num_parameters:,}",
        "step": f"{step:,} ({found.description}, {config.export.dtype})",
        "images seen": f"{step * training.get('global_batch', 0):,}",
        **components,
        **{f"last {name}": f"{value:.5g}" for name, value in metrics.items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    settings = yaml.safe_dump({"loader": loader, **trained["t2i"]}, sort_keys=False)
    return f"""| | |
|---|---|
{table}

Data and settings of the run, as stored in its checkpoint:

```yaml
{settings}```
"""


def last_metrics(path: Path, step: int) -> dict[str, float]:
    """The last value of each scalar metric at or before a step; {} without a metrics file."""
    result: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        fields = json.loads(line)
        if fields.get("step", 0) <= step:
            result |= {
                key: value
                for key, value in fields.items()
                if "loss" in key and isinstance(value, int | float)
            }
    return result


if __name__ == "__main__":
    raise SystemExit(run_command(main))
