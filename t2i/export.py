"""Make a pipeline folder of a training run: the newest checkpoint that verifies.

    python -m t2i.export
    python -m t2i.export --run outputs/nano/runs/stage2 --output outputs/nano/export
    python -m t2i.export --weights weights --dtype bfloat16

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

from t2i.config import Section, add_config_arguments, config_from_args, describe_config, section
from t2i.console import get_logger, run_command
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae_config import VAEConfig
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig

if TYPE_CHECKING:
    from t2i.models.mask_dit import MaskDiT
    from t2i.models.sit import SiT
    from t2i.models.tr_dit import TRDiT
    from t2i.training.checkpoint import Checkpoint

LOG = get_logger("export")
SOURCE_NAME = "export.json"


class ExportConfig(Section):
    """From which run to which pipeline folder."""

    run: str = Field("outputs/nano/runs/stage2", description="a training run's folder")
    output: str = Field("outputs/nano/export", description="the pipeline folder to make")
    weights: Literal["ema", "weights"] = Field("ema", description="which of a checkpoint to take")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    size: tuple[int, int] = Field((128, 128), description="height and width the model is made for")
    encoders: Literal["copy", "reference"] = Field(
        "copy", description="VAE and text encoder: copy their folders, or only name them"
    )


class Config(Section):
    export: ExportConfig = section("t2i.export")
    vae: VAEConfig = section("t2i.encoders.vae")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2i.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", metavar="DIR", help="training run (default: the config's)")
    parser.add_argument("--output", metavar="DIR", help="pipeline folder to make")
    parser.add_argument("--weights", choices=("ema", "weights"), help="default: ema")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--encoders", choices=("copy", "reference"), help="default: copy")
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    flags = {key: getattr(args, key) for key in ("run", "output", "weights", "dtype", "encoders")}
    given = {key: value for key, value in flags.items() if value is not None}
    config = config.model_copy(update={"export": config.export.model_copy(update=given)})
    LOG.info(describe_config(args))

    from t2i.training.checkpoint import newest_checkpoint

    run, output = Path(config.export.run), Path(config.export.output)
    checkpoint = newest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise FileNotFoundError(
            f"{run}: no checkpoint that verifies; train first: deepspeed launch/train_t2i.py --stage 2"
        )
    source = describe_source(checkpoint, config.export)
    if read_source(output) == source:
        LOG.info("%s is already made of %s", output, checkpoint.path)
        return 0
    if output.exists() and read_source(output) is None and any(output.iterdir()):
        raise ValueError(
            f"{output}: not empty and not made by this command; choose another --output"
        )
    temporary = output.with_name(f"{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    export(checkpoint, config, source, temporary)
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    LOG.info(
        "%s -> %s (%s, %s)", checkpoint.path, output, config.export.weights, config.export.dtype
    )
    return 0


def export(checkpoint: Checkpoint, config: Config, source: dict[str, Any], folder: Path) -> None:
    """Fill a new folder with the pipeline of a checkpoint.

    Raises:
        ValueError: the checkpoint's weights do not fit the model of its config; names them.
    """
    from t2i.models.storage import save_transformer

    trained = yaml.safe_load((checkpoint.path / "config.yaml").read_text())
    model = load_trained(checkpoint, config.export, trained)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if trained_model(trained) == "tr_dit":
        save_transformer(model, folder / "transformer")
        add_components(config, trained, folder)
        card = model_card(checkpoint, config, trained, num_parameters)
    else:
        save_transformer(model, folder)
        card = class_model_card(checkpoint, config, trained, num_parameters)
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


def load_trained(
    checkpoint: Checkpoint, config: ExportConfig, trained: dict[str, Any]
) -> TRDiT | SiT | MaskDiT:
    """The model of a checkpoint. Raises as `export`."""
    import torch

    from t2i.encoders.vae import DTYPES
    from t2i.models.mask_dit import MaskDiT
    from t2i.models.sit import SiT
    from t2i.models.storage import load_weights
    from t2i.models.tr_dit import TRDiT

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
    tensors = checkpoint.tensors(config.weights)
    weights = {key: tensors[key].to(DTYPES[config.dtype]) for key in tensors}
    load_weights(model, weights, f"{checkpoint.path}/{config.weights}.safetensors")
    return model


def named(config: Any, folder: Path) -> Any:
    """A component's config whose path holds wherever the command is run: absolute, if on disk."""
    path = Path(config.path)
    if (folder / path).is_dir() and not path.is_absolute():
        return config
    return config.model_copy(update={"path": str(path.resolve())}) if path.is_dir() else config


def describe_source(checkpoint: Checkpoint, config: ExportConfig) -> dict[str, Any]:
    """What an export is made of: equal descriptions give equal folders."""
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    return {
        "checkpoint": str(checkpoint.path.resolve()),
        "step": checkpoint.state.step,
        "sha256": manifest["files"][f"{config.weights}.safetensors"]["sha256"],
        "weights": config.weights,
        "dtype": config.dtype,
        "encoders": config.encoders,
        "size": list(config.size),
    }


def read_source(folder: Path) -> dict[str, Any] | None:
    """What an export folder says it is made of, None if it is not one."""
    path = folder / SOURCE_NAME
    return json.loads(path.read_text()) if path.is_file() else None


def model_card(
    checkpoint: Checkpoint, config: Config, trained: dict[str, Any], num_parameters: int
) -> str:
    """README.md: what the model is, how it was trained, on what, how well, and how to use it."""
    height, width = config.export.size
    components = {
        "resolution": f"{height}x{width}",
        "VAE": config.vae.path,
        "text encoder": trained["t2i"]["encoders"]["text"]["path"],
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

{facts(checkpoint, config, trained, num_parameters, components)}"""


def class_model_card(
    checkpoint: Checkpoint, config: Config, trained: dict[str, Any], num_parameters: int
) -> str:
    """README.md of a class-conditional model."""
    name = trained_model(trained)
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

{facts(checkpoint, config, trained, num_parameters, {})}"""


def facts(
    checkpoint: Checkpoint,
    config: Config,
    trained: dict[str, Any],
    num_parameters: int,
    components: dict[str, str],
) -> str:
    """The end of a model card: a table with ``components`` in it, and the run's settings."""
    training = trained["t2i"].get("training", {})
    loader = trained.get("data_pipeline", {}).get("loader", {})
    metrics = last_metrics(Path(config.export.run) / "metrics.jsonl", checkpoint.state.step)
    rows = {
        "parameters": f"{num_parameters:,}",
        "step": f"{checkpoint.state.step:,} ({config.export.weights}, {config.export.dtype})",
        "images seen": f"{checkpoint.state.step * training.get('global_batch', 0):,}",
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
