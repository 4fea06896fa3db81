"""Proves the source of class folders: labels by the order of names, classes spread over shards, odd
files recorded, the same from S3, and labels that reach the loader's batches through the VAE step."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline import latents
from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import run_job
from data_pipeline.loader import make_loader
from data_pipeline.loading.loader_config import LoaderConfig
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.sources.class_folders import ClassFoldersConfig, main, make_job
from data_pipeline.storage.interface import StorageConfig
from data_pipeline.storage.stores import open_storage
from t2i.console import run_command

CLASSES = ("n02", "n10", "n01")
PER_CLASS = 5


def picture(red: int, side: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_classes(url: str, storage: StorageConfig | None = None) -> None:
    source = open_storage(url, storage)
    for red, name in enumerate(sorted(CLASSES)):
        for number in range(PER_CLASS):
            source.put(f"{name}/{name}_{number}.PNG", picture(red))
    source.put("LICENSE.png", b"in no class")
    source.put("n01/readme.txt", b"no picture")


def make(url: str, output: str, storage: StorageConfig | None = None, **changes: int) -> StepOutput:
    config = ClassFoldersConfig.model_validate({"images": url, "output": output, **changes})
    job = make_job(config, storage or StorageConfig())
    assert run_job(job, JobsConfig()).exit_code == 0
    return StepOutput.open(output, storage)


def test_labels_follow_the_names_and_each_shard_has_all_classes(tmp_path: Path) -> None:
    write_classes(str(tmp_path / "train"))
    output = make(str(tmp_path / "train"), str(tmp_path / "images"), images_per_shard=8)
    assert output.committed() == ["00000", "00001"]
    seen = []
    for shard_id in output.committed():
        facts = [json.loads(sample.parts["json"]) for sample in output.read(shard_id)]
        assert {fact["label"] for fact in facts} == {0, 1, 2}
        seen += [(fact["file"], fact["class"], fact["label"]) for fact in facts]
    assert sorted(seen) == [
        (f"{name}/{name}_{number}.PNG", name, label)
        for label, name in enumerate(sorted(CLASSES))
        for number in range(PER_CLASS)
    ]


def test_odd_files_have_their_reason_and_keep_the_others_labels(tmp_path: Path) -> None:
    write_classes(str(tmp_path / "train"))
    (tmp_path / "train/n01/cut.JPEG").write_bytes(picture(0)[:60])
    (tmp_path / "train/n10/tiny.png").write_bytes(picture(0, side=4))
    output = make(str(tmp_path / "train"), str(tmp_path / "images"))
    assert output.funnel().reasons == {
        ("failed", "undecodable"): 1,
        ("filtered", "too_small"): 1,
    }
    assert output.funnel().num_ok == 3 * PER_CLASS


def test_from_s3_it_is_the_same(tmp_path: Path, s3_url: str, s3_config: StorageConfig) -> None:
    write_classes(str(tmp_path / "train"))
    write_classes(f"{s3_url}/train", s3_config)
    local = make(str(tmp_path / "train"), str(tmp_path / "images"))
    remote = make(f"{s3_url}/train", f"{s3_url}/images", s3_config)
    assert list(local.read("00000")) == list(remote.read("00000"))


def test_a_folder_without_classes_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.jpeg").write_bytes(b"")
    code = run_command(main, ["--set", f"data_pipeline.class_folders.images={tmp_path}"])
    assert code == 2
    assert "the folder that holds the classes' folders" in capsys.readouterr().err


def test_labels_reach_the_batches(tmp_path: Path) -> None:
    write_classes(str(tmp_path / "train"))
    make(str(tmp_path / "train"), str(tmp_path / "images"))
    changes = {"images": tmp_path / "images", "output": tmp_path / "latents"}
    flags = [f"--set=data_pipeline.latents.{key}={value}" for key, value in changes.items()]
    assert run_command(latents.main, [*flags, "--set=data_pipeline.latents.captions=null"]) == 0

    datasets = [{"path": str(tmp_path / "latents")}]
    config = LoaderConfig.model_validate({"datasets": datasets, "labels": True, "num_workers": 0})
    loader = make_loader(
        config, seed=0, rank=0, world_size=1, global_batch=15, micro_batch=15, start_step=0
    )
    labels = next(iter(loader)).labels
    assert labels is not None
    assert sorted(set(labels.tolist()) - {-1}) == [0, 1, 2]
