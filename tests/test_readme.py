"""Proves that the README's commands work as they stand: each is run, or covered by name elsewhere.

The commands run in an empty folder that links to the repository's packages, so that their
outputs/ stay out of the repository. No network, no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text()
# Run by another test, or what runs the tests.
COVERED_ELSEWHERE = {
    "bash launch/demo.sh": "test_nano_end_to_end",
    "bash launch/test.sh": "runs this test",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """Every command line of the README's bash blocks, without comments, in their order."""
    lines = [
        line.split("   #")[0].strip() for block in blocks("bash") for line in block.split("\n")
    ]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("readme")
    for name in ("launch", "configs", "t2i", "data_pipeline", "recaption"):
        (folder / name).symlink_to(REPO / name)
    yield folder
    if "ray stop" not in commands():
        run("ray stop --force", folder)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_readme_shows_the_three_literal_commands() -> None:
    text = "\n".join(commands())
    for literal in (
        "ray job submit recaption",
        "deepspeed launch/train_t2i.py --stage 2",
        "python -m t2i.sample --sg 0.1,0.8 --omega 1.8",
    ):
        assert literal in text


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if c not in COVERED_ELSEWHERE])
def test_command_of_the_readme_works(command: str, workplace: Path) -> None:
    result = run(command, workplace)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"


@pytest.mark.slow
def test_python_of_the_readme_works(workplace: Path) -> None:
    (workplace / "outputs").mkdir(exist_ok=True)
    for code in blocks("python"):
        result = run(f"python - <<'PYTHON'\n{code}\nPYTHON", workplace)
        assert result.returncode == 0, result.stderr[-3000:]
    assert (workplace / "outputs" / "circle.png").exists()


HELP = sorted(
    {
        *re.findall(r"python -m [\w.]+", README),
        "python launch/train_t2i.py",
        "recaption",
        "python -m recaption.gallery",
        "python -m t2i.models.convert",
        "python -m t2i.models.flops",
    }
)


@pytest.mark.parametrize("command", HELP)
def test_help_answers_in_two_seconds_and_teaches_by_example(command: str, workplace: Path) -> None:
    run(f"{command} --help", workplace)  # writes the bytecode caches
    begin = time.monotonic()
    result = run(f"{command} --help", workplace)
    seconds = time.monotonic() - begin
    assert result.returncode == 0, result.stderr
    name = command.split()[-1].removeprefix("launch/")
    assert result.stdout.count(name) >= 2, "no example of a call"
    assert seconds < 2
