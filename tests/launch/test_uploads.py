"""Proves that copies of checkpoints are whole or absent through outages of a real S3 server, that
nothing stops training, and that a fresh machine goes on from the newest whole copy."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from data_pipeline.storage.interface import StorageConfig
from launch.config import UploadConfig
from launch.uploads import RemoteCheckpoints, Uploads
from t2i.config import ConfigError
from t2i.training import checkpoint
from t2i.training.checkpoint import MANIFEST, newest_checkpoint

Writer = Callable[..., Path]
REPO = Path(__file__).resolve().parents[2]
SECONDS = 30.0  # to wait for what comes sooner


@pytest.fixture
def server(stoppable_s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("launch.uploads.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("launch.uploads.FIRST_PAUSE", 0.1)
    return stoppable_s3


@pytest.fixture
def remote(server: Any) -> RemoteCheckpoints:
    endpoint = f"http://127.0.0.1:{server.port}"
    storage = StorageConfig(endpoint_url=endpoint, region="us-east-1", max_attempts=1)
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return RemoteCheckpoints(UploadConfig(address=f"s3://{bucket}/runs/", keep=2), 1, storage)


@pytest.fixture
def uploads(remote: RemoteCheckpoints, tmp_path: Path) -> Iterator[Uploads]:
    uploads = Uploads(remote, tmp_path / "uploading")
    yield uploads
    uploads.finish(0)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.INFO, "sparse")
    logging.getLogger("sparse").propagate = True
    yield caplog
    logging.getLogger("sparse").propagate = False


def names_of(remote: RemoteCheckpoints) -> list[str]:
    """All folders at the remote place, complete or not."""
    return sorted({key.partition("/")[0] for key in remote.storage.list()})


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_checkpoint_is_copied_whole_with_its_manifest_last(
    server: Any,
    remote: RemoteCheckpoints,
    uploads: Uploads,
    tmp_path: Path,
    write_checkpoint: Writer,
) -> None:
    path = write_checkpoint(tmp_path, 1)
    uploads.add(path)
    assert uploads.finish(SECONDS)
    assert remote.url.endswith("/runs/stage1")
    for file in path.iterdir():
        assert remote.storage.get(f"{path.name}/{file.name}") == file.read_bytes()
    sent = [line for line in server.requests if line.startswith("PUT step")]
    assert len(sent) == 7
    assert sent[-1] == f"PUT {path.name}/{MANIFEST}"
    assert not (tmp_path / "uploading").exists()


def test_what_is_there_already_is_not_sent_again(
    server: Any, remote: RemoteCheckpoints, tmp_path: Path, write_checkpoint: Writer
) -> None:
    path = write_checkpoint(tmp_path, 1)
    remote.send(path, path.name)
    server.requests.clear()
    remote.send(path, path.name)
    assert server.requests == [f"GET {path.name}/{MANIFEST}"]


def test_the_newest_are_kept_and_leftovers_of_killed_uploads_go(
    server: Any, remote: RemoteCheckpoints, tmp_path: Path, write_checkpoint: Writer
) -> None:
    for step in (1, 2, 3, 9):  # 9 turned out to be damaged: it does not count, nor is it touched
        path = write_checkpoint(tmp_path, step)
        remote.send(path, path.name)
    remote.storage.put("step-00000004/ema.safetensors", b"cut short")
    remote.storage.put("notes.txt", b"not ours")
    server.requests.clear()
    remote.trim("step-00000003")
    assert remote.names() == ["step-00000009", "step-00000003", "step-00000002"]
    assert remote.storage.list() == sorted(
        ["notes.txt"]
        + [f"{name}/{f.name}" for name in remote.names() for f in (tmp_path / name).iterdir()]
    )
    removed = [line for line in server.requests if line.startswith("DELETE step-00000001")]
    assert removed[0] == f"DELETE step-00000001/{MANIFEST}"


def test_a_waiting_checkpoint_gives_way_to_a_newer_one(
    server: Any,
    remote: RemoteCheckpoints,
    uploads: Uploads,
    tmp_path: Path,
    write_checkpoint: Writer,
    log: pytest.LogCaptureFixture,
) -> None:
    server.held = "PUT step-00000001/weights"
    uploads.add(write_checkpoint(tmp_path, 1))
    assert server.holding.wait(SECONDS)
    uploads.add(write_checkpoint(tmp_path, 2))
    uploads.add(write_checkpoint(tmp_path, 3))
    server.release.set()
    assert uploads.finish(SECONDS)
    assert names_of(remote) == ["step-00000001", "step-00000003"]
    assert "step-00000002 gives way to step-00000003: not uploaded" in log.text


def test_milestones_do_not_give_way_and_their_copies_stay(
    server: Any, remote: RemoteCheckpoints, tmp_path: Path, write_checkpoint: Writer
) -> None:
    """2 waits while 1 is sent and while newer ones come; 1 would be the third oldest copy."""
    remote.milestones = {"step-00000001", "step-00000002"}
    uploads = Uploads(remote, tmp_path / "uploading")
    server.held = "PUT step-00000001/weights"
    uploads.add(write_checkpoint(tmp_path, 1))
    assert server.holding.wait(SECONDS)
    for step in (2, 3, 4, 5):
        uploads.add(write_checkpoint(tmp_path, step))
    server.release.set()
    assert uploads.finish(SECONDS)
    for step in (6, 7):
        path = write_checkpoint(tmp_path, step)
        remote.send(path, path.name)
        remote.trim(path.name)
    steps = [checkpoint.step_of(name) for name in names_of(remote)]
    assert steps == [1, 2, 6, 7]


def test_a_milestone_outlasts_an_outage_in_which_newer_ones_come(
    server: Any, remote: RemoteCheckpoints, tmp_path: Path, write_checkpoint: Writer
) -> None:
    remote.milestones = {"step-00000001"}
    uploads = Uploads(remote, tmp_path / "uploading")
    server.stop()
    for step in (1, 2, 3):
        uploads.add(write_checkpoint(tmp_path, step))
    server.start()
    assert uploads.finish(SECONDS)
    assert {"step-00000001", "step-00000003"} <= set(names_of(remote))


def test_a_checkpoint_that_the_run_removes_is_uploaded_all_the_same(
    server: Any,
    remote: RemoteCheckpoints,
    uploads: Uploads,
    tmp_path: Path,
    write_checkpoint: Writer,
) -> None:
    server.held = "GET step-00000001"  # before any file is opened
    uploads.add(write_checkpoint(tmp_path, 1))
    assert server.holding.wait(SECONDS)
    write_checkpoint(tmp_path, 2, keep=1)
    assert not (tmp_path / "step-00000001").exists()
    server.release.set()
    assert uploads.finish(SECONDS)
    fetched = remote.fetch_newer(tmp_path / "fresh", None)
    assert fetched is not None
    assert fetched.state.step == 1


def test_an_outage_in_the_middle_of_an_upload_leaves_whole_copies_only(
    server: Any,
    remote: RemoteCheckpoints,
    uploads: Uploads,
    tmp_path: Path,
    write_checkpoint: Writer,
    log: pytest.LogCaptureFixture,
) -> None:
    uploads.add(write_checkpoint(tmp_path, 1))
    wait_until(lambda: remote.names() == ["step-00000001"])
    server.held = "PUT step-00000002/weights"
    uploads.add(write_checkpoint(tmp_path, 2, size=2_500_000))  # sent in parts of 8 MiB
    assert server.holding.wait(SECONDS)
    server.stop()
    wait_until(lambda: "upload of step-00000002 failed, 1 checkpoint(s) behind" in log.text)
    uploads.add(write_checkpoint(tmp_path, 3, size=2_500_000))
    wait_until(lambda: "upload of step-00000003 failed, 2 checkpoint(s) behind" in log.text)
    server.start()
    assert uploads.finish(SECONDS)
    assert "POST step-00000003/weights.safetensors" in server.requests  # it begins several parts
    assert names_of(remote) == ["step-00000001", "step-00000003"]
    fetched = remote.fetch_newer(tmp_path / "fresh", None)
    assert fetched is not None
    assert fetched.state.step == 3


def test_what_is_not_uploaded_at_the_end_is_named_and_sent_by_the_next_run(
    server: Any,
    remote: RemoteCheckpoints,
    uploads: Uploads,
    tmp_path: Path,
    write_checkpoint: Writer,
    log: pytest.LogCaptureFixture,
) -> None:
    server.stop()
    uploads.add(write_checkpoint(tmp_path, 1))
    uploads.add(write_checkpoint(tmp_path, 2))
    assert not uploads.finish(0.3)
    assert f"not uploaded to {remote.url}: step-00000001, step-00000002" in log.text
    server.start()
    again = Uploads(remote, tmp_path / "again")
    again.add(tmp_path / "step-00000002")
    assert again.finish(SECONDS)
    assert names_of(remote) == ["step-00000002"]


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest", "no manifest"])
def test_a_fresh_machine_fetches_the_newest_copy_that_is_whole(
    remote: RemoteCheckpoints,
    tmp_path: Path,
    damage: str,
    write_checkpoint: Writer,
    log: pytest.LogCaptureFixture,
) -> None:
    for step in (1, 2):
        path = write_checkpoint(tmp_path, step)
        remote.send(path, path.name)
    content = (path / "ema.safetensors").read_bytes()
    match damage:
        case "cut":
            remote.storage.put("step-00000002/ema.safetensors", content[:-1])
        case "changed":
            changed = content[:-1] + bytes([content[-1] ^ 1])
            remote.storage.put("step-00000002/ema.safetensors", changed)
        case "missing":
            remote.storage.delete("step-00000002/ema.safetensors")
        case "manifest":
            remote.storage.put(f"step-00000002/{MANIFEST}", b'{"files": {"../x": {}}}')
        case "no manifest":
            remote.storage.delete(f"step-00000002/{MANIFEST}")
    fresh = tmp_path / "fresh"
    fetched = remote.fetch_newer(fresh, None)
    assert fetched is not None
    assert fetched.path == fresh / "step-00000001"
    assert fetched == newest_checkpoint(fresh)
    assert [path.name for path in fresh.iterdir()] == ["step-00000001"]
    if damage != "no manifest":
        file = MANIFEST if damage == "manifest" else "ema.safetensors"
        assert f"{remote.url}/step-00000002 is damaged and passed over: " in log.text
        assert file in log.text


def test_a_damaged_copy_is_replaced_when_its_step_is_reached_again(
    remote: RemoteCheckpoints, tmp_path: Path, write_checkpoint: Writer
) -> None:
    path = write_checkpoint(tmp_path, 1)
    remote.send(path, path.name)
    remote.storage.put(f"{path.name}/{MANIFEST}", b"{")
    remote.send(path, path.name)
    assert remote.fetch_newer(tmp_path / "fresh", None) is not None


def test_only_a_newer_copy_is_fetched(
    server: Any, remote: RemoteCheckpoints, tmp_path: Path, write_checkpoint: Writer
) -> None:
    path = write_checkpoint(tmp_path / "one", 2)
    remote.send(path, path.name)
    write_checkpoint(tmp_path / "two", 1)
    older = newest_checkpoint(tmp_path / "two")
    fetched = remote.fetch_newer(tmp_path / "two", older)
    assert fetched is not None
    assert fetched.state.step == 2
    server.requests.clear()
    assert remote.fetch_newer(tmp_path / "two", fetched) is fetched
    assert not [line for line in server.requests if "step" in line]


def test_without_the_remote_place_a_run_needs_a_checkpoint_of_its_own(
    server: Any,
    remote: RemoteCheckpoints,
    tmp_path: Path,
    write_checkpoint: Writer,
    log: pytest.LogCaptureFixture,
) -> None:
    server.stop()
    write_checkpoint(tmp_path, 1)
    own = newest_checkpoint(tmp_path)
    assert remote.fetch_newer(tmp_path, own) is own
    assert f"{remote.url} cannot be read, going on from" in log.text
    with pytest.raises(OSError, match=r"--set launch\.train\.upload=null"):
        remote.fetch_newer(tmp_path, None)


HANGING = """
import sys
from pathlib import Path
from data_pipeline.storage.interface import StorageConfig
from launch.config import UploadConfig
from launch.uploads import RemoteCheckpoints, Uploads
address, endpoint, path = sys.argv[1:]
storage = StorageConfig(endpoint_url=endpoint, region="us-east-1")
remote = RemoteCheckpoints(UploadConfig(address=address), 1, storage)
uploads = Uploads(remote, Path(path).parent / "uploading")
uploads.add(Path(path))
sys.stdin.read()
assert not uploads.finish(0)
"""


def test_an_upload_that_hangs_does_not_keep_the_process_from_ending(
    server: Any, remote: RemoteCheckpoints, tmp_path: Path, write_checkpoint: Writer
) -> None:
    server.held = "PUT step"
    arguments = [remote.config.address, f"http://127.0.0.1:{server.port}"]
    command = [sys.executable, "-c", HANGING, *arguments, str(write_checkpoint(tmp_path, 1))]
    process = subprocess.Popen(
        command, cwd=REPO, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.holding.wait(SECONDS)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert "not uploaded" in errors


def test_waiting_must_end_before_the_other_processes_give_up() -> None:
    config = UploadConfig(address="s3://bucket", wait_minutes=30)
    config.check_fits(timeout_minutes=31)
    with pytest.raises(ConfigError, match=r"wait_minutes 30 must be below .*timeout_minutes 30"):
        config.check_fits(timeout_minutes=30)
