"""Proves the data's way on real photographs: metadata in the COYO-700M schema, 60 good rows and
20 that must fail, served over loopback HTTP, each row held against its expected outcome.

Needs the folder ``shared/data`` beside the repository; without it the tests are skipped.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline.download import DownloadConfig, make_job
from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import run_job
from data_pipeline.latents import LatentsConfig
from data_pipeline.latents import make_job as latents_job
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.sources.coyo import SCHEMA
from data_pipeline.storage.interface import StorageConfig
from recaption.captioner_config import CaptionerConfig
from recaption.job import RecaptionConfig
from recaption.job import make_job as recaption_job
from t2i.encoders.vae_config import VAEConfig

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "coyo").is_dir(), reason="shared/data is not beside the repository"
)
OVERSIZED_CHUNKS, CHUNK = 220, bytes(1 << 20)


class PhotoHandler(BaseHTTPRequestHandler):
    """Answers as the README of the sample says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        folder, _, name = path[1:].rpartition("/")
        file = {"": DATA / "photos", "served": DATA / "coyo" / "served"}.get(folder)
        if path == "/redirect/metadata.jpg":
            self.answer(302, b"", Location="http://169.254.169.254/latest/meta-data")
        elif path == "/generated/oversized_bytes.jpg":
            self.answer_without_end()
        elif file is not None and (file / name).is_file():
            kind = "image/png" if name.endswith(".png") else "image/jpeg"
            self.answer(200, (file / name).read_bytes(), **{"Content-Type": kind})
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_without_end(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self.wfile.write(b"3\r\n\xff\xd8\xff\r\n")
            for _ in range(OVERSIZED_CHUNKS):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True  # the client has had enough

    def log_message(self, format: str, *args: object) -> None:
        return


class PhotoServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@pytest.fixture(scope="module")
def photo_port() -> Iterator[int]:
    with PhotoServer(("127.0.0.1", 0), PhotoHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def expected() -> list[dict[str, str]]:
    """One line per metadata row: id, url, kind, expected outcome, file."""
    lines = (DATA / "coyo" / "expected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def photos(
    photo_port: int, tmp_path_factory: pytest.TempPathFactory, all_connections: list[object]
) -> StepOutput:
    """The downloaded photographs; ``all_connections`` then holds what was connected to."""
    folder = tmp_path_factory.mktemp("photos")
    table = pq.read_table(DATA / "coyo" / "coyo_sample.parquet")
    base = f"http://127.0.0.1:{photo_port}/"
    urls = [url.replace("http://images.invalid/", base) for url in table["url"].to_pylist()]
    table = table.set_column(table.column_names.index("url"), "url", [urls])
    pq.write_table(table, folder / "metadata.parquet", row_group_size=32)
    config = DownloadConfig.model_validate(
        {
            "metadata": str(folder / "metadata.parquet"),
            "output": str(folder / "images"),
            "rows_per_shard": 25,
            "fetch": {"allow_hosts": [f"127.0.0.1:{photo_port}"], "max_per_host": 16},
        }
    )
    all_connections.clear()
    assert run_job(make_job(config, StorageConfig()), JobsConfig()).exit_code == 0
    return StepOutput.open(config.output)


def ledger(photos: StepOutput) -> list[dict[str, object]]:
    return [row for i in photos.committed() for row in photos.rows(i).to_pylist()]


def test_each_row_of_the_photo_metadata_ends_as_expected(
    photos: StepOutput, expected: list[dict[str, str]]
) -> None:
    rows = ledger(photos)
    assert [row["id"] for row in rows] == [line["id"] for line in expected]
    found = [row["reason"] or row["status"] for row in rows]
    assert found == [line["expected"] for line in expected]
    assert photos.funnel().num_ok == 60


def test_nothing_but_the_photo_server_was_connected_to(
    photos: StepOutput, photo_port: int, all_connections: list[object]
) -> None:
    assert set(all_connections) == {("127.0.0.1", photo_port)}


def test_photo_shards_hold_the_served_bytes_and_the_original_columns(
    photos: StepOutput, expected: list[dict[str, str]]
) -> None:
    original = pq.read_table(DATA / "coyo" / "coyo_sample.parquet").to_pylist()
    originals = {row["id"]: row for row in original}
    files = {line["id"]: line["file"] for line in expected}
    num_samples = 0
    for shard_id in photos.committed():
        for sample in photos.read(shard_id):
            row = json.loads(sample.parts["json"])
            assert sample.parts["jpg"] == (DATA / files[row["id"]]).read_bytes()
            wanted = originals[row["id"]]
            assert {name: row[name] for name in SCHEMA.names if name != "url"} == {
                name: wanted[name] for name in SCHEMA.names if name != "url"
            }
            assert (row["image_width"], row["image_height"]) == (row["width"], row["height"])
            num_samples += 1
    assert num_samples == 60


@pytest.mark.slow
def test_photos_get_captions_and_latents_or_a_reason(photos: StepOutput, tmp_path: Path) -> None:
    """By the nano models, which know only toy scenes: what they write is of no matter here. One
    shard is captioned, the others wait."""
    shard_ids = photos.committed()[:1]
    num_images = sum(photos.manifest(shard_id).num_ok for shard_id in shard_ids)
    captions = StepOutput.open(str(tmp_path / "captions"))
    settings = RecaptionConfig(images=photos.url, output=captions.url)
    job = recaption_job(settings, CaptionerConfig(), StorageConfig())
    assert run_job(replace(job, shard_ids=shard_ids), JobsConfig()).exit_code == 0
    assert captions.funnel().num_in == num_images

    latents = StepOutput.open(str(tmp_path / "latents"))
    places = {"images": photos.url, "captions": captions.url, "output": latents.url}
    config = LatentsConfig(**places, aspects=("1:1", "4:3", "3:4"))
    summary = run_job(latents_job(config, VAEConfig(), StorageConfig()), JobsConfig())
    assert summary.exit_code == 0
    captioned = captions.funnel().num_ok
    assert (summary.funnel.num_in, summary.funnel.num_ok) == (num_images, captioned)
    assert summary.funnel.reasons.get(("filtered", "no_caption"), 0) == num_images - captioned
    assert latents.committed() == shard_ids
    for shard_id in shard_ids:
        assert latents.rows(shard_id)["key"].to_pylist() == photos.ok_keys(shard_id)
        for sample in latents.read(shard_id):
            facts = json.loads(sample.parts["json"])
            width, height = (int(side) for side in facts["bucket"].split("x"))
            assert (width > height) == (facts["width"] / facts["height"] > (4 / 3) ** 0.5)
            moments = np.load(io.BytesIO(sample.parts["npy"]))
            assert moments.shape == (8, height // 8, width // 8)
