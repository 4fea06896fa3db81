"""The Shapes world as a small web: captioned toy pictures behind URLs, some bad on purpose.

    <folder>/images/             the pictures, and files that only pretend to be some
    <folder>/scenes.jsonl        per picture its URL and true scene: scores captions later
    <folder>/metadata.parquet    rows in the COYO-700M schema, written last
    <folder>/settings.json       what made the folder

The alt texts of the rows are as poor as the web's: they hardly tell what is to be seen. A further
column, ``label``, is the class of the scene (`t2i.shapes.scene_class`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from data_pipeline.pictures.images import encode_image
from data_pipeline.web.picture_server import PictureServer
from t2i.config import Section, add_config_arguments, config_from_args, describe_config, section
from t2i.console import command_parser, get_logger, progress, run_command
from t2i.shapes import Scene, SceneObject, random_scene, render, scene_class

EPILOG = """\
examples:
  make the pictures and their metadata:
    python -m data_pipeline.sources.shapes --config configs/demo.yaml
  serve them on loopback until Ctrl-C:
    python -m data_pipeline.sources.shapes --config configs/demo.yaml --serve
  serve them while a command runs (all after --serve is the command):
    python -m data_pipeline.sources.shapes --config configs/demo.yaml \\
      --serve python -m data_pipeline.download --config configs/demo.yaml
