"""The export command: a training checkpoint becomes a pipeline folder that samples, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from t2i.console import run_command
from t2i.encoders.text_config import TextEncoderConfig
from t2i.export import main
from t2i.models.sit import SiT, load_sit
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit import TRDiT
from t2i.pipeline import TextToImagePipeline
from t2i.training.checkpoint import TrainingState, commit, write_tensors

Export = Callable[..., int]


def write_checkpoint(run: Path, step: int, weights: TRDiT, ema: TRDiT, text: str) -> Path:
    """A checkpoint as the trainer leaves it."""
    temporary = run / "checkpoints" / f"step-{step:08d}.tmp"
    temporary.mkdir(parents=True)
    for kind, model in (("weights", weights), ("ema", ema)):
        write_tensors(temporary, kind, dict(model.state_dict()))
    settings = {
        "data_pipeline": {"loader": {"latents": "somewhere/latents"}},
        "t2i": {
            "models": {"tr_dit": weights.config.model_dump(mode="json")},
            "encoders": {"text": TextEncoderConfig(path=text, max_tokens=77).model_dump()},
            "training": {"global_batch": 16},
        },
    }
    return commit(temporary, TrainingState(step, step, step, 0), yaml.safe_dump(settings), keep=3)


@pytest.fixture
def models(make_transformer: Callable[..., TRDiT]) -> tuple[TRDiT, TRDiT]:
    return make_transformer(1), make_transformer(2)


@pytest.fixture
def export(tmp_path: Path, pipeline_folder: Path, models: tuple[TRDiT, TRDiT]) -> Export:
    """The command on a run with checkpoints of steps 5 and 10; takes more flags."""
    text = str(pipeline_folder / "text_encoder")
    write_checkpoint(tmp_path / "run", 5, models[1], models[0], text)
    write_checkpoint(tmp_path / "run", 10, models[0], models[1], text)
    metrics = [{"step": 10, "loss": 0.25}, {"step": 12, "loss": 9.0}]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + "\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"t2i:\n  export: {{run: {tmp_path}/run, output: {tmp_path}/export, size: [32, 48]}}\n"
        f"  encoders:\n    vae: {{path: {pipeline_folder}/vae}}\n"
    )
    return lambda *flags: run_command(main, ["--config", str(config), *flags])


def assert_is(model: TRDiT, expected: TRDiT, dtype: torch.dtype = torch.float32) -> None:
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.to(dtype)), name


def test_the_newest_ema_becomes_a_pipeline_that_samples(
    export: Export, tmp_path: Path, models: tuple[TRDiT, TRDiT]
) -> None:
    assert export() == 0
    pipeline = TextToImagePipeline.from_pretrained(tmp_path / "export")
    assert_is(pipeline.transformer, models[1])
    assert pipeline.text_encoder.config.max_tokens == 77
    assert pipeline("a red circle", num_inference_steps=2).images[0].size == (48, 32)


def test_the_folder_can_be_moved(export: Export, tmp_path: Path) -> None:
    assert export() == 0
    moved = (tmp_path / "export").rename(tmp_path / "elsewhere")
    pipeline = TextToImagePipeline.from_pretrained(moved)
    assert pipeline.text_encoder.config.path == str(moved / "text_encoder")


def test_raw_weights_dtype_and_references_by_flag(
    export: Export, tmp_path: Path, pipeline_folder: Path, models: tuple[TRDiT, TRDiT]
) -> None:
    flags = ("--weights", "weights", "--dtype", "bfloat16", "--encoders", "reference")
    assert export(*flags) == 0
    assert not (tmp_path / "export" / "vae").exists()
    pipeline = TextToImagePipeline.from_pretrained(tmp_path / "export")
    assert_is(pipeline.transformer, models[0], torch.bfloat16)
    assert pipeline.text_encoder.config.path == str(pipeline_folder / "text_encoder")


def test_a_damaged_checkpoint_is_passed_over(
    export: Export, tmp_path: Path, models: tuple[TRDiT, TRDiT]
) -> None:
    newest = tmp_path / "run" / "checkpoints" / "step-00000010" / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert export() == 0
    assert_is(TextToImagePipeline.from_pretrained(tmp_path / "export").transformer, models[0])


def test_an_early_checkpoint_is_exported_by_its_step(
    export: Export, tmp_path: Path, models: tuple[TRDiT, TRDiT], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the weaker network of guidance ag+sg."""
    aux = str(tmp_path / "aux")
    assert export("--step", "5", "--output", aux) == 0
    assert_is(TextToImagePipeline.from_pretrained(Path(aux)).transformer, models[0])
    assert export("--step", "7", "--output", aux) == 2
    assert "no checkpoint of step 7, only of 5, 10; t2i.training.keep_at" in capsys.readouterr().err
    weights = tmp_path / "run" / "checkpoints" / "step-00000005" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert export("--step", "5", "--output", aux) == 2
    assert "step-00000005 is damaged: ema.safetensors has" in capsys.readouterr().err


def test_run_again_it_does_nothing_until_the_run_goes_on(
    export: Export, tmp_path: Path, pipeline_folder: Path, models: tuple[TRDiT, TRDiT]
) -> None:
    assert export() == 0
    card = tmp_path / "export" / "README.md"
    before = card.stat().st_mtime_ns
    assert export() == 0
    assert card.stat().st_mtime_ns == before
    write_checkpoint(tmp_path / "run", 15, *models, str(pipeline_folder / "text_encoder"))
    assert export() == 0
    assert "| step | 15 (ema, float32) |" in card.read_text()


def test_the_model_card_tells_step_data_and_metrics(export: Export, tmp_path: Path) -> None:
    assert export() == 0
    card = (tmp_path / "export" / "README.md").read_text()
    for expected in (
        "| step | 10 (ema, float32) |",
        "| images seen | 160 |",
        "| last loss | 0.25 |",
        "latents: somewhere/latents",
    ):
        assert expected in card


def test_a_class_conditional_model_becomes_its_own_folder(export: Export, tmp_path: Path) -> None:
    model = SiT(SiTConfig(num_layers=2, width=16, num_heads=2, num_classes=3, routes=()))
    temporary = tmp_path / "classes" / "checkpoints" / "step-00000005.tmp"
    temporary.mkdir(parents=True)
    write_tensors(temporary, "ema", dict(model.state_dict()))
    settings = {
        "launch": {"train": {"model": "sit"}},
        "t2i": {"models": {"sit": model.config.model_dump(mode="json")}},
    }
    commit(temporary, TrainingState(5, 5, 5, 0), yaml.safe_dump(settings), keep=3)
    assert export("--run", str(tmp_path / "classes")) == 0
    loaded = load_sit(tmp_path / "export")
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not (tmp_path / "export" / "model_index.json").exists()
    card = (tmp_path / "export" / "README.md").read_text()
    assert "# sit, exported from classes" in card
    assert "| step | 5 (ema, float32) |" in card


def test_it_refuses_a_run_without_checkpoints_and_a_foreign_folder(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--run", str(tmp_path / "none")) == 2
    assert "no checkpoint that verifies; train first" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert export("--output", str(tmp_path / "mine")) == 2
    assert "not empty and not made by this command" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
