"""A model's folder: config.json and safetensors weights, in the manner of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i.config import Section

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
CONFIG_NAME = "config.json"
CLASS_KEY = "_class_name"

ModelT = TypeVar("ModelT", bound=nn.Module)


def save_transformer(model: nn.Module, folder: Path) -> None:
    """Write config.json (the class's name and `model.config`) and the weights to `folder`."""
    assert isinstance(model.config, Section)
    folder.mkdir(parents=True, exist_ok=True)
    config = {CLASS_KEY: type(model).__name__, **model.config.model_dump(mode="json")}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def load_model(
    model_class: type[ModelT],
    config_class: type[Section],
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> ModelT:
    """The model that `save_transformer` wrote, in eval mode; dtype None = as stored.

    Raises:
        FileNotFoundError: no config or weights.
        ValueError: a model of another class; unknown or missing weights, or weights of another
            shape; names them.
    """
    values = json.loads((folder / CONFIG_NAME).read_text())
    stored_class = values.pop(CLASS_KEY, model_class.__name__)
    if stored_class != model_class.__name__:
        raise ValueError(
            f"{folder / CONFIG_NAME}: holds a {stored_class}, not a {model_class.__name__}"
        )
    with torch.device("meta"):
        model = model_class(config_class.model_validate(values))
    weights = load_file(folder / WEIGHTS_NAME, device=str(device))
    load_weights(model, weights, str(folder / WEIGHTS_NAME))
    return model.to(dtype=dtype).eval()


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Put `weights` in place of the model's (which may be on the meta device).

    Raises:
        ValueError: unknown or missing names, or other shapes; the message starts with `source`.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    check_shapes(expected, weights, source)
    model.load_state_dict(weights, assign=True)


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], source: str
) -> None:
    """Refuse weights that have other names or shapes than `expected`.

    Raises:
        ValueError: names the first five; the message starts with `source`.
    """
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, the config asks for {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{source} does not fit its config: {'; '.join(problems[:5])}{more}")
