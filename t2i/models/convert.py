"""Read a public DiT or SiT checkpoint and write it as a model folder of this system.

    python -m t2i.models.convert SiT-XL-2-256.pt outputs/sit_xl_2 --size SiT-XL/2
    python -m t2i.models.convert DiT-XL-2-256x256.pt outputs/dit_xl_2 --size DiT-XL/2
    python -m t2i.models.convert last.pt outputs/sit_b_2 --size SiT-B/2 --reverse-time

The folder holds config.json and safetensors; `t2i.models.sit.load_sit` reads it. Names may have been
wrapped (module., _orig_mod., ema.); of a training checkpoint its EMA is taken.

Time: the published SiT has t = 1 for data and predicts data - noise, as this system does, and is
taken as it is. Other SiT trainers (REPA, TREAD, Model-guidance) have t = 1 for noise and predict
noise - data; --reverse-time turns their weights into ours, exactly. DiT predicts the noise of its
own 1000-step diffusion and stays so (prediction "epsilon" in config.json).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.console import command_parser, get_logger, run_command
from t2i.models.sit_config import SiTConfig

if TYPE_CHECKING:
    from torch import Tensor

LOG = get_logger("convert")
# ours -> public, parts of names
PUBLIC_NAMES = {
    "head.modulation.": "final_layer.adaLN_modulation.1.",
    "head.out.": "final_layer.linear.",
    "modulation.": "adaLN_modulation.1.",
    "attention.qkv.": "attn.qkv.",
    "attention.out.": "attn.proj.",
    "mlp.hidden.": "mlp.fc1.",
    "mlp.out.": "mlp.fc2.",
    "patch.": "x_embedder.proj.",
    "time.hidden.": "t_embedder.mlp.0.",
    "time.out.": "t_embedder.mlp.2.",
    "label.": "y_embedder.embedding_table.",
}
# parts of names by DistributedDataParallel, torch.compile, FSDP and checkpointing; they name no weight
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
POSITIONS = "pos_embed"
POSITION_TOLERANCE = 1e-4  # beside the rounding of the file's dtype


def public_name(name: str) -> str:
    """Our name of a weight -> that of the public checkpoints."""
    for ours, public in PUBLIC_NAMES.items():
        if ours in name:
            return name.replace(ours, public)
    raise AssertionError(f"{name} has no public name")


def public_shapes(config: SiTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a public checkpoint of this size, without its fixed positions."""
    import torch

    from t2i.models.sit import SiT

    with torch.device("meta"):
        model = SiT.from_config(config)
    shapes = {public_name(name): tuple(weight.shape) for name, weight in model.named_parameters()}
    patch = (config.width, config.in_channels, config.patch_size, config.patch_size)
    return shapes | {"x_embedder.proj.weight": patch}


def convert_state_dict(
    weights: dict[str, Tensor], config: SiTConfig, source: str, reverse_time: bool = False
) -> dict[str, Tensor]:
    """Weights under public names -> those of `SiT.from_config(config)`, in the same dtypes.

    Args:
        weights: a public state dict, fixed positions included.
        config: the size that it must have.
        source: what error messages start with.
        reverse_time: the network's t = 1 is noise and it predicts noise - data.

    Raises:
        ValueError: unknown or missing names, other shapes, or positions that are not DiT's.
    """
    import torch

    from t2i.models.sit import SiT
    from t2i.models.storage import check_shapes

    shapes = public_shapes(config)
    tokens = weights[POSITIONS].numel() // config.width if POSITIONS in weights else 0
    check_shapes(shapes | {POSITIONS: (1, tokens, config.width)}, weights, source)
    check_positions(weights[POSITIONS], source)
    with torch.device("meta"):
        names = list(SiT.from_config(config).state_dict())
    converted = {name: weights[public_name(name)] for name in names}
    converted["patch.weight"] = converted["patch.weight"].flatten(1)
    for name in ("head.out.weight", "head.out.bias"):
        converted[name] = channels_first(converted[name], config.patch_size)
    if reverse_time:
        converted["time.hidden.weight"] = reversed_time(converted["time.hidden.weight"])
        num_velocities = config.in_channels * config.patch_size**2
        for name in ("head.out.weight", "head.out.bias"):
            velocity, rest = converted[name].tensor_split([num_velocities])
            converted[name] = torch.cat((-velocity, rest))
    return {name: weight.contiguous() for name, weight in converted.items()}


def channels_first(rows: Tensor, patch_size: int) -> Tensor:
    """Rows of the head in order (y, x, channel) -> (channel, y, x)."""
    by_channel = rows.unflatten(0, (patch_size, patch_size, -1)).movedim(2, 0)
    return by_channel.flatten(0, 2)


