"""Proves the toy web: its rows are what the settings say, it resumes, and it is served."""

from __future__ import annotations

import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.pictures.images import ImageConfig, ImageError, decode_image
from data_pipeline.sources import shapes
from data_pipeline.sources.coyo import SCHEMA, CoyoMetadata
from data_pipeline.sources.shapes import ShapesConfig, load_pictures, make_source, serve
from data_pipeline.web.picture_server import PictureServer
from t2i.shapes import COLORS, SHAPES, detect

NUM_IMAGES = 60


def settings(folder: Path, port: int = 8765, num_images: int = NUM_IMAGES) -> ShapesConfig:
    return ShapesConfig.model_validate(
        {
            "folder": str(folder),
            "port": port,
            "num_images": num_images,
            "dead_links": 0.1,
            "corrupt_files": 0.1,
            "duplicate_urls": 0.05,
            "duplicate_pictures": 0.05,
            "private_addresses": 0.15,
        }
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "source"
    make_source(settings(folder))
    return folder


@pytest.fixture
def port(source: Path) -> Iterator[int]:
    with PictureServer(source / "images", 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_the_metadata_is_a_coyo_table_with_the_wanted_bad_rows(source: Path) -> None:
    table = pq.read_table(source / "metadata.parquet")
    assert table.column_names == [*SCHEMA.names, "label"]
    assert CoyoMetadata.open(str(source / "metadata.parquet")).num_rows == table.num_rows
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == sorted({row["id"] for row in rows})
    base = "http://127.0.0.1:8765/"
    pictures = Counter(row["url"] for row in rows if row["url"].startswith(f"{base}0"))
    assert len(rows) == NUM_IMAGES + 6 + 6 + 3 + 3 + 9
    assert sum("?w=" in url for url in pictures) == 3
    assert sum(pictures.values()) == NUM_IMAGES + 3 + 3
    assert sum(row["url"].startswith(f"{base}corrupt") for row in rows) == 6
    assert sum(not row["url"].startswith(base) for row in rows) == 9


def test_a_label_is_the_colour_and_shape_of_the_first_object(source: Path) -> None:
    """Every row that shows a picture, also under another address; decoded back to words."""
    objects = {picture.file: picture.scene.objects[0] for picture in load_pictures(source)}
    shown = 0
    for row in pq.read_table(source / "metadata.parquet").to_pylist():
        first = objects.get(row["url"].split("/")[-1].split("?")[0])
        assert 0 <= row["label"] < 24
        if first is not None:
            color, shape = divmod(row["label"], 4)
            assert (tuple(COLORS)[color], SHAPES[shape]) == (first.color, first.shape)
            shown += 1
    assert shown == NUM_IMAGES + 3 + 3


def test_scores_are_low_and_null_in_the_wanted_shares(source: Path) -> None:
    good = {picture.url for picture in load_pictures(source)}
    rows = {}
    for row in pq.read_table(source / "metadata.parquet").to_pylist():
        rows.setdefault(row["url"], row)
    scores = [rows[url]["aesthetic_score_laion_v2"] for url in sorted(good)]
    assert sum(score is None for score in scores) == 1
    assert sum(score is not None and score <= 5 for score in scores) == 18
    assert 5.0 in scores


def test_duplicates_stand_behind_their_originals(source: Path) -> None:
    originals = {picture.image_phash: picture.url for picture in load_pictures(source)}
    first: dict[str, str] = {}
    for row in pq.read_table(source / "metadata.parquet").to_pylist():
        first.setdefault(row["image_phash"], row["url"])
    assert {phash: first[phash] for phash in originals} == originals


def test_each_picture_shows_its_scene(source: Path) -> None:
    for picture in load_pictures(source)[:10]:
        data = (source / "images" / picture.file).read_bytes()
        image = decode_image(data, ImageConfig())
        assert image.size == (128, 128)
        assert detect(image) == picture.scene.objects


def test_corrupt_files_do_not_decode(source: Path) -> None:
    files = sorted((source / "images").glob("corrupt-*"))
    assert len(files) == 6
    for file in files:
        with pytest.raises(ImageError, match="undecodable"):
            decode_image(file.read_bytes(), ImageConfig())


def test_a_killed_run_goes_on_to_the_same_files(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    make_source(settings(folder))
    wanted = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert wanted == {p.name: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    (folder / "metadata.parquet").unlink()
    lines = (folder / "scenes.jsonl").read_bytes()
    (folder / "scenes.jsonl").write_bytes(lines[: len(lines) // 2])  # cut within a line
    for path in (folder / "images").iterdir():
        if path.name > "000040":
            path.unlink()
    make_source(settings(folder))
    assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == wanted


def test_a_finished_source_is_left_alone_and_other_settings_are_refused(source: Path) -> None:
    before = (source / "metadata.parquet").stat().st_mtime_ns
    make_source(settings(source))
    assert (source / "metadata.parquet").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="num_images=60, now it is 61"):
        make_source(settings(source, num_images=61))


def test_pictures_are_served_whatever_the_query_and_the_rest_is_404(
    source: Path, port: int
) -> None:
    base = f"http://127.0.0.1:{port}"
    picture = load_pictures(source)[0]
    wanted = (source / "images" / picture.file).read_bytes()
    for url in (f"{base}/{picture.file}", f"{base}/{picture.file}?w=1"):
        with urllib.request.urlopen(url) as response:
            assert response.read() == wanted
    for path in ("gone/1.jpg", "img.php?id=3", "../metadata.parquet"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/{path}")


def test_a_taken_port_is_named(source: Path, port: int) -> None:
    with pytest.raises(ValueError, match=f"port {port} .*data_pipeline.source.port"):
        PictureServer(source / "images", port)


def test_serving_ends_with_its_command_and_passes_its_exit_code_on(tmp_path: Path) -> None:
    with PictureServer(tmp_path, 0) as free:
        port = free.server_port
    config = settings(tmp_path / "source", port, num_images=2)
    with pytest.raises(ValueError, match="run this first without --serve"):
        serve(config, ["true"])
    make_source(config)
    program = f"""
import sys, urllib.request
body = urllib.request.urlopen("{config.base_url}/000000.jpg").read()
sys.exit(7 if body[:2] == bytes([255, 216]) else 1)
"""
    assert serve(config, [sys.executable, "-c", program]) == 7


def test_help_teaches_by_example() -> None:
    assert "--serve python -m data_pipeline.download" in shapes.build_parser().format_help()
