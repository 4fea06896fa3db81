"""Train the Shapes classifier, whose features tell sets of Shapes pictures apart.

    python -m launch.nano.classifier --output t2i/assets/nano/classifier

Seeded by (seed, step); minutes on two cores; run again when it is finished, it says so. At the end it
is measured on held-out scenes, drawn and through the VAE, and the shares go into metrics.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.nano.vae import HELD_OUT_SEED, IMAGE_SIZE, learning_rate_factor
from t2i.config import ASSETS_FOLDER
from t2i.console import command_parser, get_logger, progress, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.encoders.shapes_features import ShapesClassifier
    from t2i.shapes import Scene

LOG = get_logger("nano.classifier")
BATCH = 64
LEARNING_RATE = 3e-3


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m launch.nano.classifier", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the classifier")
    parser.add_argument("--vae", default=str(ASSETS_FOLDER / "nano" / "vae"))
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps (default 1500)")
    parser.add_argument(
        "--held-out", type=int, default=512, help="scenes measured at the end (512)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from t2i.encoders.shapes_features import METRICS_NAME, save_classifier

    args = build_parser().parse_args(argv)
    done = args.output / METRICS_NAME
    if done.exists():
        LOG.info("%s is finished: %s", args.output, done.read_text().strip())
        return 0
    model = train(args.seed, args.steps, args.device)
    accuracy = measure(model.cpu(), args.vae, args.held_out)
    save_classifier(model, accuracy, args.output)
    LOG.info("%s: %s", args.output, accuracy)
    return 0


def train(seed: int, steps: int, device: str) -> ShapesClassifier:
    """Minimise the sum of the cross entropies."""
    import torch
    import torch.nn.functional as F

    from t2i.encoders.shapes_features import ShapesClassifier

    torch.manual_seed(seed)
    model = ShapesClassifier().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    with progress("Shapes classifier", steps, "steps") as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * learning_rate_factor(step, steps)
            images, targets = drawn(seed, step * BATCH, BATCH)
            logits = model(images.to(device))
            loss = torch.stack(
                [
                    F.cross_entropy(logits[name].flatten(0, -2), target.flatten().to(device))
                    for name, target in targets.items()
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update(1, {"loss": loss.item()})
    return model.eval().requires_grad_(False)


def drawn(seed: int, first: int, num: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Scenes number ``first`` to ``first + num`` of a seed: images (num, 3, 128, 128) in [-1, 1],
    and their classes, (num, 9) of places or (num,) of pictures."""
    import numpy as np
    import torch

    from t2i.shapes import random_scene, render

    images, scenes = [], []
    for index in range(first, first + num):
        rng = np.random.default_rng((seed, index))
        scenes.append(random_scene(rng))
        images.append(np.asarray(render(scenes[-1], rng, IMAGE_SIZE)))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, classes(scenes)


def classes(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """What the classifier shall say of scenes."""
    import torch

    from t2i.encoders.shapes_features import GRID, OF_PLACE
    from t2i.shapes import BACKGROUNDS, COLORS, PATTERNS, PLACES, SHAPES, SIZES

    names = {"shape": SHAPES, "color": tuple(COLORS), "size": SIZES}
    found = {
        key: torch.full((len(scenes), GRID**2), number - 1) for key, number in OF_PLACE.items()
    }
    for row, scene in enumerate(scenes):
        for one in scene.objects:
            for key, values in names.items():
                place = PLACES.index(one.place)
                found[key][row, place] = values.index(getattr(one, key))
    found["pattern"] = torch.tensor([PATTERNS.index(scene.pattern) for scene in scenes])
    found["tone"] = torch.tensor([tuple(BACKGROUNDS).index(scene.tone) for scene in scenes])
    return found


def measure(model: ShapesClassifier, vae: str, num: int) -> dict[str, float]:
    """Shares of held-out scenes of which all is told right, and of objects by what is told."""
    from t2i.encoders.shapes_features import OF_PLACE
    from t2i.encoders.vae import load_vae
    from t2i.encoders.vae_config import VAEConfig

    images, targets = drawn(HELD_OUT_SEED, 0, num)
    autoencoder, found = load_vae(VAEConfig(path=vae)), {"num_scenes": float(num)}
    parts = [autoencoder.encode_moments(chunk) for chunk in images.split(32)]
    through = [autoencoder.decode(part[:, : autoencoder.num_channels]) for part in parts]
    is_object = targets["shape"] < OF_PLACE["shape"] - 1
    for name, chunks in (("drawn", images.split(32)), ("through the VAE", through)):
        answers = [model(chunk.clamp(-1, 1)) for chunk in chunks]
        for key, target in targets.items():
            is_right = join([answer[key].argmax(dim=-1) for answer in answers]) == target
            chosen = is_right[is_object] if key in OF_PLACE else is_right
            found[f"{key}, {name}"] = round(chosen.float().mean().item(), 4)
    return found


def join(parts: Sequence[Tensor]) -> Tensor:
    """Batches one after the other."""
    import torch

    return torch.cat(list(parts))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
