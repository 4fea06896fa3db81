"""Proves that folders and S3 (a real HTTP server) behave alike: whole objects, one winner, errors
that name the address; and that the cache of S3 objects stays within its limit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.storage.interface import Storage, StorageConfig
from data_pipeline.storage.local import LocalStorage
from data_pipeline.storage.s3 import S3Storage
from data_pipeline.storage.stores import STALE_SECONDS, open_storage, sweep_scratch

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "data"))
    return open_storage(request.getfixturevalue("s3_url"), request.getfixturevalue("s3_config"))


def test_what_is_put_is_got_listed_and_measured(storage: Storage) -> None:
    storage.put("a/1.json", b"one")
    storage.put("a/2.json", b"")
    storage.put("b/c/3.json", b"three")
    storage.put("a/1.json", b"replaced")
    assert storage.get("a/1.json") == b"replaced"
    assert storage.get("a/2.json") == b""
    assert storage.list() == ["a/1.json", "a/2.json", "b/c/3.json"]
    assert storage.list("a/") == ["a/1.json", "a/2.json"]
    assert storage.list("a/1") == ["a/1.json"]
    assert storage.list("nothing/") == []
    assert storage.size("b/c/3.json") == 5
    assert storage.exists("b/c/3.json")
    assert not storage.exists("b/c")


def test_deleting_twice_is_no_error(storage: Storage) -> None:
    storage.put("key", b"x")
    storage.delete("key")
    storage.delete("key")
    assert storage.list() == []


def test_put_file_copies_and_local_gives_a_file(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "source.bin"
    path.write_bytes(bytes(range(256)) * 100)
    storage.put_file("big.bin", path)
    assert path.exists()
    assert storage.local("big.bin").read_bytes() == path.read_bytes()
    assert storage.local("big.bin").read_bytes() == path.read_bytes()
    storage.get_file("big.bin", tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == path.read_bytes()


def test_ranges_are_exact_and_a_range_past_the_end_is_refused(storage: Storage) -> None:
    storage.put("key", b"0123456789")
    assert storage.get_range("key", 0, 3) == b"012"
    assert storage.get_range("key", 7, 3) == b"789"
    assert storage.get_range("key", 4, 0) == b""
    with pytest.raises(ValueError, match="ends"):
        storage.get_range("key", 8, 3)
    with pytest.raises(ValueError, match="ends"):
        storage.get_range("key", 20, 3)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_of_several_parts_goes_there_and_back(
    s3_url: str, s3_config: StorageConfig, tmp_path: Path, threads: int
) -> None:
    storage = open_storage(s3_url, s3_config.model_copy(update={"transfer_threads": threads}))
    (tmp_path / "sent").write_bytes(os.urandom(9 * 2**20))
    storage.put_file("key", tmp_path / "sent")
    storage.get_file("key", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "sent").read_bytes()


@pytest.mark.parametrize(
    "read",
    [
        lambda storage: storage.get("no/such"),
        lambda storage: storage.get_range("no/such", 0, 1),
        lambda storage: storage.size("no/such"),
        lambda storage: storage.local("no/such"),
        lambda storage: storage.get_file("no/such", Path(os.devnull)),
    ],
)
def test_a_missing_key_is_named(storage: Storage, read: Callable[[Storage], object]) -> None:
    with pytest.raises(FileNotFoundError, match="no/such"):
        read(storage)


def test_of_many_writers_of_one_key_exactly_one_wins(storage: Storage) -> None:
    barrier = threading.Barrier(8)
    wins: list[bytes] = []

    def write(number: int) -> None:
        data = str(number).encode()
        barrier.wait()
        if storage.put_if_absent("manifest/0.json", data):
            wins.append(data)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.get("manifest/0.json") == wins[0]


def test_a_storage_can_be_sent_to_a_worker(storage: Storage) -> None:
    storage.put("key", b"data")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert open_storage(copy.url, getattr(copy, "config", None)).get("key") == b"data"


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.binary(max_size=200), cut=st.tuples(st.integers(0, 200), st.integers(0, 200)))
def test_a_range_is_the_slice(tmp_path: Path, data: bytes, cut: tuple[int, int]) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("key", data)
    start, stop = sorted(min(position, len(data)) for position in cut)
    assert storage.get_range("key", start, stop - start) == data[start:stop]


def test_a_killed_writer_leaves_nothing_visible(tmp_path: Path) -> None:
    script = (
        "import os, sys; import data_pipeline.storage.local as storage\n"
        "storage.os.link = lambda *_: os.kill(os.getpid(), 9)\n"
        f"storage.LocalStorage(storage.Path({str(tmp_path)!r})).put_if_absent('key', b'x' * 99)\n"
    )
    process = subprocess.run([sys.executable, "-c", script], cwd=REPO, check=False)
    assert process.returncode == -9
    storage = LocalStorage(tmp_path)
    assert storage.list() == []
    assert len(list(storage.scratch().iterdir())) == 1
    assert storage.put_if_absent("key", b"whole")


def test_the_sweep_removes_only_what_is_old(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    old_file, old_folder, new = (storage.scratch() / name for name in ("file", "folder", "new"))
    old_file.touch()
    old_folder.mkdir()
    (old_folder / "shard.tar").touch()
    new.touch()
    long_ago = time.time() - 2 * STALE_SECONDS
    for path in (old_file, old_folder):
        os.utime(path, (long_ago, long_ago))
    sweep_scratch(storage)
    assert list(storage.scratch().iterdir()) == [new]


def test_the_cache_keeps_within_its_limit_and_drops_what_was_used_longest_ago(
    s3_url: str, s3_config: StorageConfig
) -> None:
    storage = open_storage(s3_url, s3_config.model_copy(update={"cache_gigabytes": 2.5e-6}))
    paths = []
    for number in range(3):
        storage.put(str(number), bytes(1000))
        paths.append(storage.local(str(number)))
        os.utime(paths[-1], (number, number))
    storage.local("1")
    storage.put("3", bytes(1000))
    assert storage.local("3").exists()
    assert [path.exists() for path in paths] == [False, True, False]
    assert storage.local("0").read_bytes() == bytes(1000)


def test_a_put_whose_answer_was_lost_still_counts_as_won(
    s3_url: str, s3_config: StorageConfig
) -> None:
    storage = open_storage(s3_url, s3_config)
    storage.put("key", b"mine")  # the request went through, boto3 sends it again
    assert storage.put_if_absent("key", b"mine")
    assert not storage.put_if_absent("key", b"other")


def test_addresses_are_understood_or_refused() -> None:
    storage = open_storage("s3://bucket/a/b/")
    assert isinstance(storage, S3Storage)
    assert (storage.bucket, storage.prefix) == ("bucket", "a/b/")
    assert storage.url == "s3://bucket/a/b"
    assert open_storage("s3://bucket").url == "s3://bucket"
    with pytest.raises(ValueError, match="gs://"):
        open_storage("gs://bucket/a")
    with pytest.raises(ValueError, match="no bucket"):
        open_storage("s3://")


def test_a_folder_needs_no_boto3() -> None:
    script = "import sys, data_pipeline.storage.stores; assert 'boto3' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=REPO, check=True)


def test_versions_tell_the_keys_and_that_a_content_was_replaced(storage: Storage) -> None:
    storage.put("a/1", b"one")
    storage.put("a/2", b"two")
    before = storage.versions("a/")
    assert list(before) == storage.list("a/")
    assert storage.versions("a/") == before
    storage.put("a/1", b"ONE")
    after = storage.versions("a/")
    assert after["a/1"] != before["a/1"]
    assert after["a/2"] == before["a/2"]


def test_a_local_copy_of_another_version_is_another_file(storage: Storage) -> None:
    storage.put("key", b"one")
    first = storage.local("key", storage.versions()["key"]).read_bytes()
    storage.put("key", b"two")
    assert (first, storage.local("key", storage.versions()["key"]).read_bytes()) == (b"one", b"two")


class BreakingServer(BaseHTTPRequestHandler):
    """Says that ten bytes follow; sends four and hangs up, the first ``num_breaks`` times."""

    num_breaks = 0
    answers: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        length = 4 if len(self.answers) < self.num_breaks else 10
        self.answers.append(length)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"0123456789"[:length])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch, s3_config: StorageConfig) -> Iterator[Storage]:
    """A server of one object, and at most three attempts to read it."""
    monkeypatch.setattr(BreakingServer, "answers", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), BreakingServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    config = s3_config.model_copy(update={"endpoint_url": endpoint, "max_attempts": 3})
    yield open_storage("s3://bucket", config)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("read", ["get", "get_range"])
def test_an_answer_that_breaks_off_is_asked_for_again(
    breaking: Storage, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    monkeypatch.setattr(BreakingServer, "num_breaks", 2)
    data = breaking.get("key") if read == "get" else breaking.get_range("key", 0, 10)
    assert data == b"0123456789"
    assert BreakingServer.answers == [4, 4, 10]


def test_an_answer_that_always_breaks_off_is_neither_a_missing_nor_a_bad_object(
    breaking: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BreakingServer, "num_breaks", 99)
    with pytest.raises(Exception, match=r"(?i)incomplete|broken") as caught:
        breaking.get("key")
    assert not isinstance(caught.value, FileNotFoundError | ValueError)
    assert len(BreakingServer.answers) == 3
