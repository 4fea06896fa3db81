"""The sample command on a tiny random pipeline: files, metadata, resuming, flags, errors, --help."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from t2i.config import load_config
from t2i.console import run_command
from t2i.encoders import text
from t2i.encoders.encoder_hash import encoder_hash
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae_config import VAEConfig
from t2i.generation import Config as SampleConfig
from t2i.generation import settings_of
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.storage import save_transformer
from t2i.pipeline import checkpoint_hash
from t2i.sample import build_parser, main, merge_flags
from t2i.sampling.prompts import builtin_prompts

Run = Callable[..., int]


@pytest.fixture
def config_file(tmp_path: Path, pipeline_folder: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"root: {tmp_path}\n"
        "t2i:\n"
        f"  sampling: {{checkpoint: {pipeline_folder}, output: '${{root}}/samples', steps: 2, "
        "num_builtin_prompts: 3, size: [32, 32]}\n"
        "  guidance: {name: sg, omega: 3.0, gamma_weak: 0.7}\n"
    )
    return path


@pytest.fixture
def run(config_file: Path) -> Run:
    return lambda *flags: run_command(main, ["--config", str(config_file), *flags])


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.png") if path.name != "contact_sheet.png")


def test_a_preset_is_a_method_with_its_steps_and_flags_change_single_values(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config's own omega of 3 does not get into it."""
    assert run("--preset", "geneval", "--steps", "2", "--prompt", "a circle") == 0
    (path,) = pictures(tmp_path / "samples" / "geneval")
    with Image.open(path) as image:
        assert image.info["guidance"] == "cfg+sg omega=2.5 gamma_strong=0.2 gamma_weak=0.7"
    for flags in (("--sg", "0.1,0.8"), ("--guidance", "sg")):
        assert run("--preset", "hpsv3", *flags) == 2
        assert "--preset hpsv3 is guidance sg: leave --guidance and --sg" in capsys.readouterr().err
    config = load_config(tmp_path / "config.yaml", [], SampleConfig)
    for flags, omega, steps in (((), 2.5, 40), (("--omega", "1.5", "--steps", "7"), 1.5, 7)):
        merged = merge_flags(config, build_parser().parse_args(["--preset", "sg_flops", *flags]))
        assert merged.guidance.omega is not None
        assert merged.guidance.omega(0.0) == omega
        assert merged.sampling.steps == steps
    assert run("--preset", "sg_fid") == 2
    assert "--aux CHECKPOINT" in capsys.readouterr().err


def test_images_carry_what_made_them(run: Run, tmp_path: Path, pipeline_folder: Path) -> None:
    assert run("--sg", "0.1,0.8", "--omega", "1.8", "--seed", "4") == 0
    paths = pictures(tmp_path / "samples" / "sg")
    assert len(paths) == 3
    with Image.open(paths[1]) as image:
        assert image.size == (32, 32)
        assert image.info == {
            "prompt": builtin_prompts(3)[1],
            "seed": "5",
            "guidance": "sg omega=1.8 gamma_strong=0.1 gamma_weak=0.8",
            "checkpoint": checkpoint_hash(pipeline_folder),
            "vae": encoder_hash(VAEConfig(path="vae"), pipeline_folder),
            "text_encoder": encoder_hash(TextEncoderConfig(path="text_encoder"), pipeline_folder),
            "steps": "2",
            "solver": "euler",
            "shift": "1.0",
            "routing_draw": "fixed",
            "size": "32x32",
            "dtype": "float32",
        }
    with Image.open(tmp_path / "samples" / "sg" / "contact_sheet.png") as sheet:
        assert sheet.size == (96, 32)