def reversed_time(weight: Tensor) -> Tensor:
    """First layer of the time embedding, (width, 256), for 1 - t instead of t.

    It reads cos(f t) and sin(f t), and cos(f (1 - t)) = cos f cos(f t) + sin f sin(f t),
    sin(f (1 - t)) = sin f cos(f t) - cos f sin(f t): a reflection of each pair of columns.
    """
    import torch

    from t2i.models.layers import time_sinusoids

    cos, sin = time_sinusoids(torch.ones(1), scale=1.0)[0].double().chunk(2)
    of_cos, of_sin = weight.double().chunk(2, dim=1)
    columns = torch.cat((of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos), dim=1)
    return columns.to(weight.dtype)


def check_positions(positions_1TD: Tensor, source: str) -> None:
    """Refuse positions other than those that `SiT` computes; they are not stored.

    Raises:
        ValueError: not DiT's sines and cosines of a square grid.
    """
    import math

    import torch

    from t2i.models.sit_layers import sincos_positions

    num_tokens, width = positions_1TD.shape[1:]
    side = math.isqrt(num_tokens)
    expected_TD = sincos_positions(side, side, width, positions_1TD.device)
    # half of eps is the rounding of values up to 1
    tolerance = POSITION_TOLERANCE + torch.finfo(positions_1TD.dtype).eps / 2
    if side**2 != num_tokens or ((positions_1TD[0].float() - expected_TD).abs().max() > tolerance):
        raise ValueError(f"{source}: {POSITIONS} is not the fixed sin-cos grid of DiT and SiT")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or .pt file, see `state_dict_of`.

    Only tensors and plain containers are unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds other objects, or no state dict.
    """
    import pickle

    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:  # the trainers' checkpoints hold their command line beside the weights
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds more than tensors, or is damaged; save its state dict alone"
        ) from None
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise ValueError(
            f"{path}: cannot be read; if it is cut or damaged, copy it again ({reason})"
        ) from None
    return state_dict_of(content, str(path))


def state_dict_of(content: object, source: str) -> dict[str, Tensor]:
    """The weights of a file's content under their plain names; of a training checkpoint, its EMA.

    Raises:
        ValueError: there is no state dict.
    """
    import torch

    weights = content.get("ema", content) if isinstance(content, dict) else None
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(weight, torch.Tensor) for weight in weights.values())
    ):
        raise ValueError(f"{source}: neither a state dict nor a checkpoint with one under 'ema'")
    return plain_names(weights, source)


def plain_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights without what wrappers and trainers put into their names.

    A file that holds networks side by side, as ``ema.NAME`` and ``model.NAME``, gives its EMA; one
    with a single network may have either before all of its names.

    Raises:
        ValueError: two names differ in wrappers alone.
    """
    plain = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): weight
        for name, weight in weights.items()
    }
    if len(plain) < len(weights):
        raise ValueError(
            f"{source}: holds weights with and without {' or '.join(WRAPPERS)} in their names; save "
            "one state dict alone"
        )
    for nest in ("ema.", "model."):
        within = {name.removeprefix(nest): w for name, w in plain.items() if name.startswith(nest)}
        if len(within) == len(plain) or (within and nest == "ema."):
            plain = within
    return plain


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_parser("python -m t2i.models.convert", __doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pt or .safetensors")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make")
    parser.add_argument("--size", required=True, help="SiT-XL/2, DiT-B/4, ...")
    parser.add_argument("--classes", type=int, default=1000, help="without the null class (1000)")
    parser.add_argument("--channels", type=int, default=4, help="of the latents (4)")
    parser.add_argument(
        "--no-learn-sigma", action="store_true", help="the head has C channels, not 2 C"
    )
    parser.add_argument(
        "--reverse-time", action="store_true", help="SiT only: t = 1 is noise, v = noise - data"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a checkpoint."""
    args = build_parser().parse_args(argv)
    config = SiTConfig.from_size(
        args.size,
        num_classes=args.classes,
        in_channels=args.channels,
        learn_sigma=not args.no_learn_sigma,
    )
    if args.reverse_time and config.prediction != "velocity":
        raise ValueError("--reverse-time is for velocities (SiT); DiT predicts epsilon")
    if args.output.exists():
        raise ValueError(f"{args.output}: exists; choose another OUTPUT")

    import torch

    from t2i.models.sit import SiT
    from t2i.models.storage import load_weights, save_transformer

    source = str(args.checkpoint)
    weights = read_checkpoint(args.checkpoint)
    converted = convert_state_dict(weights, config, source, args.reverse_time)
    with torch.device("meta"):
        model = SiT.from_config(config)
    load_weights(model, converted, source)
    save_transformer(model, args.output)
    LOG.info("%s -> %s (%s, predicts %s)", source, args.output, args.size, config.prediction)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
