"""Proves what the picture of runs is drawn from, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2i.training.plot import History, main, read_history, smoothed


def write_run(folder: Path, steps: int) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        measured = {"loss": 1 / step, "loss_by_time": [float(step), None], "seconds": 1800.0}
        speeds = {"gradient_norm": 1.0, "images_per_second": 3.0, "tflops": 1e-3, "mfu": None}
        place = {"step": step, "samples_seen": 8 * step, "learning_rate": 1e-3}
        lines.append(measured | speeds | place)
    swapped = {"ema_swapped_words": {"shape": 0.1, "size": None}}
    lines.append({"step": steps, "validation_loss": 0.5} | swapped)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 9')
    return folder


def test_the_x_axis_counts_steps_samples_or_hours(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run", 4))
    assert history.curve("loss", "steps") == ([1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4])
    assert history.curve("loss", "samples")[0] == [8, 16, 24, 32]
    assert history.curve("loss", "hours")[0] == [0.5, 1, 1.5, 2]
    assert history.curve("validation_loss", "samples") == ([32], [0.5])
    assert history.curve("mfu", "steps") == ([], [])
    assert history.swapped_words("samples") == {"shape": ([32], [0.1])}


def test_loss_by_time_is_that_of_the_end() -> None:
    lines = [{"step": n, "loss_by_time": [float(n), None]} for n in range(1, 21)]
    assert History("run", lines).loss_by_time() == [19.5, None]


def test_smoothing_keeps_a_constant_and_starts_unbiased() -> None:
    assert smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    assert smoothed([5.0, 1.0])[0] == 5.0


def test_runs_are_drawn_into_one_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_run(tmp_path / name / "stage1", 4) for name in ("a", "b"))
    assert main([str(first), str(second), "--x", "hours"]) == 0
    assert (first / "plot.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{first}: step 4" in printed
    assert main([str(second), "--output", str(tmp_path / "new" / "picture.png")]) == 0
    assert (tmp_path / "new" / "picture.png").exists()


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metrics\.jsonl; name the folders"):
        main([str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has not logged yet"):
        main([str(tmp_path)])
