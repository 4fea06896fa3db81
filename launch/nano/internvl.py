"""Train InternVL-nano, which captions Shapes images and encodes the text of the nano models.

    python -m launch.nano.internvl --output t2i/assets/nano/text_encoder

A real `transformers` InternVL of about 3M parameters. First its vision tower learns to see: a
throw-away head names shape, colour and size in every place. Then the whole model learns to
describe images, to shorten descriptions, and plain captions behind the text encoder's prefix.
Last the vision tower learns to see better, while the language model, now done, stands still.
Batches are a function of (seed, step): the same command resumes from its last checkpoint and,
when finished, says so. At the end its captions of held-out scenes are measured and written to
``metrics.json``, and the whitening of its text states beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.console import MetricsFile, command_parser, get_logger, progress, run_command

if TYPE_CHECKING:
    import torch
    from transformers import InternVLForConditionalGeneration

    from launch.nano.internvl_tasks import Batch, SceneHead
    from t2i.encoders.internvl import InternVL, InternVLProcessor

LOG = get_logger("nano.internvl")
WARMUP_STEPS = 50
CHECKPOINT_EVERY = 200
# Weight of the scene head's loss beside the language loss.
SCENE_WEIGHT = 0.3
TEXT_SCENES_SEED = 256
MAX_NEW_TOKENS = 96
NUM_TEXT_SCENES = 200


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m launch.nano.internvl", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--vision-steps", type=int, default=600, help="first phase (600)")
    parser.add_argument("--steps", type=int, default=1800, help="second phase (1800)")
    parser.add_argument("--polish-steps", type=int, default=3000, help="last phase (3000)")
    parser.add_argument("--batch", type=int, default=64, help="examples a step (64)")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--held-out", type=int, default=256, help="scenes measured at the end (256)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers: 0.4 to 0.75 of the time of a step, after some minutes",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if (args.output / "metrics.json").exists():
        LOG.info("%s is finished: %s", args.output, (args.output / "metrics.json").read_text())
        return 0
    if args.batch % 16:
        raise ValueError(f"--batch {args.batch}: expected a multiple of 16")
    trainer = Trainer(args)
    trainer.run()
    finish(trainer.model, args)
    return 0


class Trainer:
    """All phases, from the newest checkpoint on."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from launch.nano.internvl_model import build_model, build_processor
        from launch.nano.internvl_tasks import SceneHead
        from t2i.models.compilation import compile_each

        self.args = args
        self.processor: InternVLProcessor = build_processor(args.output, args.seed)
        self.model: InternVLForConditionalGeneration = build_model(self.processor, args.seed)
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            width = self.model.config.text_config.hidden_size
            self.head: SceneHead = SceneHead(self.processor.num_image_tokens, width)
        # Twice as fast as scaled_dot_product_attention, whose CPU backward is slow in bfloat16.
        self.model.set_attn_implementation("eager")
        self.model.to(args.device)
        self.head.to(args.device)
        if args.compile:
            inner = self.model.model
            layers = [*inner.vision_tower.encoder.layer, *inner.language_model.layers]
            compile_each(layers, whole=False)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
        self.checkpoint = args.output.with_name(args.output.name + ".training.pt")
        self.metrics = MetricsFile(args.output.with_name(args.output.name + ".metrics.jsonl"))
        self.step = 0
        if self.checkpoint.exists():
            self.load()

    def run(self) -> None:
        """Train to the end of the last phase."""
        self.run_until(self.args.vision_steps + self.args.steps + self.args.polish_steps)

    def run_until(self, last: int) -> None:
        """Train up to step ``last``, saving every now and then."""
        import torch

        args = self.args
        with (
            progress("InternVL-nano", last, "steps", self.step) as bar,
            ThreadPoolExecutor(max_workers=1) as drawing,
        ):
            following = drawing.submit(self.make_batch, self.step)
            while self.step < last:
                batch = following.result()
                following = drawing.submit(self.make_batch, self.step + 1)
                with torch.autocast(args.device, torch.bfloat16):
                    losses = self.losses(batch)
                self.update(torch.stack(list(losses.values())).sum())
                values = {name: loss.item() for name, loss in losses.items()}
                self.metrics.write({"step": self.step, **values})
                self.step += 1
                bar.update(1, values)
                if self.step % CHECKPOINT_EVERY == 0:
                    self.save()
                    if self.step > args.vision_steps:
                        self.look()

    def make_batch(self, step: int) -> Batch:
        """The pictures and texts of a step, drawn while the step before is computed."""
        from launch.nano.internvl_tasks import make_batch, make_image_batch, make_polish_batch

        args = self.args
        if step < args.vision_steps:
            return make_image_batch(self.processor, args.seed, step, args.batch)
        if step < args.vision_steps + args.steps:
            return make_batch(self.processor, args.seed, step, args.batch)
        return make_polish_batch(self.processor, args.seed, step, args.batch)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The losses of this step; they are summed."""
        args, step = self.args, self.step
        if step >= args.vision_steps + args.steps:
            self.model.model.language_model.requires_grad_(False)
            self.model.lm_head.requires_grad_(False)
        batch = batch.to(args.device)
        image_tokens = self.model.get_image_features(batch.pixels).pooler_output
        scene = self.head.loss(image_tokens, batch.cells, batch.backgrounds)
        if step < args.vision_steps:
            return {"scene": scene}
        return {"answers": self.answer_loss(batch, image_tokens), "scene": SCENE_WEIGHT * scene}

    def answer_loss(self, batch: Batch, image_tokens: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy of the answers' tokens."""
        from torch.nn.functional import cross_entropy

        from launch.nano.internvl_tasks import IGNORED

        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        is_image = (batch.input_ids == self.model.config.image_token_id).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(is_image, image_tokens.to(embeddings.dtype))
        logits = self.model(inputs_embeds=embeddings, attention_mask=batch.attention_mask).logits
        return cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            batch.labels[:, 1:].flatten(),
            ignore_index=IGNORED,
        )

    def update(self, loss: torch.Tensor) -> None:
        """One optimizer step."""
        import torch

        args = self.args
        rate = args.learning_rate * learning_rate_factor(
            self.step, args.vision_steps, args.steps, args.polish_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()

    def look(self) -> None:
        """Log how the captions are now, on a few held-out scenes."""
        import torch

        from t2i.encoders.internvl import InternVL

        with torch.compiler.set_stance("force_eager"):  # answers have all lengths
            measured = measure(InternVL(self.model, self.processor), 64)
        self.model.train().requires_grad_(True)  # InternVL froze it
        self.metrics.write({"step": self.step, **measured})
        LOG.info("step %d: %s", self.step, measured)

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        import torch

        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        partial = self.checkpoint.with_name(self.checkpoint.name + ".tmp")
        torch.save(state, partial)
        partial.rename(self.checkpoint)

    def load(self) -> None:
        """Go on from the checkpoint."""
        import torch

        state = torch.load(self.checkpoint, weights_only=True, map_location=self.args.device)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        LOG.info("resuming at step %d from %s", self.step, self.checkpoint)


def learning_rate_factor(step: int, vision_steps: int, steps: int, polish_steps: int) -> float:
    """Each phase warms up linearly; the first stays there, the others fall as a cosine to 0."""
    if step < vision_steps:
        return min(1.0, (step + 1) / WARMUP_STEPS)
    step -= vision_steps
    if step >= steps:
        step, steps = step - steps, polish_steps
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def measure(internvl: InternVL, num_scenes: int) -> dict[str, float]:
    """Accuracy on held-out scenes, as fractions.

    ``objects``: objects named with the right colour and shape, from the image; ``places``: those
    named with the right size and place too; ``detailed``: captions right to the letter;
    ``sentences``, ``sentence``, ``keywords``: answers right to the letter, from the text of the
    level above alone; ``chained``: keywords right at the end of the whole chain from the image.
    """
    from collections import Counter

    from launch.nano.internvl_tasks import held_out_scenes
    from t2i.encoders.prompts import DETAILED_PROMPT, DISTILLING_PROMPTS
    from t2i.shapes import captions, parse_caption

    scenes, images = zip(*held_out_scenes(num_scenes), strict=True)
    truth = [captions(scene) for scene in scenes]
    described = internvl.describe(images, DETAILED_PROMPT, MAX_NEW_TOKENS)
    num_objects = num_named = num_placed = 0
    for scene, text in zip(scenes, described, strict=True):
        named = parse_caption(text)
        num_objects += len(scene.objects)
        num_placed += len(set(named) & set(scene.objects))
        wanted = Counter((o.color, o.shape) for o in scene.objects)
        num_named += (wanted & Counter((o.color, o.shape) for o in named)).total()
    accuracy = {
        "objects": num_named / num_objects,
        "places": num_placed / num_objects,
        "detailed": _share_equal(described, [texts[0] for texts in truth]),
    }
    chained = described
    names = ("sentences", "sentence", "keywords")
    for level, (name, prompt) in enumerate(zip(names, DISTILLING_PROMPTS, strict=True)):
        answers = internvl.rewrite([texts[level] for texts in truth], prompt, MAX_NEW_TOKENS)
        accuracy[name] = _share_equal(answers, [texts[level + 1] for texts in truth])
        chained = internvl.rewrite(chained, prompt, MAX_NEW_TOKENS)
    accuracy["chained"] = _share_equal(chained, [texts[3] for texts in truth])
    return accuracy


def _share_equal(answers: Sequence[str], truth: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(answers, truth, strict=True)) / len(truth)


def finish(model: InternVLForConditionalGeneration, args: argparse.Namespace) -> None:
    """Save the model in bfloat16 and measure what was saved on held-out scenes."""
    import torch

    from t2i.encoders.internvl import load_internvl

    model.to(torch.bfloat16).save_pretrained(args.output)
    save_text_whitening(args)
    measured = measure(load_internvl(str(args.output), args.device), args.held_out)
    metrics = {
        **{name: round(value, 4) for name, value in measured.items()},
        "num_held_out": args.held_out,
        "vision_steps": args.vision_steps,
        "steps": args.steps,
        "polish_steps": args.polish_steps,
        "seed": args.seed,
    }
    (args.output / "metrics.json").write_text(json.dumps(metrics) + "\n")
    args.output.with_name(args.output.name + ".training.pt").unlink(missing_ok=True)
    LOG.info("held-out accuracy: %s; saved to %s", metrics, args.output)


def save_text_whitening(args: argparse.Namespace) -> None:
    """Measure the text states of captions of all levels, and of no caption."""
    import numpy as np

    from t2i.encoders.text import load_text_encoder
    from t2i.encoders.text_config import TextEncoderConfig
    from t2i.encoders.text_whitening import measure_whitening
    from t2i.shapes import captions, random_scene

    rng = np.random.default_rng((args.seed, TEXT_SCENES_SEED))
    texts = [text for _ in range(NUM_TEXT_SCENES) for text in (*captions(random_scene(rng)), "")]
    encoder = load_text_encoder(
        TextEncoderConfig.model_validate({"path": str(args.output)}), args.device
    )
    measure_whitening(encoder, texts).save(args.output)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
