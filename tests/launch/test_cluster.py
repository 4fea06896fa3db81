"""Proves the cluster files: under a make-believe SLURM of two nodes a run survives a rank that is killed and
a head that is stopped and comes again, is queued again after SIGTERM, and ends; what cannot be run here is parsed by those who read it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput

REPO = Path(__file__).resolve().parents[2]
CLUSTER = REPO / "launch" / "cluster"
STEPS = 200
CONFIG = """
data_pipeline:
  loader: {datasets: [{path: FOLDER/latents}], labels: true, num_workers: 0}
t2i:
  models:
    sit: {num_layers: 2, width: 16, num_heads: 2, num_classes: 3, routes: [[1, 1]]}
  training: {steps: STEPS, global_batch: 4, micro_batch: 2, log_every: 1, checkpoint_every: 10}
launch:
  train: {model: sit, stage1: {folder: FOLDER/run}}
"""
# srun starts its command once per node and passes SIGTERM on; its exit code is the highest one.
SRUN = """#!/usr/bin/env bash
pids=()
trap 'stopped=yes; kill -TERM "${pids[@]}"' TERM
for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=($!); done
code=0
for pid in "${pids[@]}"; do
    wait "$pid"; one=$?
    if [ -n "${stopped:-}" ] && kill -0 "$pid" 2>/dev/null; then wait "$pid"; one=$?; fi
    [ "$one" -le "$code" ] || code=$one
done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) printf '127.0.0.1\\n127.0.0.1\\n' ;;
    requeue) echo "$2" >>"$(dirname "$0")/requeued" ;;
esac
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A tiny run on 16 samples of three classes."""
    output = StepOutput.open(str(tmp_path / "latents"))
    with output.writer("00000", {"bucket": "string"}) as writer:
        for number in range(16):
            buffer, key = io.BytesIO(), f"{number:011d}"
            np.save(buffer, np.full((8, 4, 4), 0.1 * (number % 3), np.float16))
            facts = {"captions": ["a circle"] * 4, "label": number % 3}
            parts = {"npy": buffer.getvalue(), "json": json.dumps(facts).encode()}
            writer.add(Outcome(Row(key, "ok", columns={"bucket": "32x32"}), Sample(key, parts)))
        writer.commit()
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(tmp_path)).replace("STEPS", str(STEPS)))
    return path


@pytest.fixture
def sbatch(config: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start the job script as SLURM would, on two nodes with a process each."""
    folder = config.parent
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
        "SLURM_SUBMIT_DIR": str(REPO),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node-[0-1]",
        "SLURM_NNODES": "2",
        "PROCESSES_PER_NODE": "1",
        "PAUSE_SECONDS": "1",
    }
    script = [str(CLUSTER / "slurm.sbatch"), "--stage", "1", "--config", str(config)]
    jobs: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        log = (folder / "job.log").open("a")
        jobs.append(
            subprocess.Popen(["bash", *script], env=environment, stdout=log, stderr=log, text=True)
        )
        return jobs[-1]

    yield start
    for job in jobs:
        if job.poll() is None:
            for child in psutil.Process(job.pid).children(recursive=True):
                child.kill()
            job.kill()


def newest_step(config: Path) -> int:
    steps = [int(path.name[5:]) for path in config.parent.glob("run/checkpoints/step-????????")]
    return max(steps, default=0)


def wait_for_step(config: Path, step: int, job: subprocess.Popen[str]) -> None:
    while newest_step(config) < step:
        assert job.poll() is None, (config.parent / "job.log").read_text()[-5000:]
        time.sleep(0.05)


