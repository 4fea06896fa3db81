"""Proves the whole way: launch/demo.sh, killed twice on the way, ends with a report that adds up.

Real parts at the smallest sizes: HTTP on loopback, a Ray cluster, the DeepSpeed launcher with
ZeRO-2, the nano models. The second run must do no work.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.outputs.step_output import StepOutput

REPO = Path(__file__).resolve().parent.parent
STEPS = (
    "shapes",
    "download",
    "recaption",
    "filter",
    "latents",
    "train_stage_1",
    "train_stage_2",
    "export",
    "evaluate_demo",
    "evaluate_nano",
    "report",
)
CONFIG = """
base: {repo}/configs/demo.yaml
root: {root}
data_pipeline:
  source: {{num_images: 40, port: 8791}}
  download: {{rows_per_shard: 25, fetch: {{allow_hosts: ["127.0.0.1:8791"]}}}}
t2i:
  training: {{steps: 6, global_batch: 8, micro_batch: 8, checkpoint_every: 3, validate_every: 6}}
  sampling: {{num_builtin_prompts: 3, steps: 4}}
launch:
  train: {{validation_samples: 8, stage2: {{training: {{steps: 4}}}}}}
"""


def start_demo(config: Path) -> subprocess.Popen[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    return subprocess.Popen(
        ["bash", "launch/demo.sh", "--config", str(config)],
        cwd=REPO,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_demo(config: Path, kill_at: str | None = None) -> str:
    """Run the demo; kill -9 the whole process group as soon as step ``kill_at`` begins."""
    process = start_demo(config)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if kill_at is not None and line.startswith("$ ") and f"== {kill_at}\n" in lines:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    code = process.wait(timeout=600)
    assert code == (0 if kill_at is None else -signal.SIGKILL), "".join(lines)
    return "".join(lines)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a demo that was killed twice and then ran to its end."""
    folder = tmp_path_factory.mktemp("demo")
    config = folder / "tiny.yaml"
    config.write_text(CONFIG.format(repo=REPO, root=folder / "out"))
    run_demo(config, kill_at="download")
    run_demo(config, kill_at="train_stage_2")
    output = run_demo(config)
    assert "download: done before" in output
    assert "report.html" in output
    return folder / "out"


@pytest.mark.slow
def test_every_step_is_done(finished: Path) -> None:
    done = {path.name for path in (finished / "done").iterdir()}
    assert set(STEPS) <= done


@pytest.mark.slow
def test_the_funnel_adds_up_from_step_to_step(finished: Path) -> None:
    funnels = {
        step: StepOutput.open(str(finished / step)).funnel()
        for step in ("images", "captions", "kept", "latents")
    }
    for funnel in funnels.values():
        assert funnel.num_in == funnel.num_ok + funnel.num_filtered + funnel.num_failed
    assert funnels["images"].num_ok == 40
    assert funnels["images"].num_in > 40
    assert funnels["captions"].num_in == funnels["images"].num_ok
    assert funnels["latents"].num_ok == funnels["captions"].num_ok == 40
    assert 0 < funnels["kept"].num_ok < 40


@pytest.mark.slow
def test_stage_2_goes_on_from_stage_1(finished: Path) -> None:
    for stage, steps in (("stage1", 6), ("stage2", 4)):
        lines = (finished / "runs" / stage / "metrics.jsonl").read_text().splitlines()
        assert max(json.loads(line).get("step", 0) for line in lines) == steps


@pytest.mark.slow
def test_the_report_shows_every_part(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for title in ("Data funnel", "Captions", "Training", "Samples", "Scores", "Timings"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<img") >= 2 * 3 * 4
    assert page.count("<th>truth</th><th>none</th><th>cfg</th><th>sg</th>") == 2
    assert page.count("a few hundred steps on 600 images") == 1
    assert page.count("rendered, through the VAE") == 1


@pytest.mark.slow
def test_a_second_run_does_no_work(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    output = run_demo(finished.parent / "tiny.yaml")
    assert "all is done" in output
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
