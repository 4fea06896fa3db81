"""Proves the latents step: buckets and crops, one row with a reason for every image, samples as
the loader reads them, and the command with the bundled VAE."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import run_job
from data_pipeline.latents import (
    Bucket,
    LatentsConfig,
    LatentsStep,
    fingerprint,
    fit_to_bucket,
    main,
    make_job,
    nearest_bucket,
)
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.pictures.images import encode_image
from data_pipeline.storage.interface import StorageConfig
from t2i.config import ConfigError
from t2i.encoders.vae import load_vae
from t2i.encoders.vae_config import VAEConfig
from t2i.shapes import random_scene, render

CAPTIONS = ["a detailed caption", "two. sentences.", "one sentence", "key, words"]
SQUARE, WIDE, HIGH = Bucket(128, 128), Bucket(176, 96), Bucket(96, 176)


class MeanVAE:
    """Encodes each 8 x 8 block of pixels by its mean colour; white pictures overflow."""

    def encode_moments(self, images: torch.Tensor) -> torch.Tensor:
        moments = torch.nn.functional.avg_pool2d(images, 8).repeat(1, 2, 1, 1)
        is_white = (moments > 0.999).all(dim=1, keepdim=True)
        return torch.where(is_white, torch.inf, moments)


def picture(color: str, width: int = 128, height: int = 128) -> bytes:
    return encode_image(Image.new("RGB", (width, height), color), "png", 95)


def write_images(
    url: str, pictures: dict[str, bytes], shard_id: str = "00000", columns: bytes = b"{}"
) -> None:
    with StepOutput.open(url).writer(shard_id) as writer:
        for key, data in pictures.items():
            writer.add(Outcome(Row(key, "ok"), Sample(key, {"png": data, "json": columns})))
        writer.commit()


def write_captions(url: str, keys: list[str], shard_id: str = "00000") -> None:
    with StepOutput.open(url).writer(shard_id) as writer:
        for key in keys:
            data = json.dumps({"captions": CAPTIONS}).encode()
            writer.add(Outcome(Row(key, "ok"), Sample(key, {"json": data})))
        writer.commit()


def configure(folder: Path, **changes: Any) -> LatentsConfig:
    places = {name: str(folder / name) for name in ("images", "captions")}
    return LatentsConfig(**{**places, "output": str(folder / "latents"), **changes})


def run(config: LatentsConfig) -> dict[str, Outcome]:
    """The step on shard 00000 with the toy VAE, all images in one batch."""
    step = LatentsStep(config, StorageConfig(), MeanVAE())  # type: ignore[arg-type]
    items = step.load("00000")
    outcomes = step.run(items)
    assert [outcome.row.key for outcome in outcomes] == [item.key for item in items]
    return {outcome.row.key: outcome for outcome in outcomes}


@pytest.mark.parametrize(
    ("columns", "label"), [(b'{"label": 7}', 7), (b'{"label": null}', None), (b"{}", None)]
)
def test_a_label_of_the_metadata_reaches_the_latents(
    tmp_path: Path, columns: bytes, label: int | None
) -> None:
    write_images(str(tmp_path / "images"), {"a": picture("red")}, columns=columns)
    write_captions(str(tmp_path / "captions"), ["a"])
    sample = run(configure(tmp_path))["a"].sample
    assert sample is not None
    facts = json.loads(sample.parts["json"])
    assert facts.get("label") == label
    assert ("label" in facts) == (label is not None), "latents without labels stay as they were"


def test_pictures_with_labels_alone_need_no_captions(tmp_path: Path) -> None:
    pictures = {"a": picture("red"), "b": picture("blue")}
    write_images(str(tmp_path / "images"), pictures, columns=b'{"label": 7}')
    config = configure(tmp_path, captions=None)
    for outcome in run(config).values():
        assert outcome.sample is not None
        facts = json.loads(outcome.sample.parts["json"])
        assert (facts["captions"], facts["label"]) == ([""] * 4, 7)
    assert make_job(config, VAEConfig(), StorageConfig()).shard_ids == ["00000"]


@pytest.mark.parametrize("resolution", [128, 256, 512])
def test_buckets_have_sides_of_sixteens_and_about_the_same_area(resolution: int) -> None:
    aspects = ("1:1", "4:3", "3:4", "16:9", "9:16", "2:2")
    config = LatentsConfig(resolution=resolution, aspects=aspects)
    buckets = config.buckets()
    assert str(buckets[0]) == f"{resolution}x{resolution}"
    assert len(buckets) == 5
    for bucket in buckets:
        assert bucket.width % 16 == bucket.height % 16 == 0
        assert bucket.width * bucket.height == pytest.approx(resolution**2, rel=0.1)
    assert buckets[1] == Bucket(buckets[2].height, buckets[2].width)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((500, 500), SQUARE), ((640, 480), SQUARE), ((640, 360), WIDE), ((100, 900), HIGH)],
)
def test_the_bucket_of_the_nearest_aspect_ratio_is_taken(
    size: tuple[int, int], bucket: Bucket
) -> None:
    assert nearest_bucket(*size, (SQUARE, WIDE, HIGH)) == bucket


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 51), (128, 128), (1000, 129)])
def test_a_crop_is_centred_and_keeps_proportions(size: tuple[int, int]) -> None:
    """A picture whose red and green are coordinates: the crop's centre is the picture's, and
    both coordinates grow at the same rate."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 0 * x], axis=-1).round().astype(np.uint8)
    fitted = np.asarray(fit_to_bucket(Image.fromarray(pixels), WIDE)).astype(float)
    assert fitted.shape == (96, 176, 3)
    inner = fitted[20:-20, 20:-20, :2]
    assert inner.mean(axis=(0, 1)) == pytest.approx([127.5, 127.5], abs=1)
    per_pixel_x = np.diff(inner[..., 0], axis=1).mean() * width
    per_pixel_y = np.diff(inner[..., 1], axis=0).mean() * height
    assert per_pixel_x == pytest.approx(per_pixel_y, rel=0.05)


