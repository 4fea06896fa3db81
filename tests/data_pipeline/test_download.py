"""Proves download as a step: each metadata row ends in one ledger row, whatever happens, the
shards can be cut anywhere, and a second run does no work again. The web is the Shapes world."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.download import ADDED_COLUMNS, DownloadConfig, main, make_job
from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import JobSummary, run_job
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.sources.coyo import SCHEMA
from data_pipeline.sources.shapes import ShapesConfig, load_pictures, make_source
from data_pipeline.storage.interface import StorageConfig
from data_pipeline.web.picture_server import PictureServer

NUM_IMAGES = 60
FUNNEL = {
    ("failed", "http_404"): 6,
    ("failed", "undecodable"): 6,
    ("failed", "refused_address"): 9,
    ("filtered", "duplicate"): 6,
}


@dataclass(frozen=True)
class Web:
    """The served toy web: its folder and host."""

    folder: Path
    host: str

    def config(self, output: Path | str, **changes: object) -> DownloadConfig:
        values = {
            "metadata": str(self.folder / "metadata.parquet"),
            "output": str(output),
            "rows_per_shard": 25,
            "fetch": {"allow_hosts": [self.host], "max_per_host": 16, "backoff_seconds": 0.01},
        }
        return DownloadConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("web") / "source"
    (folder / "images").mkdir(parents=True)
    with PictureServer(folder / "images", 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        config = {
            "folder": str(folder),
            "port": server.server_port,
            "num_images": NUM_IMAGES,
            "dead_links": 0.1,
            "corrupt_files": 0.1,
            "duplicate_urls": 0.05,
            "duplicate_pictures": 0.05,
            "private_addresses": 0.15,
        }
        make_source(ShapesConfig.model_validate(config))
        yield Web(folder, f"127.0.0.1:{server.server_port}")
        server.shutdown()


def download(config: DownloadConfig, storage: StorageConfig | None = None) -> JobSummary:
    jobs = JobsConfig(retry_seconds=0.01)
    return run_job(make_job(config, storage or StorageConfig()), jobs)


@pytest.fixture(scope="module")
def output(web: Web, tmp_path_factory: pytest.TempPathFactory) -> StepOutput:
    folder = tmp_path_factory.mktemp("images")
    assert download(web.config(folder)).exit_code == 0
    return StepOutput.open(str(folder))


def ledger(output: StepOutput) -> list[dict[str, object]]:
    return [row for i in output.committed() for row in output.rows(i).to_pylist()]


def test_the_funnel_is_what_the_toy_web_holds(output: StepOutput) -> None:
    funnel = output.funnel()
    assert (funnel.num_in, funnel.num_ok) == (NUM_IMAGES + 27, NUM_IMAGES)
    assert funnel.reasons == FUNNEL


def test_each_metadata_row_has_one_ledger_row_with_all_of_its_columns(
    web: Web, output: StepOutput
) -> None:
    metadata = pq.read_table(web.folder / "metadata.parquet").to_pylist()
    rows = ledger(output)
    assert {*SCHEMA.names, "label"} == metadata[0].keys()
    assert [{name: row[name] for name in metadata[0]} for row in rows] == metadata
    expected = [f"{i // 25:05d}{i % 25:06d}" for i in range(len(metadata))]
    assert [row["key"] for row in rows] == expected
    assert all((row["sha256"] is not None) == (row["status"] == "ok") for row in rows)
    assert all(row["detail"] for row in rows if row["status"] == "failed")


def test_the_ledger_has_the_same_types_in_all_shards(web: Web, tmp_path: Path) -> None:
    download(web.config(tmp_path, rows_per_shard=3, max_rows=30))
    output = StepOutput.open(str(tmp_path))
    schemas = [output.rows(shard_id).schema for shard_id in output.committed()]
    assert len(schemas) == 10
    assert all(schema.equals(schemas[0]) for schema in schemas)
    for field in SCHEMA:
        assert schemas[0].field(field.name).type == field.type


def test_samples_hold_the_served_bytes_and_their_row(web: Web, output: StepOutput) -> None:
    files = {picture.url: picture.file for picture in load_pictures(web.folder)}
    rows = {row["key"]: row for row in ledger(output)}
    samples = [sample for i in output.committed() for sample in output.read(i)]
    assert len(samples) == NUM_IMAGES
    for sample in samples:
        row = json.loads(sample.parts["json"])
        assert {name: rows[sample.key][name] for name in row} == row
        assert row.keys() == {*SCHEMA.names, "label", *ADDED_COLUMNS}
        body = (web.folder / "images" / files[row["url"]]).read_bytes()
        assert sample.parts[row["image_extension"]] == body
        assert (row["image_width"], row["image_height"]) == (128, 128)
    assert Counter(e for s in samples for e in s.parts) == {
        **{"json": NUM_IMAGES, "jpg": 0.8 * NUM_IMAGES},
        **{"png": 0.1 * NUM_IMAGES, "webp": 0.1 * NUM_IMAGES},
    }


@pytest.mark.parametrize("rows_per_shard", [7, 1000])
def test_what_is_kept_does_not_depend_on_the_cut_into_shards(
    web: Web, output: StepOutput, tmp_path: Path, rows_per_shard: int
) -> None:
    download(web.config(tmp_path, rows_per_shard=rows_per_shard, batch_size=5))
    other = StepOutput.open(str(tmp_path))
    assert [(r["id"], r["status"], r["reason"]) for r in ledger(other)] == [
        (r["id"], r["status"], r["reason"]) for r in ledger(output)
    ]


def test_a_second_run_asks_the_web_for_nothing(
    web: Web, output: StepOutput, connections: list[object]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(output.url).rglob("*")}
    summary = download(web.config(output.url))
    assert (summary.num_skipped, summary.num_committed, summary.exit_code) == (4, 0, 0)
    after = {path: path.stat().st_mtime_ns for path in Path(output.url).rglob("*")}
    files = [path for path in before if path.is_file()]
    assert {path: after[path] for path in files} == {path: before[path] for path in files}
    assert connections == []


def test_network_settings_may_change_between_runs_but_what_is_stored_may_not(
    web: Web, output: StepOutput
) -> None:
    download(web.config(output.url, batch_size=3))
    with pytest.raises(ValueError, match=r"images\.max_side was null, now 64"):
        download(web.config(output.url, images={"max_side": 64}))
    with pytest.raises(ValueError, match="rows_per_shard was 25, now 30"):
        download(web.config(output.url, rows_per_shard=30))


def test_without_deduplication_the_duplicates_are_downloaded(web: Web, tmp_path: Path) -> None:
    summary = download(web.config(tmp_path, deduplicate=[], images={"max_side": 64}))
    assert summary.funnel.num_ok == NUM_IMAGES + 6
    sample = next(StepOutput.open(str(tmp_path)).read("00000"))
    assert json.loads(sample.parts["json"])["image_width"] == 64


def test_a_web_that_answers_nothing_leaves_the_shards_undone(web: Web, tmp_path: Path) -> None:
    metadata = pq.read_table(web.folder / "metadata.parquet")
    urls = [url.replace(web.host, "127.0.0.1:1") for url in metadata["url"].to_pylist()]
    metadata = metadata.drop_columns(["url"]).append_column("url", [urls])
    pq.write_table(metadata, tmp_path / "m.parquet")
    fetch = {"allow_hosts": ["127.0.0.1:1"], "max_attempts": 1}
    changes = {"metadata": str(tmp_path / "m.parquet"), "fetch": fetch, "rows_per_shard": 100}
    summary = download(web.config(tmp_path / "out", **changes))
    assert summary.exit_code == 1
    assert "is the network up?" in summary.undone["00000"]
    dead = download(web.config(tmp_path / "out", **changes, outage_rows=0))
    assert dead.exit_code == 0
    assert dead.funnel.reasons["failed", "connection_error"] == NUM_IMAGES + 12


def test_the_step_can_be_sent_to_another_process(web: Web, tmp_path: Path) -> None:
    make_step = make_job(web.config(tmp_path), StorageConfig()).make_step
    items = pickle.loads(pickle.dumps(make_step))().load("00003")
    assert [item.key for item in items] == [f"00003{i:06d}" for i in range(NUM_IMAGES + 27 - 75)]


def test_images_go_to_s3_by_the_same_way(web: Web, s3_url: str, s3_config: StorageConfig) -> None:
    summary = download(web.config(f"{s3_url}/images"), s3_config)
    assert summary.exit_code == 0
    assert summary.funnel.reasons == FUNNEL
    output = StepOutput.open(f"{s3_url}/images", s3_config)
    assert sum(len(list(output.read(i))) for i in output.committed()) == NUM_IMAGES


def test_the_command_runs_with_a_config_and_overrides(web: Web, tmp_path: Path) -> None:
    argv = ["--set", f"data_pipeline.download.metadata={web.folder}/metadata.parquet"]
    argv += ["--set", f"data_pipeline.download.output={tmp_path}"]
    argv += ["--set", f"data_pipeline.download.fetch.allow_hosts=['{web.host}']"]
    assert main(argv) == 0
    assert StepOutput.open(str(tmp_path)).funnel().num_ok == NUM_IMAGES


def test_help_is_quick_and_teaches_by_example() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    program = [sys.executable, "-m", "data_pipeline.download", "--help"]
    text = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    # of processor time: the machine may be busy
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2.0
    assert "--set data_pipeline.download.metadata=s3://bucket/coyo-700m" in text
    assert "refused_address" in text
