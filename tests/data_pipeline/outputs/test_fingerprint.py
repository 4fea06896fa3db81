"""Proves that fingerprints follow contents, not places."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.outputs.fingerprint import model_fingerprint, output_fingerprint, short_hash
from data_pipeline.outputs.step_output import StepOutput


def test_settings_have_one_hash_whatever_their_order() -> None:
    assert short_hash({"a": 1, "b": [2]}) == short_hash({"b": [2], "a": 1})
    assert short_hash({"a": 1}) != short_hash({"a": 2})


def test_a_model_is_its_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "weights").write_bytes(b"weights")
    one = model_fingerprint(str(tmp_path / "one"))
    assert model_fingerprint(str(tmp_path / "two")) == one
    (tmp_path / "two" / "sub" / "weights").write_bytes(b"changed")
    assert model_fingerprint(str(tmp_path / "two")) != one
    assert model_fingerprint("somebody/model") == "somebody/model"


def test_an_output_is_the_settings_that_made_it(tmp_path: Path) -> None:
    outputs = [StepOutput.open(str(tmp_path / name)) for name in ("one", "two")]
    assert output_fingerprint(outputs[0]) == outputs[0].url
    for output in outputs:
        output.begin({"step": "download"})
    assert output_fingerprint(outputs[0]) == output_fingerprint(outputs[1])