def test_every_image_gets_latents_or_a_reason(tmp_path: Path) -> None:
    pictures = {
        "good": picture("navy", 300, 200),
        "nocaption": picture("navy"),
        "broken": b"no picture",
        "overflow": picture("white"),
        "small": picture("navy", 40, 40),
        "alsogood": picture("black"),
    }
    write_images(str(tmp_path / "images"), pictures)
    write_captions(str(tmp_path / "captions"), [key for key in pictures if key != "nocaption"])
    outcomes = run(configure(tmp_path, max_upscale=2.0))
    assert {key: (o.row.status, o.row.reason) for key, o in outcomes.items()} == {
        "good": ("ok", ""),
        "nocaption": ("filtered", "no_caption"),
        "broken": ("failed", "undecodable"),
        "overflow": ("failed", "non_finite"),
        "small": ("filtered", "upscaled"),
        "alsogood": ("ok", ""),
    }
    assert [key for key, outcome in outcomes.items() if outcome.sample] == ["good", "alsogood"]


def test_a_sample_holds_moments_captions_and_sizes(tmp_path: Path) -> None:
    write_images(
        str(tmp_path / "images"), {"a": picture("red", 90, 180), "b": picture("blue", 200, 200)}
    )
    write_captions(str(tmp_path / "captions"), ["a", "b"])
    outcomes = run(configure(tmp_path, aspects=("1:1", "9:16")))
    for key, bucket, shape, size, color in (
        ("a", "96x176", (6, 22, 12), (90, 180), [1, -1, -1]),
        ("b", "128x128", (6, 16, 16), (200, 200), [-1, -1, 1]),
    ):
        outcome = outcomes[key]
        assert outcome.sample is not None
        assert outcome.row.columns == {"bucket": bucket}
        facts = json.loads(outcome.sample.parts["json"])
        assert facts == {
            "captions": CAPTIONS,
            "width": size[0],
            "height": size[1],
            "bucket": bucket,
        }
        moments = np.load(io.BytesIO(outcome.sample.parts["npy"]))
        assert (moments.dtype, moments.shape) == (np.float16, shape)
        np.testing.assert_array_equal(moments[:, 3, 3], color * 2)