def test_run_again_it_makes_only_what_is_missing_or_cut(run: Run, tmp_path: Path) -> None:
    assert run() == 0
    paths = pictures(tmp_path / "samples" / "sg")
    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    paths[2].write_bytes(before[2][: len(before[2]) // 2])
    made_at = paths[0].stat().st_mtime_ns
    assert run() == 0
    assert [path.read_bytes() for path in paths] == before
    assert paths[0].stat().st_mtime_ns == made_at
    assert run("--omega", "1.5") == 0
    assert pictures(tmp_path / "samples" / "sg") == paths
    assert all(path.read_bytes() != old for path, old in zip(paths, before, strict=True))


def test_prompts_that_are_cut_are_told_once_of_all_batches(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(text.LOG, "warning", lambda line, *parts: warnings.append(line % parts))
    prompts = ("a red circle", "red " * 150, "blue " * 160)
    flags = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert run(*flags, "--images-per-prompt", "2", "--batch", "1") == 0
    (warning,) = warnings
    assert warning.startswith("2 of 3 prompts are longer than the 128 tokens")


def test_an_overflow_is_one_line_and_no_picture(
    run: Run, tmp_path: Path, pipeline_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pipeline_folder, broken)
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.bias"].fill_(1e38)  # infinite in sums, and white when clamped
    weights["decoder.conv_out.weight"].fill_(1e38)
    save_file(weights, path, metadata={"format": "pt"})
    assert run("--checkpoint", str(broken)) == 2
    assert "error: 3 of 3 images (seed 0, 1, 2) are NaN or infinite" in capsys.readouterr().err
    assert not pictures(tmp_path / "samples" / "sg")


@pytest.mark.parametrize("batch", ["1", "2"])
def test_the_batch_size_does_not_change_a_picture(run: Run, tmp_path: Path, batch: str) -> None:
    assert run("--output", str(tmp_path / "all")) == 0
    assert run("--output", str(tmp_path / batch), "--batch", batch) == 0
    for one, other in zip(pictures(tmp_path / "all"), pictures(tmp_path / batch), strict=True):
        with Image.open(one) as first, Image.open(other) as second:
            pairs = zip(first.tobytes(), second.tobytes(), strict=True)
            assert max(abs(a - b) for a, b in pairs) <= 1


@pytest.mark.slow
def test_accelerate_launch_makes_the_same_images(
    run: Run,
    tmp_path: Path,
    config_file: Path,
    accelerate_two: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert run("--output", str(tmp_path / "one")) == 0
    flags = ("--config", str(config_file), "--output", str(tmp_path / "two"))
    done = accelerate_two("t2i.sample", *flags)
    assert done.returncode == 0, done.stderr
    assert "images 1" in done.stderr, "one process did not share"
    assert "images 2" in done.stderr, "one process did not share"
    for one, other in zip(pictures(tmp_path / "one"), pictures(tmp_path / "two"), strict=True):
        with Image.open(one) as first, Image.open(other) as second:
            assert first.info == second.info
            pairs = zip(first.tobytes(), second.tobytes(), strict=True)
            assert max(abs(a - b) for a, b in pairs) <= 1


def settings_with(config_file: Path, *flags: str, is_class_model: bool = False) -> dict[str, str]:
    args = build_parser().parse_args(["--config", str(config_file), *flags])
    config = merge_flags(load_config(config_file, args.overrides, SampleConfig), args)
    return settings_of(config, is_class_model)


def test_what_icg_draws_from_is_part_of_its_images(config_file: Path) -> None:
    drawn = ("--set", "t2i.sampling.random_prompts=[a dog]")
    icg = ("--guidance", "icg")
    assert settings_with(config_file, *icg) != settings_with(config_file, *icg, *drawn)
    assert settings_with(config_file) == settings_with(config_file, *drawn)
    # a class model draws classes
    usual, other = (
        settings_with(config_file, *icg, *more, is_class_model=True) for more in ((), drawn)
    )
    assert usual == other
    for is_class_model in (False, True):
        per_step, per_image = (
            settings_with(config_file, *icg, *flag, is_class_model=is_class_model)
            for flag in ((), ("--random-condition", "per_image"))
        )
        assert per_step.pop("random_condition") == "per_step"
        assert per_image.pop("random_condition") == "per_image"
        assert per_step == per_image
    assert "random_condition" not in settings_with(config_file)


def test_the_flag_says_how_often_icg_draws(run: Run, tmp_path: Path) -> None:
    """Two steps: the second draws another prompt than the first, unless one is drawn per image."""
    made = {}
    for kind in ("per_step", "per_image"):
        flags = ("--guidance", "icg", "--random-condition", kind, "--output", str(tmp_path / kind))
        assert run(*flags) == 0
        images = []
        for path in pictures(tmp_path / kind):
            with Image.open(path) as image:
                assert image.info["random_condition"] == kind
                images.append(image.tobytes())
        made[kind] = images
    assert made["per_step"] != made["per_image"]


def test_the_encoders_are_part_of_the_images_of_a_bare_model(
    config_file: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    bare = ("--checkpoint", str(pipeline_folder / "transformer"))
    usual = settings_with(config_file, *bare)
    for change in ("vae.dtype=bfloat16", f"vae.path={pipeline_folder / 'vae'}", "text.prefix=a"):
        changed = settings_with(config_file, *bare, "--set", f"t2i.encoders.{change}")
        encoder = {"vae": "vae", "text": "text_encoder"}[change.split(".")[0]]
        assert {key for key in usual if usual[key] != changed[key]} == {encoder}
    # wherever the folder lies, and whatever else is in the pipeline's
    shutil.copytree(pipeline_folder, tmp_path / "moved")
    moved = settings_with(config_file, "--checkpoint", str(tmp_path / "moved"))
    assert moved == settings_with(config_file)
    with (tmp_path / "moved" / "vae" / "config.json").open("a") as file:
        file.write("\n")
    changed = settings_with(config_file, "--checkpoint", str(tmp_path / "moved"))
    assert changed["vae"] != moved["vae"]


def test_a_printed_config_holds_the_flags(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--guidance", "cfg", "--omega", "3.5", "--steps", "7", "--size", "32x48"]
    assert main(["--config", str(config_file), *flags, "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = load_config(tmp_path / "printed.yaml", [], SampleConfig)
    assert str(printed.guidance.build()) == "cfg omega=3.5"
    assert (printed.sampling.steps, printed.sampling.size) == (7, (32, 48))


def test_a_second_network_of_the_config_serves_only_guidance_that_uses_it(
    config_file: Path,
) -> None:
    aux = ["t2i.guidance={name: ag, gamma_weak: null}", "t2i.sampling.aux=weak"]
    config = load_config(config_file, aux, SampleConfig)

    def aux_with(*flags: str) -> str | None:
        return merge_flags(config, build_parser().parse_args(list(flags))).sampling.aux

    assert aux_with() == aux_with("--guidance", "ag+sg") == "weak"
    assert aux_with("--guidance", "cfg") is None


def test_another_guidance_does_not_inherit_the_configs_settings(config_file: Path) -> None:
    config = load_config(config_file, [], SampleConfig)

    def described(*flags: str) -> str:
        merged = merge_flags(config, build_parser().parse_args(list(flags)))
        return str(merged.guidance.build())

    assert described() == "sg omega=3 gamma_strong=0.1 gamma_weak=0.7"
    assert described("--gamma-weak", "0.5") == "sg omega=3 gamma_strong=0.1 gamma_weak=0.5"
    assert described("--guidance", "cfg") == "cfg omega=2.5"
    assert described("--guidance", "none") == "none"
    assert described("--interval", "0.1,0.7").endswith("interval=0.1,0.7")


def test_classes_take_the_place_of_prompts(run: Run, tmp_path: Path, pipeline_folder: Path) -> None:
    config = SiTConfig(num_layers=3, width=32, num_heads=2, num_classes=5, routes=((1, 1),))
    save_transformer(SiT(config), tmp_path / "sit")
    vae = f"t2i.encoders.vae.path={pipeline_folder / 'vae'}"
    flags = ("--checkpoint", str(tmp_path / "sit"), "--images-per-prompt", "2", "--set", vae)
    assert run("--classes", "3,1", *flags) == 0
    infos = []
    for path in pictures(tmp_path / "samples" / "sg"):
        with Image.open(path) as image:
            infos.append((image.info["prompt"], image.info["seed"]))
    assert infos == [("3", "0"), ("3", "1"), ("1", "2"), ("1", "3")]
    assert run("--classes", "5", *flags) == 2
    # the images of another VAE are not these
    nowhere = ("--set", f"t2i.encoders.vae.path={tmp_path / 'nowhere'}")
    assert run("--classes", "3,1", *flags, *nowhere) == 2


def test_a_model_with_a_scale_input_is_fed_the_scale(
    run: Run, tmp_path: Path, pipeline_folder: Path
) -> None:
    config = SiTConfig(
        num_layers=2, width=32, num_heads=2, num_classes=5, routes=((1, 1),), scale_input=True
    )
    model = SiT(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    save_transformer(model, tmp_path / "sit")
    vae = f"t2i.encoders.vae.path={pipeline_folder / 'vae'}"
    flags = ("--checkpoint", str(tmp_path / "sit"), "--classes", "3", "--set", vae)
    made = {}
    for scale in ((), ("--model-scale", "1"), ("--model-scale", "2.5")):
        assert run(*flags, *scale) == 0
        with Image.open(pictures(tmp_path / "samples" / "sg")[0]) as image:
            made[image.info.get("model_scale")] = image.tobytes()
    assert made[None] == made["1.0"] != made["2.5"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-scale", "1"], "the model has no scale input: leave --model-scale"),
        (["--model-scale", "-1"], "--model-scale Input should be greater than or equal to 0"),
        (["--guidance", "pga"], "unknown guidance 'pga'; valid: none cfg sg cfg+sg ag ag+sg"),
        (["--sg", "0.8,0.1"], "gamma_strong must be below gamma_weak"),
        (["--sg", "0.1"], "--sg 0.1: expected two numbers such as 0.1,0.8"),
        (["--gamma-weak", "1"], "gamma_weak must be in [0, 1)"),
        (["--guidance", "cfg", "--gamma-weak", "0.8"], "guidance cfg has no setting gamma_weak"),
        (["--omega", "big"], "--omega 'big' is not a number or a schedule"),
        (["--size", "wide"], "--size wide: expected pixels"),
        (["--size", "0"], "--size Input should be greater than 0"),
        (["--size", ""], "--size : expected pixels"),
        (["--sg", "0.1,0.8", "--gamma-weak", "0.5"], "--sg 0.1,0.8 gives both gammas: leave"),
        (["--interval", "0.5"], "--interval 0.5: expected two ends LOW,HIGH such as 0.1,0.7"),
        (["--omega", "nan"], "--omega 'nan' is not a number or a schedule"),
        (["--omega", "inf"], "omega must be finite, got inf"),
        (["--seed", str(2**63 - 1)], "the last of 3 images would have a seed above"),
        (["--aux", "weak", "--guidance", "cfg"], "guidance cfg has no use for a second network"),
        (["--set", "t2i.sampling.aux=weak"], "guidance sg has no use for a second network"),
        (["--device", "foo"], "--device foo cannot be used here: "),
        (["--size", "40"], "both sides must be multiples of 16"),
        (["--solver", "rk4"], "--solver Input should be 'euler', 'heun' or 'unipc'"),
        (["--routing-draw", "poisson"], "--routing-draw Input should be 'fixed' or 'bernoulli'"),
        (["--shift", "0"], "--shift"),
        (["--random-condition", "x"], "--random-condition Input should be 'per_step' or 'per_im"),
        (["--guidance", "ag"], "guidance ag needs a second, weaker network: --aux"),
        (["--checkpoint", "nowhere"], "nowhere: neither a pipeline folder"),
        (["--classes", "1,dog"], "--classes 1,dog: expected numbers of classes such as 207,360"),
        (["--classes", "1", "--prompt", "a dog"], "--classes takes the place of prompts"),
        (["--classes", "1"], "holds a TRDiT, not a SiT"),
    ],
)
def test_bad_flags_are_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(*flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--device", "cuda") == 2
    assert "error: --device cuda cannot be used here: " in capsys.readouterr().err


def test_help_answers_fast_without_torch() -> None:
    started = time.monotonic()
    code = (
        "import sys; from t2i.sample import build_parser; build_parser().format_help(); "
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - started < 5
