"""Proves the way from a nano run to a model with the average of a width that it did not track: it is near
to what the same run gives that tracks this width, and the commands say what they cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.train_t2i import Config, train_stage
from t2i.config import load_config
from t2i.console import run_command
from t2i.export import main
from t2i.models.storage import load_model
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.checkpoint import newest_checkpoint, power_kind

REPO = Path(__file__).resolve().parents[2]
STEPS, WIDTH = 40, 0.075
CONFIG = """
base: {repo}/configs/nano.yaml
root: {root}
data_pipeline:
  loader: {{num_workers: 0}}
t2i:
  models:
    tr_dit: {{num_layers: 3, width: 32, num_heads: 2, routes: [[1, 1]], adaln_rank: 8}}
  training: {{steps: {steps}, global_batch: 4, micro_batch: 4, warmup_steps: 5, precision: fp32,
             power_averages: {widths}, snapshot_every: {every}}}
  export: {{run: {root}/runs/stage1, encoders: reference}}
"""


def write_config(root: Path, widths: list[float], every: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "config.yaml"
    path.write_text(CONFIG.format(repo=REPO, root=root, steps=STEPS, widths=widths, every=every))
    return path


def train(path: Path) -> None:
    config = load_config(path, [], Config)
    stage, device = config.launch.stage(1), torch.device("cpu")
    assert train_stage(1, stage, config.training, config.loader, config, device) == 0


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Relative, of all weights together."""
    squares = [
        (float((left[n] - right[n]).square().sum()), float(right[n].square().sum())) for n in right
    ]
    return float((sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, process_group: None) -> Path:
    """Two runs of the same weights; `tracked` has snapshots, `direct` the average to compare with."""
    root = tmp_path_factory.mktemp("post_hoc")
    train(write_config(root / "tracked", [0.05, 0.1], every=4))
    train(write_config(root / "direct", [WIDTH], every=0))
    return root


def export(root: Path, *flags: str) -> int:
    return run_command(main, ["--config", str(root / "tracked" / "config.yaml"), *flags])


@pytest.mark.slow
def test_a_width_that_was_not_tracked(root: Path) -> None:
    assert export(root, "--width", str(WIDTH)) == 0
    folder = root / "tracked" / "export"
    made = load_model(TRDiT, TRDiTConfig, folder / "transformer").state_dict()
    saved = [
        newest_checkpoint(root / run / "runs/stage1/checkpoints") for run in ("direct", "tracked")
    ]
    assert saved[0] is not None
    assert saved[1] is not None
    wanted = dict(saved[0].tensors(power_kind(WIDTH)))
    weights = dict(saved[0].tensors("weights"))
    assert all(torch.equal(weights[n], t) for n, t in saved[1].tensors("weights").items())
    error = distance(made, wanted)
    others = [distance(dict(saved[1].tensors(power_kind(w))), wanted) for w in (0.05, 0.1)]
    assert error < 5e-4
    assert 5 * error < min(others)
    card = (folder / "README.md").read_text()
    assert "| step | 40 (average of relative width 0.075 out of 10 snapshot(s) of 0.05, 0.1" in card

    written = (folder / "README.md").stat().st_mtime_ns
    assert export(root, "--width", str(WIDTH)) == 0
    assert (folder / "README.md").stat().st_mtime_ns == written, "there is nothing to do"
    assert export(root, "--width", "0.1", "--step", "20") == 0
    card = (folder / "README.md").read_text()
    assert "| step | 20 (average of relative width 0.1 out of 5 snapshot(s)" in card
    assert "| images seen | 80 |" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--width", "0.3"), "a relative width lies between 0 and 0.28"),
        (("--width", "0.1", "--step", "21"), "no snapshot of step 21; there are [4, 8, 12,"),
        (("--step", "20"), "no checkpoint of step 20, only of"),
        (("--width", "0.1", "--run", "{root}/direct/runs/stage1"), "no whole snapshot; train with"),
        (("--set", "t2i.export.width=0.1"), "power and a width belong together"),
        (("--set", "t2i.export.weights=power"), "power and a width belong together"),
        (("--width", "0.01", "--step", "4"), "width 0.01 cannot be made of 1 snapshot(s)"),
    ],
)
def test_what_cannot_be_is_one_line(
    flags: tuple[str, ...], line: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("--output", str(root / "refused"))
    assert export(root, *output, *(flag.format(root=root) for flag in flags)) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error")]
    assert len(errors) == 1
    assert line in errors[0]
    assert not (root / "refused").exists()


@pytest.mark.slow
def test_a_run_may_not_change_its_widths(root: Path) -> None:
    path = root / "tracked" / "config.yaml"
    changed = load_config(
        path, ["t2i.training.power_averages=[0.05]", "t2i.training.steps=41"], Config
    )
    stage, device = changed.launch.stage(1), torch.device("cpu")
    with pytest.raises(ValueError, match=r"power_averages is \[0\.05\], but .*step-00000040 has"):
        train_stage(1, stage, changed.training, changed.loader, changed, device)


@pytest.mark.slow
def test_weights_and_width_are_one_choice(root: Path) -> None:
    with pytest.raises(SystemExit):
        export(root, "--weights", "ema", "--width", "0.1")
