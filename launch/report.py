"""One HTML page about a run of the whole pipeline.

    python -m launch.report --config configs/demo.yaml

Reads what the steps left in the config's folders: the data funnel, captions beside their images,
loss curves, sample grids side by side, scores and timings. The page holds its pictures itself.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from t2i.config import Section, add_config_arguments, config_from_args, section
from t2i.console import command_parser, get_logger, run_command
from t2i.html import data_uri, image_uri, render_page

if TYPE_CHECKING:
    from launch.evidence.claims import Claim, Finding
    from t2i.evaluation.metric import Score

LOG = get_logger("report")
LEVELS = ("detailed", "several sentences", "one sentence", "keywords")
NUM_CAPTION_EXAMPLES = 6
NUM_SAMPLE_ROWS = 8
TEMPLATE = Path(__file__).with_name("report.html.jinja")


class ReportConfig(Section):
    """Which folders to read.

    ``samples`` holds <model>/<guidance>/, as t2i.sample writes and t2i.evaluate scores it, all of
    detailed prompts of the Shapes world; ``notes`` has a line about a model, by its name.
    """

    title: str = "Token-sparse text-to-image, in miniature"
    source: str = "outputs/demo/source"
    images: str = "outputs/demo/images"
    captions: str = "outputs/demo/captions"
    kept: str = "outputs/demo/kept"
    latents: str = "outputs/demo/latents"
    runs: tuple[str, ...] = ("outputs/demo/runs/stage1", "outputs/demo/runs/stage2")
    samples: str = "outputs/demo/samples"
    notes: Mapping[str, str] = Field(default_factory=dict)
    timings: str = "outputs/demo/done"
    output: str = "outputs/demo/report.html"


class Config(Section):
    report: ReportConfig = section("launch.report")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m launch.report", __doc__)
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config).report

    from t2i.evaluation.shapes_eval import SCORES

    accuracy, num_captioned_objects = caption_accuracy(config)
    page = render_page(
        TEMPLATE,
        title=config.title,
        funnel=funnel_rows(config),
        caption_examples=caption_examples(config),
        caption_accuracy=accuracy,
        num_captioned_objects=num_captioned_objects,
        loss_curves=loss_curves(config.runs),
        models=sample_models(Path(config.samples), config.notes),
        score_names=SCORES,
        scores=score_rows(Path(config.samples)),
        evidence=evidence(),
        timings=timings(Path(config.timings)),
    )
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page)
    LOG.info("wrote %s", output)
    return 0


def funnel_rows(config: ReportConfig) -> list[list[Any]]:
    """Rows in, ok, filtered and failed of every step, with the reasons."""
    from data_pipeline.outputs.step_output import StepOutput

    rows = []
    steps = {
        "download": config.images,
        "recaption": config.captions,
        "filter": config.kept,
        "latents": config.latents,
    }
    for name, url in steps.items():
        funnel = StepOutput.open(url).funnel()
        reasons = ", ".join(
            f"{reason}: {num}" for (_, reason), num in sorted(funnel.reasons.items()) if reason
        )
        rows.append(
            [name, funnel.num_in, funnel.num_ok, funnel.num_filtered, funnel.num_failed, reasons]
        )
    return rows


def caption_examples(config: ReportConfig) -> list[tuple[str, list[str]]]:
    """A few images of the first shard, as data URIs, with their four captions."""
    from data_pipeline.outputs.step_output import StepOutput

    images, captions = StepOutput.open(config.images), StepOutput.open(config.captions)
    shard_id = captions.manifests()[0].id
    pictures = {sample.key: sample.parts for sample in images.read(shard_id)}
    examples: list[tuple[str, list[str]]] = []
    for sample in captions.read(shard_id):
        if len(examples) == NUM_CAPTION_EXAMPLES:
            break
        parts = pictures[sample.key]
        extension = next(name for name in parts if name in ("jpg", "png", "webp"))
        texts = json.loads(sample.parts["json"])["captions"]
        examples.append((data_uri(parts[extension], extension), texts))
    return examples


def caption_accuracy(config: ReportConfig) -> tuple[list[list[str]], int]:
    """Per caption level, the share of drawn objects that are named in the right colour and shape.

    Returns:
        (level, percent) of each, and the number of objects drawn.
    """
    from data_pipeline.outputs.step_output import StepOutput
    from data_pipeline.sources.shapes import load_pictures
    from t2i.shapes import parse_caption

    scenes = {picture.url: picture.scene for picture in load_pictures(Path(config.source))}
    images, captions = StepOutput.open(config.images), StepOutput.open(config.captions)
    num_right, num_objects = [0] * len(LEVELS), 0
    for shard_id in captions.committed():
        urls = {s.key: json.loads(s.parts["json"])["url"] for s in images.read(shard_id)}
        for sample in captions.read(shard_id):
            drawn = Counter((o.color, o.shape) for o in scenes[urls[sample.key]].objects)
            num_objects += drawn.total()
            for level, text in enumerate(json.loads(sample.parts["json"])["captions"]):
                named = Counter((o.color, o.shape) for o in parse_caption(text))
                num_right[level] += (drawn & named).total()
    rows = [
        [name, f"{100 * right / max(num_objects, 1):.1f} %"]
        for name, right in zip(LEVELS, num_right, strict=True)
    ]
    return rows, num_objects


def loss_curves(runs: Iterable[str]) -> str:
    """Training loss of each run over its steps, smoothed, in one picture; its data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for run in runs:
        lines = Path(run, "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        steps = [record["step"] for record in records if "loss" in record]
        losses = [record["loss"] for record in records if "loss" in record]
        (line,) = axes.plot(steps, losses, alpha=0.25)
        axes.plot(steps, smoothed(losses), color=line.get_color(), label=Path(run).name)
    axes.set_xlabel("step")
    axes.set_ylabel("flow-matching loss")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return data_uri(buffer.getvalue(), "png")


def smoothed(values: Sequence[float], half_life: float = 5.0) -> list[float]:
    """Exponential moving average with the given half-life in entries."""
    keep = 0.5 ** (1 / half_life)
    result: list[float] = []
    for value in values:
        result.append(value if not result else keep * result[-1] + (1 - keep) * value)
    return result


@dataclass(frozen=True)
class SampledModel:
    """Samples of a model: per prompt the data URIs of its images, one for each column."""

    name: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def sample_models(folder: Path, notes: Mapping[str, str]) -> list[SampledModel]:
    """The first samples of every model, by guidance, beside the truth."""
    from t2i.side_by_side import read_columns

    models = []
    for model in model_folders(folder):
        prompts, columns = read_columns(guidance_folders(model), NUM_SAMPLE_ROWS, with_truth=True)
        by_prompt = zip(*columns.values(), strict=True)
        rows = [
            (prompt, [image_uri(image) for image in images])
            for prompt, images in zip(prompts, by_prompt, strict=True)
        ]
        models.append(SampledModel(model.name, notes.get(model.name, ""), list(columns), rows))
    return models


def model_folders(folder: Path) -> list[Path]:
    """The folders of models among the samples, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def guidance_folders(model: Path) -> list[Path]:
    """Sample folders of a model: unguided first, then by name."""
    folders = [path for path in model.iterdir() if path.is_dir()]
    return sorted(folders, key=lambda path: (path.name != "none", path.name))


def score_rows(folder: Path) -> list[tuple[str, dict[str, Score]]]:
    """The Shapes scores of every model and guidance, then the truth's, each once."""
    from t2i.evaluation.score_files import read_scores, score_file

    rows: list[tuple[str, dict[str, Score]]] = []
    truths: dict[str, dict[str, Score]] = {}
    for model in model_folders(folder):
        for guidance in guidance_folders(model):
            scores, _ = read_scores(score_file(guidance, "shapes"))
            rows.append((f"{model.name}, {guidance.name}", by_name(scores.scores)))
            truths |= {name: by_name(own) for name, own in scores.truth.items()}
    return [*rows, *truths.items()]


def evidence() -> list[tuple[Claim, Finding]]:
    """What the stored comparison of guidance methods says of the papers' claims, where it has data."""
    from launch.evidence.claims import findings
    from launch.evidence.page import read_tables

    try:
        found = findings(read_tables())
    except FileNotFoundError:  # no study is stored
        return []
    return [(claim, finding) for claim, finding in found if finding.verdict != "no data yet"]


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def timings(folder: Path) -> list[dict[str, Any]]:
    """Step, seconds and command of every step, in the order in which they ran."""
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir(), key=modified)]


def modified(path: Path) -> float:
    return path.stat().st_mtime


if __name__ == "__main__":
    raise SystemExit(run_command(main))
