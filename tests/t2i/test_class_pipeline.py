"""ClassToImagePipeline on folders of tiny random models: every family, seeds, batches, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i.class_pipeline import ClassToImagePipeline
from t2i.encoders.vae import load_vae
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.methods import make_guidance
from t2i.image_pipeline import NotFiniteError
from t2i.models.mask_dit import MaskDiT, load_mask_dit
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit import SiT, load_sit
from t2i.models.sit_config import SiTConfig
from t2i.models.storage import save_transformer
from t2i.sampling.sampler import sample_latents
from t2i.sampling.sampling_config import RandomCondition

SIZES = {"width": 32, "num_heads": 2, "num_classes": 5}
SIT = SiTConfig(num_layers=3, routes=((1, 1),), **SIZES)
MODELS = {
    "sit": (SiT, SIT),
    "dit": (SiT, SIT.model_copy(update={"prediction": "epsilon"})),
    "mask_dit": (
        MaskDiT,
        MaskDiTConfig(num_layers=2, decoder_layers=1, decoder_width=16, decoder_heads=2, **SIZES),
    ),
    "other_classes": (SiT, SIT.model_copy(update={"num_classes": 4})),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a subfolder per model; no weight is zero."""
    folder = tmp_path_factory.mktemp("models")
    for name, (model_class, config) in MODELS.items():
        model: nn.Module = model_class(config)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2, generator=generator)
        save_transformer(model, folder / name)
    return folder


@pytest.fixture(scope="module")
def vae(pipeline_folder: Path) -> VAEConfig:
    return VAEConfig(path=str(pipeline_folder / "vae"))


@pytest.fixture(scope="module")
def pipeline(folder: Path, vae: VAEConfig) -> ClassToImagePipeline:
    return ClassToImagePipeline.from_pretrained(folder / "sit", vae, size=(64, 64))


def latents(pipeline: ClassToImagePipeline, labels: Any, **arguments: Any) -> Tensor:
    few = {"num_inference_steps": 3, "output_type": "latent"}
    images = pipeline(labels, **few, **arguments).images
    assert isinstance(images, Tensor)
    return images


@pytest.mark.parametrize("family", ["sit", "dit", "mask_dit"])
def test_every_family_makes_pictures_of_its_classes(
    folder: Path, vae: VAEConfig, family: str
) -> None:
    pipeline = ClassToImagePipeline.from_pretrained(folder / family, vae)
    images = pipeline([0, 4], seeds=[1, 1], height=32, width=48, num_inference_steps=2).images
    assert [image.size for image in images] == [(48, 32)] * 2
    first, second = latents(pipeline, [0, 4], seeds=[1, 1], height=32, width=48)
    assert first.isfinite().all()
    assert (first - second).abs().max() > 0.01
    pipeline.compile_blocks("eager")
    compiled = latents(pipeline, [0, 4], seeds=[1, 1], height=32, width=48)
    torch.testing.assert_close(compiled, torch.stack([first, second]), rtol=1e-3, atol=1e-3)


def test_an_image_depends_on_its_label_and_seed_only(pipeline: ClassToImagePipeline) -> None:
    for name in ("sg", "icg"):
        together = latents(pipeline, [2, 4], seeds=[1, 2], guidance=name)
        alone = latents(pipeline, 4, seeds=[2], guidance=name)
        torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)


def test_damaged_weights_are_refused(folder: Path, vae: VAEConfig) -> None:
    pipeline = ClassToImagePipeline.from_pretrained(folder / "sit", vae, size=(64, 64))
    next(pipeline.transformer.parameters()).data.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match=r"2 of 2 .*\(seed 5, 6\).*transformer .* float32"):
        pipeline([0, 1], seeds=[5, 6], num_inference_steps=2)


def test_the_null_condition_is_the_null_class_and_the_random_ones_are_classes(
    pipeline: ClassToImagePipeline,
) -> None:
    """The random ones at each step anew, each of the others as often; or the same at all steps."""

    def conditions(name: str, random_condition: RandomCondition) -> dict[str, Any]:
        return pipeline.conditions([2, 4], 100, make_guidance(name), range(200), random_condition)

    cfg = conditions("cfg", "per_step")
    assert {key: labels_B.tolist() for key, labels_B in cfg.items()} == {
        "text": [2] * 100 + [4] * 100,
        "null": [5] * 200,
    }
    redrawn = conditions("icg", "per_step")["random"]
    labels_SB = torch.stack([redrawn.pool[redrawn.rows(step)] for step in range(3)])
    for own, drawn_SB in ((2, labels_SB[:, :100]), (4, labels_SB[:, 100:])):
        for drawn_B in drawn_SB:
            counts = torch.bincount(drawn_B, minlength=5).tolist()
            assert counts.pop(own) == 0
            assert min(counts) > 10
        # of four classes three are others
        assert all((drawn_SB[i] != drawn_SB[i - 1]).sum() > 55 for i in range(3))
    assert torch.equal(conditions("icg", "per_image")["random"], labels_SB[0])


def test_a_single_class_has_no_other_to_draw(vae: VAEConfig) -> None:
    model = SiT(SIT.model_copy(update={"num_classes": 1}))
    pipeline = ClassToImagePipeline(model, load_vae(vae), size=(64, 64))
    with pytest.raises(ValueError, match="icg needs a model of at least two classes"):
        latents(pipeline, 0, guidance="icg")
    assert latents(pipeline, 0, guidance="none").isfinite().all()


def test_a_second_network_is_loaded_for_autoguidance(folder: Path, vae: VAEConfig) -> None:
    pipeline = ClassToImagePipeline.from_pretrained(
        folder / "sit", vae, aux=folder / "mask_dit", size=(64, 64)
    )
    guided = latents(pipeline, 1, seeds=[1], guidance="ag", guidance_scale=3.0)
    conditions: Any = {"text": torch.tensor([1])}
    guidance = make_guidance("ag", {"omega": 3.0})
    right, alone = (
        sample_latents(
            {"main": load_sit(folder / "sit"), "aux": aux}, conditions, guidance, [1], (4, 8, 8), 3
        )
        for aux in (load_mask_dit(folder / "mask_dit"), load_sit(folder / "sit"))
    )
    torch.testing.assert_close(guided, right, rtol=1e-4, atol=1e-4)
    assert (guided - alone).abs().max() > 0.01
    with pytest.raises(ValueError, match="the networks know 5 and 4 classes"):
        ClassToImagePipeline.from_pretrained(folder / "sit", vae, aux=folder / "other_classes")


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        ([1, 5], {}, r"class 5: must be in \[0, 4\]"),
        (-1, {}, r"class -1: must be in \[0, 4\]"),
        ([1, 2], {"seeds": [1]}, "2 images need as many seeds, got 1"),
        (1, {"width": 40}, "size 64x40: both sides must be multiples of 16"),
        ([], {}, r"labels must be one or several, got \[\]"),
        (1, {"num_images_per_label": 0}, "num_images_per_label must be at least 1, got 0"),
        (1, {"routing_draw": "Bernouli"}, "routing_draw must be fixed or bernoulli, got 'Bern"),
        (1, {"guidance": "ag"}, "guidance ag needs a second, weaker network"),
    ],
)
def test_bad_arguments_are_refused(
    pipeline: ClassToImagePipeline, labels: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        latents(pipeline, labels, **arguments)


def test_a_folder_of_another_model_is_refused(pipeline_folder: Path, vae: VAEConfig) -> None:
    with pytest.raises(ValueError, match="holds a TRDiT, not a SiT"):
        ClassToImagePipeline.from_pretrained(pipeline_folder / "transformer", vae)