"""
PRIVATE_URLS = (
    "http://10.0.0.1/x.jpg",
    "http://169.254.169.254/latest/meta-data",
    "http://localhost:1/x.jpg",
    "file:///etc/passwd",
    "http://[::1]/x.jpg",
    "http://2130706433/x.jpg",
)
DEAD_PATHS = ("gone/{}.jpg", "wp-content/uploads/2019/08/IMG_{}-1024x683.jpg", "img.php?id={}")
ALT_TEXTS = (
    "IMG_{number}",
    "{shape} clip art free download",
    "Stock vector #{number}: abstract geometry &amp; {color} background template",
    "{color} {shape}",
    "How to draw shapes - lesson {number}",
    "Image may contain: {shape}",
    "{shape}s for kids, learn colors, toys, worksheet pdf",
    "logo",
)
ROWS_PER_GROUP = 10_000

logger = get_logger("shapes")


class ShapesConfig(Section):
    """Section ``data_pipeline.source``: the size of the toy web and its share of bad rows.

    Shares of bad rows are relative to ``num_images`` and come on top of it. Of the good rows
    ``null_aesthetics`` have no score, and of those that have one ``low_aesthetics`` at most 5.
    """

    folder: str
    num_images: int = Field(default=1000, ge=1)  # different pictures that download well
    image_size: int = Field(default=128, ge=64)  # pixels
    seed: int = 0
    port: int = Field(default=8765, ge=1, le=65535)  # on 127.0.0.1
    dead_links: float = Field(default=0.03, ge=0, le=1)
    corrupt_files: float = Field(default=0.03, ge=0, le=1)  # cut pictures, HTML pages, empty bodies
    duplicate_urls: float = Field(default=0.02, ge=0, le=1)
    duplicate_pictures: float = Field(default=0.02, ge=0, le=1)  # one picture under two URLs
    private_addresses: float = Field(default=0.01, ge=0, le=1)
    low_aesthetics: float = Field(default=0.3, ge=0, le=1)
    null_aesthetics: float = Field(default=0.02, ge=0, le=1)

    @property
    def base_url(self) -> str:
        """Where the pictures are served."""
        return f"http://127.0.0.1:{self.port}"


class Config(Section):
    """What ``python -m data_pipeline.sources.shapes`` reads."""

    source: ShapesConfig = section("data_pipeline.source")


@dataclass(frozen=True)
class Picture:
    """A picture of the toy web, as one line of scenes.jsonl tells it."""

    file: str
    url: str
    image_phash: str
    scene: Scene


def load_pictures(folder: Path) -> list[Picture]:
    """The pictures with their true scenes; a line that was cut by a kill at the end is left out."""
    pictures = []
    for line in (folder / "scenes.jsonl").read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        fields = json.loads(line)
        scene = fields.pop("scene")
        objects = tuple(SceneObject(**each) for each in scene.pop("objects"))
        pictures.append(Picture(**fields, scene=Scene(objects=objects, **scene)))
    return pictures


def numbered_scene(seed: int, number: int) -> tuple[Scene, np.random.Generator]:
    """Scene number ``number`` of the toy web of a seed, and the generator that jitters its picture."""
    rng = np.random.default_rng([seed, number])
    return random_scene(rng), rng


def make_source(config: ShapesConfig) -> None:
    """Render the pictures and write the metadata; goes on where a killed run stopped.

    Raises:
        ValueError: the folder was made with other settings.
    """
    folder = Path(config.folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _check_settings(folder, config)
    metadata_path = folder / "metadata.parquet"
    if metadata_path.exists():
        logger.info("%s: done before", metadata_path)
        return
    pictures = _draw_pictures(folder, config)
    rng = np.random.default_rng([config.seed, len(pictures)])
    rows = _arrange(_good_rows(pictures, config, rng), _bad_rows(pictures, config, rng))
    _write_metadata(metadata_path, rows)
    logger.info("%s: %d rows, %d good pictures", metadata_path, len(rows), len(pictures))


def _check_settings(folder: Path, config: ShapesConfig) -> None:
    path = folder / "settings.json"
    settings = config.model_dump(exclude={"folder"})
    if not path.exists():
        _write_atomically(path, json.dumps(settings, indent=1).encode())
        return
    old = json.loads(path.read_text())
    for key, value in settings.items():
        if old.get(key) != value:
            raise ValueError(
                f"{folder} was made with data_pipeline.source.{key}={old.get(key)}, now it is "
                f"{value}; set it back, delete the folder, or write to another one"
            )


# -- pictures ------------------------------------------------------------------------------


def _draw_pictures(folder: Path, config: ShapesConfig) -> list[Picture]:
    """Draw those that scenes.jsonl does not hold yet."""
    path = folder / "scenes.jsonl"
    pictures = load_pictures(folder) if path.exists() else []
    lines = "".join(_line(picture) for picture in pictures)
    _write_atomically(path, lines.encode())  # without a line that was cut
    num = config.num_images
    with path.open("a") as ledger, progress("shapes", num, "images", len(pictures)) as bar:
        for index in range(len(pictures), num):
            picture, data = _draw_picture(index, config)
            _write_atomically(folder / "images" / picture.file, data)
            ledger.write(_line(picture))
            ledger.flush()
            pictures.append(picture)
            bar.update()
    return pictures


def _draw_picture(index: int, config: ShapesConfig) -> tuple[Picture, bytes]:
    """A picture and its encoded bytes: mostly JPEG, some PNG and WebP.

    In place of a perceptual hash it has one of its pixels: the signs of a few frequencies, as
    pHash has it, are the same for many toy scenes.
    """
    scene, rng = numbered_scene(config.seed, index)
    image = render(scene, rng, config.image_size)
    pixel_hash = hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()
    extension = {3: "png", 7: "webp"}.get(index % 10, "jpg")
    file = f"{index:06d}.{extension}"
    picture = Picture(file, f"{config.base_url}/{file}", pixel_hash, scene)
    return picture, encode_image(image, extension, quality=95)


def _line(picture: Picture) -> str:
    return json.dumps(asdict(picture)) + "\n"


# -- rows ----------------------------------------------------------------------------------


def _good_rows(
    pictures: Sequence[Picture], config: ShapesConfig, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """One row per picture, with its aesthetic score: the configured shares are low or null."""
    num = len(pictures)
    num_null = round(config.null_aesthetics * num)
    num_low = round(config.low_aesthetics * (num - num_null))
    low, high = np.linspace(3.0, 5.0, num_low), np.linspace(5.001, 7.0, num - num_null - num_low)
    scores = [None] * num_null + [*low.tolist(), *high.tolist()]
    scores = [scores[index] for index in rng.permutation(num)]
    size = config.image_size
    return [
        _row(picture.url, _alt_text(picture.scene, rng), size, picture.image_phash, score, rng)
        | {"label": scene_class(picture.scene)}
        for picture, score in zip(pictures, scores, strict=True)
    ]


def _bad_rows(
    pictures: Sequence[Picture], config: ShapesConfig, rng: np.random.Generator
) -> list[tuple[int, dict[str, Any]]]:
    """(good row that it stands behind, row) for each bad row; corrupt files are written here."""

    def placed(
        url: str, picture: Picture | None = None, after: int = 0
    ) -> tuple[int, dict[str, Any]]:
        original = pictures[int(rng.integers(len(pictures)))]
        text = _alt_text(original.scene, rng)
        phash = picture.image_phash if picture else rng.bytes(8).hex()
        row = _row(url, text, config.image_size, phash, rng.uniform(3, 7), rng)
        row["label"] = scene_class((picture or original).scene)
        return int(rng.integers(after, len(pictures))), row

    def number(share: float) -> range:
        return range(round(share * len(pictures)))

    rows = []
    for index in number(config.dead_links):
        path = DEAD_PATHS[index % len(DEAD_PATHS)].format(index)
        rows.append(placed(f"{config.base_url}/{path}"))
    for index in number(config.corrupt_files):
        name = f"corrupt-{index:04d}.jpg"
        body = _corrupt_body(index, Path(config.folder) / "images" / pictures[index].file)
        _write_atomically(Path(config.folder) / "images" / name, body)
        rows.append(placed(f"{config.base_url}/{name}"))
    for _ in number(config.duplicate_urls):
        at = int(rng.integers(len(pictures)))
        rows.append(placed(pictures[at].url, pictures[at], at))
    for _ in number(config.duplicate_pictures):
        at = int(rng.integers(len(pictures)))
        query = f"?w={rng.integers(100, 1000)}&v={len(rows)}"
        rows.append(placed(pictures[at].url + query, pictures[at], at))
    for index in number(config.private_addresses):
        round_number, which = divmod(index, len(PRIVATE_URLS))
        rows.append(placed(PRIVATE_URLS[which] + (f"?{round_number}" if round_number else "")))
    return rows


def _corrupt_body(index: int, picture: Path) -> bytes:
    data = picture.read_bytes()
    page = b"<!DOCTYPE html><html><body>Sorry, this picture has moved.</body></html>"
    return (data[: len(data) // 2], page, b"")[index % 3]


def _arrange(
    good: Sequence[dict[str, Any]], bad: Sequence[tuple[int, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """All rows, a bad one behind its good one; ids as Spark numbers them."""
    behind: dict[int, list[dict[str, Any]]] = {}
    for position, row in bad:
        behind.setdefault(position, []).append(row)
    rows: list[dict[str, Any]] = []
    for position, row in enumerate(good):
        rows += [row, *behind.get(position, ())]
    return [{"id": (index // 1000 << 33) + index % 1000} | row for index, row in enumerate(rows)]


def _row(
    url: str, text: str, size: int, phash: str, score: float | None, rng: np.random.Generator
) -> dict[str, Any]:
    words = len(text.split(" "))
    return {
        "url": url,
        "text": text,
        "width": size,
        "height": size,
        "image_phash": phash,
        "text_length": len(text),
        "word_count": words,
        "num_tokens_bert": round(1.3 * words),
        "num_tokens_gpt": round(1.3 * words),
        "num_faces": 0,
        "clip_similarity_vitb32": rng.uniform(0.2, 0.35),
        "clip_similarity_vitl14": rng.uniform(0.15, 0.3),
        "nsfw_score_opennsfw2": rng.uniform(0, 0.1),
        "nsfw_score_gantman": rng.uniform(0, 0.1),
        "watermark_score": rng.uniform(0, 0.5),
        "aesthetic_score_laion_v2": score,
    }


def _alt_text(scene: Scene, rng: np.random.Generator) -> str:
    template = ALT_TEXTS[int(rng.integers(len(ALT_TEXTS)))]
    some = scene.objects[int(rng.integers(len(scene.objects)))]
    return template.format(number=rng.integers(10_000), shape=some.shape, color=some.color)


def _write_metadata(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """In COYO's own types: 32-bit integers and floats, snappy; and the column ``label``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_pipeline.sources.coyo import FLOAT_COLUMNS, INT_COLUMNS, SCHEMA

    narrow = dict.fromkeys(INT_COLUMNS, pa.int32()) | dict.fromkeys(FLOAT_COLUMNS, pa.float32())
    schema = pa.schema([(field.name, narrow.get(field.name, field.type)) for field in SCHEMA])
    schema = schema.append(pa.field("label", pa.int32()))
    aside = path.with_name(path.name + ".tmp")
    table = pa.Table.from_pylist(list(rows), schema)
    pq.write_table(table, aside, row_group_size=ROWS_PER_GROUP)
    aside.replace(path)


def _write_atomically(path: Path, data: bytes) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(data)
    aside.replace(path)


# -- command -------------------------------------------------------------------------------


def serve(config: ShapesConfig, command: Sequence[str]) -> int:
    """Serve the pictures until Ctrl-C, or while ``command`` runs; gives its exit code.

    Raises:
        ValueError: nothing to serve yet, or the port is taken.
    """
    if not (Path(config.folder) / "metadata.parquet").exists():
        raise ValueError(f"{config.folder}: no pictures yet; run this first without --serve")
    with PictureServer(Path(config.folder) / "images", config.port) as server:
        logger.info("serving %s/images at %s", config.folder, config.base_url)
        if not command:
            server.serve_forever()
        # `kill` ends the command, too
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            return subprocess.run(command).returncode
        finally:
            server.shutdown()


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "python -m data_pipeline.sources.shapes",
        "The Shapes world as a small web: draw captioned pictures, serve them.",
        EPILOG,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--serve",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="serve the pictures, alone until Ctrl-C or while COMMAND runs; comes last",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    logger.info(describe_config(args))
    if args.serve is not None:
        return serve(config.source, args.serve)
    make_source(config.source)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
