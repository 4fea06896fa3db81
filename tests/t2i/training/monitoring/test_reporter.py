"""Proves that a resumed run's metrics hold each step once, and what is sent to W&B."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t2i.training.monitoring import reporter as reporter_module
from t2i.training.monitoring.reporter import Reporter, drop_lines_after, flat_fields


def test_lines_after_the_step_of_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in range(1, 6)]
    path.write_text("".join(lines) + '{"step": 6, "lo')
    drop_lines_after(path, 3)
    assert path.read_text() == "".join(lines[:3])
    drop_lines_after(tmp_path / "absent.jsonl", 3)


def test_lines_that_a_power_cut_garbled_keep_no_run_from_going_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n{"loss": 2}\n\xff\xfe\n{"step": 2}\n')
    drop_lines_after(path, 5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert f"{path}: 3 unreadable line(s) removed" in caplog.text


def test_each_eighth_of_time_has_a_curve_of_its_own() -> None:
    flat = flat_fields({"step": 1, "mfu": None, "loss_by_time": [1.0, None, 3.0, 4.0]})
    assert flat == {
        "step": 1,
        "loss_by_time/0.000": 1.0,
        "loss_by_time/0.500": 3.0,
        "loss_by_time/0.750": 4.0,
    }


def test_without_wandb_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        Reporter(tmp_path, 0, "online", "run", {})


class Recorder:
    """Stands in for the wandb package, which the tests do not have, and its run."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Recorder:
            self.calls.append((name, arguments, named))
            return self

        return call

    def all_of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, named) for called, arguments, named in self.calls if called == name]


def test_a_run_that_goes_on_does_so_on_its_own_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=wandb.init))
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        reporter = Reporter(tmp_path / folder, 0, "offline", "stage 1", {"t2i": {"seed": 3}})
        reporter.close()
    first, again, other = (named for _, named in wandb.all_of("init"))
    assert first == again
    assert first["id"] != other["id"]
    assert (first["resume"], first["config"]) == ("allow", {"t2i": {"seed": 3}})
    assert len(wandb.all_of("finish")) == 3


def test_without_network_the_run_is_logged_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Recorder()

    def init(**named: Any) -> Any:
        if named["mode"] == "online":
            raise RuntimeError("timed out after 90 s\nmore of it")
        return wandb.init(**named)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    warnings: list[str] = []
    monkeypatch.setattr(
        reporter_module.logger, "warning", lambda text, *parts: warnings.append(text % parts)
    )
    reporter = Reporter(tmp_path, 0, "online", "stage 1", {})
    reporter.write({"step": 1})
    assert [named["mode"] for _, named in wandb.all_of("init")] == ["offline"]
    assert [fields for (fields,), _ in wandb.all_of("log")] == [{"step": 1}]
    (warning,) = warnings
    assert "(timed out after 90 s)" in warning
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in warning
    assert "\n" not in warning


def test_files_of_skipped_samples_are_sent_when_there_are_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=wandb.init))
    reporter = Reporter(tmp_path, 0, "offline", "stage 1", {})
    for step, skipped in enumerate((0, 1, 1, 2)):
        reporter.write({"step": step, "skipped": skipped})
    assert [fields["step"] for (fields,), _ in wandb.all_of("log")] == [0, 1, 2, 3]
    assert len(wandb.all_of("save")) == 2
