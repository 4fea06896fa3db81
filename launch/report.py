"""One HTML page about a run of the whole pipeline.

    python -m launch.report --config configs/demo.yaml

Reads what the steps left in the config's folders: the data funnel, captions beside their images,
loss curves, sample grids side by side, scores and timings. The page holds its pictures itself.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.config import Section, add_config_arguments, config_from_args, section
from t2i.console import get_logger, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = get_logger("report")
LEVELS = ("detailed", "several sentences", "one sentence", "keywords")
NUM_CAPTION_EXAMPLES = 6
NUM_SAMPLE_COLUMNS = 8
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #eee }
th:first-child, td:first-child { text-align: left } td.text { text-align: left; max-width: 40em }
img.pixel { width: 112px; image-rendering: auto } img.wide { max-width: 100% }
code { background: #f4f4f4; padding: 0 .3em; font-size: 85% } .note { color: #777 }
"""


class ReportConfig(Section):
    """Which folders to read; ``samples`` holds <model>/<guidance>/, as t2i.sample writes it."""

    title: str = "Token-sparse text-to-image, in miniature"
    source: str = "outputs/demo/source"
    images: str = "outputs/demo/images"
    captions: str = "outputs/demo/captions"
    kept: str = "outputs/demo/kept"
    latents: str = "outputs/demo/latents"
    runs: tuple[str, ...] = ("outputs/demo/runs/stage1", "outputs/demo/runs/stage2")
    samples: str = "outputs/demo/samples"
    timings: str = "outputs/demo/done"
    output: str = "outputs/demo/report.html"


class Config(Section):
    report: ReportConfig = section("launch.report")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config).report
    parts = [
        f"<h1>{html.escape(config.title)}</h1>",
        "<h2>Data funnel</h2>",
        funnel_table(config),
        "<h2>Captions</h2>",
        caption_examples(config),
        caption_accuracy(config),
        "<h2>Training</h2>",
        loss_curves(config.runs),
        "<h2>Samples</h2>",
        sample_grids(Path(config.samples)),
        "<h2>Scores</h2>",
        score_table(Path(config.samples)),
        "<h2>Timings</h2>",
        timing_table(Path(config.timings)),
    ]
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(config.title)}</title>"
    page += f"<style>{STYLE}</style>" + "\n".join(parts) + "\n"
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page)
    LOG.info("wrote %s", output)
    return 0


def funnel_table(config: ReportConfig) -> str:
    """Rows in, ok, filtered and failed of every step, with the reasons."""
    from data_pipeline.manifest import StepOutput

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
    return table(["step", "in", "ok (kept)", "filtered", "failed", "reasons"], rows)


def caption_examples(config: ReportConfig) -> str:
    """A few images of the first shard beside their four captions."""
    from data_pipeline.manifest import StepOutput

    images, captions = StepOutput.open(config.images), StepOutput.open(config.captions)
    shard_id = captions.manifests()[0].id
    pictures = {sample.key: sample.parts for sample in images.read(shard_id)}
    blocks: list[str] = []
    for sample in captions.read(shard_id):
        if len(blocks) == NUM_CAPTION_EXAMPLES:
            break
        parts = pictures[sample.key]
        extension = next(name for name in parts if name in ("jpg", "png", "webp"))
        lines = "<br>".join(
            f"{level}. {html.escape(text)}"
            for level, text in enumerate(json.loads(sample.parts["json"])["captions"], start=1)
        )
        picture = image_tag(parts[extension], extension, "pixel")
        blocks.append(f"<tr><td>{picture}</td><td class=text>{lines}</td></tr>")
    return f"<table>{''.join(blocks)}</table>"


def caption_accuracy(config: ReportConfig) -> str:
    """Per caption level, the share of drawn objects that are named in the right colour and shape."""
    from data_pipeline.manifest import StepOutput
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
    return table(["caption", f"objects named right, of {num_objects}"], rows)


def loss_curves(runs: Iterable[str]) -> str:
    """Training loss of each run over its steps, smoothed, in one picture."""
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
    return figure_tag(figure)


def smoothed(values: Sequence[float], half_life: float = 5.0) -> list[float]:
    """Exponential moving average with the given half-life in entries."""
    keep = 0.5 ** (1 / half_life)
    result: list[float] = []
    for value in values:
        result.append(value if not result else keep * result[-1] + (1 - keep) * value)
    return result


def sample_grids(folder: Path) -> str:
    """One table per model: a row per guidance, a column per prompt and seed."""
    from t2i.sampling.image_folder import read_image_list

    blocks = []
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        header, rows = "", []
        for guidance in guidance_folders(model):
            shown = read_image_list(guidance)[:NUM_SAMPLE_COLUMNS]
            header = "".join(
                f'<th class=note style="text-align:left;font-weight:normal;font-size:70%">{html.escape(prompt)}</th>'
                for _, prompt in shown
            )
            pictures = [image_tag(path.read_bytes(), "png", "pixel") for path, _ in shown]
            cells = "".join(f"<td>{picture}</td>" for picture in pictures)
            rows.append(f"<tr><td>{guidance.name}</td>{cells}</tr>")
        blocks.append(
            f"<h3>{html.escape(model.name)}</h3><table><tr><th></th>{header}</tr>{''.join(rows)}</table>"
        )
    return "".join(blocks)


def guidance_folders(model: Path) -> list[Path]:
    """Sample folders of a model: unguided first, then by name."""
    folders = [path for path in model.iterdir() if path.is_dir()]
    return sorted(folders, key=lambda path: (path.name != "none", path.name))


def score_table(folder: Path) -> str:
    """The Shapes scores of every model and guidance."""
    rows, names = [], []
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        for guidance in guidance_folders(model):
            scores = json.loads((guidance / "scores.json").read_text())
            names = list(scores)
            rows.append([f"{model.name}, {guidance.name}", *scores.values()])
    return table(["samples", *names], rows)


def timing_table(folder: Path) -> str:
    """Seconds of every step, in the order in which they ran."""
    records = [json.loads(path.read_text()) for path in sorted(folder.iterdir(), key=modified)]
    rows = [[r["step"], r["seconds"], f"<code>{html.escape(r['command'])}</code>"] for r in records]
    total = sum(record["seconds"] for record in records)
    return table(["step", "seconds", "command"], [*rows, ["total", round(total, 1), ""]], raw=True)


def modified(path: Path) -> float:
    return path.stat().st_mtime


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], raw: bool = False) -> str:
    """An HTML table; cells are escaped unless ``raw``."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{cell if raw else html.escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def image_tag(data: bytes, extension: str, css_class: str) -> str:
    """An <img> that holds its own bytes."""
    media_type = {"jpg": "jpeg"}.get(extension, extension)
    encoded = base64.b64encode(data).decode()
    return f'<img class={css_class} src="data:image/{media_type};base64,{encoded}">'


def figure_tag(figure: Figure) -> str:
    """A matplotlib figure as an <img>."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return image_tag(buffer.getvalue(), "png", "wide")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
