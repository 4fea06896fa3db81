"""Proves that a resumed run's metrics hold each step once, and what is sent to W&B: read back from the
files of its offline runs."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record, RunRecord

from t2i.training.monitoring import reporter as reporter_module
from t2i.training.monitoring.reporter import Reporter, drop_lines_after, flat_fields

WANDB_VARIABLES = ("WANDB_MODE", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")


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


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and no settings of W&B in the environment, now and afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", *WANDB_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return home


def records(folder: Path) -> list[list[Record]]:
    """What W&B's offline runs in a run's folder hold; its process writes on for a moment."""
    deadline = time.monotonic() + 30
    while True:
        runs = [read_records(path) for path in folder.glob("wandb/offline-run-*/*.wandb")]
        if all(any(one.HasField("exit") for one in found) for found in runs):
            return runs
        assert time.monotonic() < deadline, "a run has not ended"
        time.sleep(0.05)


def read_records(path: Path) -> list[Record]:
    """The records that are whole in LevelDB's log format.

    After seven bytes there are blocks of 32 KiB, in them pieces of records with checksum, length and
    kind (whole, first, middle, last).
    """
    data, position, found, parts = path.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        if (left := 2**15 - position % 2**15) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7 + length
        if position > len(data):
            break
        parts += data[position - length : position]
        if kind in (1, 4):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def history(found: list[Record]) -> list[dict[str, Any]]:
    """The logged fields, without those that W&B adds."""
    lines = [
        {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in one.history.item
        }
        for one in found
        if one.HasField("history")
    ]
    return [{k: v for k, v in line.items() if not k.startswith("_")} for line in lines]


def start_record(found: list[Record]) -> RunRecord:
    """What was said of the run when it began."""
    return next(one.run for one in found if one.HasField("run"))


def test_an_offline_run_is_read_back(tmp_path: Path, no_home: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    reporter = Reporter(folder, 0, "offline", "stage 1", {"t2i": {"seed": 3}})
    # longer than a block of the file
    for step, skipped in enumerate((0, 1, 1, 2) * 200):
        (folder / "skipped-rank0.jsonl").write_text("{}\n")
        reporter.write({"step": step, "loss": 1 / (1 + step), "mfu": None, "skipped": skipped})
    Image.new("RGB", (8, 8)).save(folder / "sheet.png")
    reporter.show_image(799, "samples", folder / "sheet.png")
    reporter.close()

    (found,) = records(folder)
    run = start_record(found)
    assert (run.run_id, run.display_name) == ((folder / "wandb_id").read_text(), "stage 1")
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert settings["t2i"] == {"seed": 3}
    *lines, picture = history(found)
    own = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert lines == [{key: line[key] for key in ("step", "loss", "skipped")} for line in own]
    assert len(lines) == 800
    assert picture["step"] == 799
    assert picture["samples.width"] == 8
    (media,) = folder.glob("wandb/offline-run-*/files/media/images/samples_*.png")
    assert media.read_bytes() == (folder / "sheet.png").read_bytes()
    # sent when there are more than ever before
    sent = [file.path for one in found if one.HasField("files") for file in one.files.files]
    assert sent.count("skipped-rank0.jsonl") == 2
    assert not list(no_home.iterdir()), "all lies in the run's folder"


def test_a_run_that_goes_on_does_so_on_its_own_page(tmp_path: Path, no_home: Path) -> None:
    for name in ("one", "one", "two"):
        (tmp_path / name).mkdir(exist_ok=True)
        Reporter(tmp_path / name, 0, "offline", "stage 1", {}).close()
    pages = [
        {start_record(found).run_id for found in records(tmp_path / name)}
        for name in ("one", "two")
    ]
    assert [len(page) for page in pages] == [1, 1]
    assert pages[0] != pages[1]


def test_without_network_the_run_is_logged_offline(
    tmp_path: Path, no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    init = wandb.init

    def init_without_network(**named: Any) -> Any:
        if named["mode"] == "online":
            raise wandb.errors.CommError("timed out after 90 s\nmore of it")
        return init(**named)

    monkeypatch.setattr(wandb, "init", init_without_network)
    warnings: list[str] = []
    monkeypatch.setattr(
        reporter_module.logger, "warning", lambda text, *parts: warnings.append(text % parts)
    )
    reporter = Reporter(tmp_path, 0, "online", "stage 1", {})
    reporter.write({"step": 1})
    reporter.close()
    (found,) = records(tmp_path)
    assert history(found) == [{"step": 1}]
    (warning,) = warnings
    assert "(timed out after 90 s)" in warning
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in warning
    assert "\n" not in warning