def test_mirrored_pictures_are_encoded_beside_the_others(tmp_path: Path) -> None:
    """The left half of the picture is red: of the mirrored one the right half."""
    half = Image.new("RGB", (128, 128), "blue")
    half.paste("red", (0, 0, 64, 128))
    write_images(str(tmp_path / "images"), {"a": encode_image(half, "png", 95)})
    config = configure(tmp_path, captions=None, mirrored=True)
    sample = run(config)["a"].sample
    assert sample is not None
    as_it_is, mirrored = (
        np.load(io.BytesIO(sample.parts[name])) for name in ("npy", "mirrored.npy")
    )
    np.testing.assert_array_equal(as_it_is[:3, 0, 3], [1, -1, -1])
    np.testing.assert_array_equal(mirrored, as_it_is[:, :, ::-1])
    plain = configure(tmp_path, captions=None)
    assert "mirrored.npy" not in (run(plain)["a"].sample or sample).parts
    images = StepOutput.open(plain.images)
    assert fingerprint(config, VAEConfig(), images, None) == {
        **fingerprint(plain, VAEConfig(), images, None),
        "mirrored": True,
    }


def test_shards_without_captions_wait_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, vae, storage = configure(tmp_path), VAEConfig(path="none"), StorageConfig()
    with pytest.raises(FileNotFoundError, match=r"latents.images: .* run .*download first"):
        make_job(config, vae, storage)
    for shard_id in ("00000", "00001"):
        write_images(config.images, {f"a{shard_id}": picture("red")}, shard_id)
    with pytest.raises(FileNotFoundError, match=r"latents.captions: .* run recaption first"):
        make_job(config, vae, storage)
    write_captions(config.captions, ["a00001"], "00001")
    assert make_job(config, vae, storage).shard_ids == ["00001"]


def test_moving_folders_changes_no_fingerprint_but_other_settings_do(tmp_path: Path) -> None:
    def fingerprint(folder: Path, **changes: Any) -> object:
        config = configure(folder, **changes)
        StepOutput.open(config.images).begin({"made": "images"})
        StepOutput.open(config.captions).begin({"made": "captions"})
        write_images(config.images, {"a": picture("red")})
        write_captions(config.captions, ["a"])
        return make_job(config, VAEConfig(path="none"), StorageConfig()).fingerprint

    original = fingerprint(tmp_path / "one")
    assert fingerprint(tmp_path / "two", batch_size=3) == original
    assert fingerprint(tmp_path / "one", resolution=256) != original


def test_aspects_must_be_ratios() -> None:
    with pytest.raises(ValueError, match="not of the form WIDTH:HEIGHT"):
        LatentsConfig(aspects=("1.5",))


def test_the_command_encodes_with_the_bundled_vae_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    scenes = [render(random_scene(rng), rng) for _ in range(3)]
    pictures = {f"{n}": encode_image(scene, "png", 95) for n, scene in enumerate(scenes)}
    write_images(str(tmp_path / "images"), pictures)
    write_captions(str(tmp_path / "captions"), list(pictures))
    latents = configure(tmp_path).model_dump(include={"images", "captions", "output"})
    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump({"data_pipeline": {"latents": latents}}))

    assert main(["--config", str(settings)]) == 0
    assert "encoded 3 of 3 images" in capsys.readouterr().out
    output = StepOutput.open(latents["output"])
    manifest = output.manifest("00000")
    assert manifest.num_ok_by == {"bucket": {"128x128": 3}}
    assert main(["--config", str(settings)]) == 0
    assert StepOutput.open(latents["output"]).manifest("00000") == manifest

    vae = load_vae(VAEConfig())
    samples = list(output.read("00000"))
    assert [sample.key for sample in samples] == list(pictures)
    for sample, scene in zip(samples, scenes, strict=True):
        moments = torch.from_numpy(np.load(io.BytesIO(sample.parts["npy"]))).float()
        assert moments.shape == (2 * vae.num_channels, 16, 16)
        decoded = vae.decode(moments[None, : vae.num_channels])[0].permute(1, 2, 0)
        error = (decoded.numpy() - (np.asarray(scene) / 127.5 - 1)) / 2
        assert -10 * math.log10((error**2).mean()) > 25  # dB


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    write_images(str(tmp_path / "images"), {"a": picture("red")})
    write_captions(str(tmp_path / "captions"), ["a"])
    run_job(make_job(configure(tmp_path), VAEConfig(), StorageConfig()), JobsConfig())
    changed = make_job(configure(tmp_path, resolution=256), VAEConfig(), StorageConfig())
    with pytest.raises(ValueError, match="resolution was 128, now 256"):
        run_job(changed, JobsConfig())


def test_unknown_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'resolution'"):
        main(["--set", "data_pipeline.latents.resolutoin=256"])