def descendants(job: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    children = psutil.Process(job.pid).children(recursive=True)
    return [child for child in children if any(name in part for part in child.cmdline()[:3])]


def restart_head(job: subprocess.Popen[str], log: Path) -> subprocess.Popen[str]:
    """Stop the head as a scheduler does that evicts its pod, and start the pod again."""
    nodes = descendants(job, "node.sh")
    (head,) = (node for node in nodes if node.environ().get("NODE_RANK") == "0")
    command, environment = head.cmdline(), head.environ()
    head.send_signal(signal.SIGTERM)
    while head.is_running() and head.status() != psutil.STATUS_ZOMBIE:
        assert job.poll() is None
        time.sleep(0.05)
    file = log.open("a")
    return subprocess.Popen(command, cwd=REPO, env=environment, stdout=file, stderr=file, text=True)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_survives_a_killed_rank_a_lost_head_and_a_stop(
    config: Path, sbatch: Callable[[], subprocess.Popen[str]]
) -> None:
    job = sbatch()
    wait_for_step(config, 10, job)
    ranks = descendants(job, "train_t2i.py")
    assert len(ranks) == 2
    ranks[0].send_signal(signal.SIGKILL)

    wait_for_step(config, newest_step(config) + 30, job)
    assert ranks[0].pid not in [rank.pid for rank in descendants(job, "train_t2i.py")]
    log = config.parent / "job.log"
    new_head = restart_head(job, log)
    try:
        wait_for_step(config, newest_step(config) + 30, job)
        assert "node 1: torchrun ended with 1" in log.read_text()
        new_head.send_signal(signal.SIGTERM)
        srun = descendants(job, str(config.parent / "srun"))[0]
        srun.send_signal(signal.SIGTERM)
        assert new_head.wait(timeout=300) == 75
    finally:
        new_head.kill()
    assert job.wait(timeout=300) == 75, log.read_text()[-5000:]
    assert (config.parent / "requeued").read_text().split() == [str(os.getpid())]
    assert newest_step(config) < STEPS

    assert sbatch().wait(timeout=300) == 0, log.read_text()[-5000:]
    assert newest_step(config) == STEPS
    lines = (config.parent / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))


def run_node(
    python: Path | None, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run node.sh as the only node, with another ``python`` if one is given."""
    folders = [*([python.parent] if python else []), Path(sys.executable).parent]
    environment = {
        **os.environ,
        "PATH": ":".join([*map(str, folders), os.environ["PATH"]]),
        "PYTHONPATH": str(REPO),
        **{"NUM_NODES": "1", "NODE_RANK": "0", "HEAD": "127.0.0.1:0", "RUN_ID": "1"},
        **{"PROCESSES_PER_NODE": "1", "PAUSE_SECONDS": "0", **settings},
    }
    command = ["bash", str(CLUSTER / "node.sh"), "--stage", "1", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_wrong_settings_end_a_node_with_2_at_once() -> None:
    done = run_node(None, "--set", "t2i.training.nonsense=1", MAX_RESTARTS="0")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "nonsense" in done.stderr


@pytest.mark.parametrize(("codes", "expected"), [("1 0", 0), ("1 2", 2), ("1 75 1", 1)])
def test_a_node_starts_torchrun_again(codes: str, expected: int, tmp_path: Path) -> None:
    """Against a make-believe python that ends with one code after the other."""
    (tmp_path / "codes").write_text("\n".join([*codes.split(), ""]))
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\ncd "$(dirname "$0")"\ncode=$(head -n 1 codes)\n'
        'sed -i 1d codes\nexit "$code"\n'
    )
    python.chmod(0o755)
    done = run_node(python, MAX_STARTS="3")
    assert done.returncode == expected, done.stderr
    assert (tmp_path / "codes").read_text() == ""


def test_the_deepspeed_launcher_reads_the_hostfile() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(CLUSTER / "hostfile")) == {"node-0": 8, "node-1": 8}


def test_the_kubernetes_job_fits_together() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (REPO / container["command"][1]).is_file()
    assert int(environment["NUM_NODES"]) == spec["completions"] == spec["parallelism"]
    assert int(environment["STOP_SECONDS"]) < pod["terminationGracePeriodSeconds"]
    name = service["metadata"]["name"]
    assert pod["subdomain"] == name
    assert environment["HEAD"].startswith(f"{job['metadata']['name']}-0.{name}:")
    by_codes = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    actions = {rule["action"]: rule["onExitCodes"]["values"] for rule in by_codes}
    assert actions == {"FailJob": [2], "Ignore": [75]}
    assert {rule["onExitCodes"]["containerName"] for rule in by_codes} == {container["name"]}
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }


@pytest.mark.parametrize("name", ["slurm.sbatch", "node.sh"])
def test_scripts_parse(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(CLUSTER / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
