"""TextToImagePipeline on a tiny random pipeline folder: types, seeds, batches, saving, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.guidance.methods import make_guidance
from t2i.image_pipeline import NotFiniteError, choose_seeds
from t2i.models.storage import save_transformer
from t2i.models.tr_dit import TRDiT
from t2i.pipeline import TextToImagePipeline, checkpoint_hash, draw_others
from t2i.sampling.sampler import ConditionText, sample_latents

PROMPTS = ["a red circle", "a small blue square on a white background."]
FEW = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def pipeline(pipeline_folder: Path) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(pipeline_folder)


def latents(pipeline: TextToImagePipeline, prompt: Any, **arguments: Any) -> torch.Tensor:
    images = pipeline(prompt, output_type="latent", **FEW, **arguments).images
    assert isinstance(images, torch.Tensor)
    return images


def test_output_types_show_the_same_pictures(pipeline: TextToImagePipeline) -> None:
    shared = {**FEW, "seeds": [1, 2], "height": 32, "width": 48}
    pictures = pipeline(PROMPTS, **shared).images
    arrays = pipeline(PROMPTS, output_type="np", **shared).images
    tensors = pipeline(PROMPTS, output_type="pt", **shared).images
    assert isinstance(pictures[0], Image.Image)
    assert pictures[0].size == (48, 32)
    assert arrays.shape == (2, 32, 48, 3)
    assert tensors.shape == (2, 3, 32, 48)
    np.testing.assert_array_equal(np.asarray(pictures[1]), np.rint(arrays[1] * 255))
    np.testing.assert_array_equal(tensors.permute(0, 2, 3, 1), arrays)


def test_an_image_depends_on_its_prompt_and_seed_only(pipeline: TextToImagePipeline) -> None:
    for name in ("sg", "icg"):
        together = latents(pipeline, PROMPTS, seeds=[1, 2], guidance=name)
        alone = latents(pipeline, PROMPTS[1], seeds=[2], guidance=name)
        torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_compiled_blocks_make_the_same_images(pipeline_folder: Path) -> None:
    """At more shapes than torch compiles by default: two branches, six steps of a schedule each."""
    pipeline = TextToImagePipeline.from_pretrained(pipeline_folder)
    gammas = {"gamma_strong": "linear:0.4:0", "gamma_weak": "linear:0.9:0.5"}
    settings = {"seeds": [1, 2], "guidance": "sg", "num_inference_steps": 6, **gammas}
    eager = pipeline(PROMPTS, output_type="latent", **settings).images
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipeline.compile_blocks("aot_eager")
    compiled = pipeline(PROMPTS, output_type="latent", **settings).images
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 8


def test_several_images_of_a_prompt_stay_together(pipeline: TextToImagePipeline) -> None:
    four = latents(pipeline, PROMPTS, num_images_per_prompt=2, seeds=[1, 2, 3, 4])
    last = latents(pipeline, PROMPTS[1], num_images_per_prompt=2, seeds=[3, 4])
    torch.testing.assert_close(four[2:], last, rtol=1e-3, atol=1e-3)


def test_what_overflows_is_refused_and_no_black_picture(pipeline_folder: Path) -> None:
    """Of the transformer's numbers, and of the VAE's: NaN as well as infinity."""
    pipeline = TextToImagePipeline.from_pretrained(pipeline_folder, dtype=torch.bfloat16)
    shared: dict[str, Any] = {**FEW, "seeds": [7, 8], "guidance": "none"}

    def spoil_second(value: float) -> Callable[..., dict[str, torch.Tensor]]:
        def on_step_end(_: Any, step: int, time: float, at: dict[str, Any]) -> dict[str, Any]:
            return {"latents": at["latents"].index_fill(0, torch.tensor([1]), value)}

        return on_step_end

    for output_type in ("pil", "np", "pt", "latent"):
        with pytest.raises(
            NotFiniteError, match=r"1 of 2 .*\(seed 8\).*transformer .* bfloat16; try --dtype"
        ):
            pipeline(
                PROMPTS,
                output_type=output_type,
                callback_on_step_end=spoil_second(np.nan),
                **shared,
            )
    pipeline.vae.model.half()
    with pytest.raises(NotFiniteError, match=r"\(seed 8\).*VAE .* float16; try float32: t2i.enc"):
        pipeline(PROMPTS, callback_on_step_end=spoil_second(1e30), **shared)
    pipeline.vae.model.float().decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(NotFiniteError, match=r"2 of 2 .*\(seed 7, 8\).*float32; its weights are"):
        pipeline(PROMPTS, **shared)


def test_a_generator_draws_the_seeds(pipeline: TextToImagePipeline) -> None:
    first, again, other = (
        pipeline(PROMPTS[0], generator=torch.Generator().manual_seed(seed), **FEW).seeds
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_one_generator_per_image_draws_its_seed(pipeline: TextToImagePipeline) -> None:
    def drawn(*numbers: int) -> tuple[int, ...]:
        generators = [torch.Generator().manual_seed(number) for number in numbers]
        return pipeline(PROMPTS, generator=generators, **FEW).seeds

    assert drawn(0, 1) == drawn(1, 0)[::-1]
    assert drawn(0, 0)[0] == drawn(0, 0)[1]
    with pytest.raises(ValueError, match="2 images need one generator, or as many, got 3"):
        drawn(0, 1, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_generator_of_another_device_draws_the_seeds() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    assert len(set(choose_seeds(None, 4, generator))) == 4


def test_the_independent_prompt_is_another_than_the_image_s_own_and_drawn_at_each_step(
    pipeline: TextToImagePipeline,
) -> None:
    """Images of two prompts in one batch, each by its own seed: alone they draw the same."""
    random_prompts, own = ["a", "b", "c", "b"], ["b", "d"] * 50
    draw = draw_others(own, random_prompts, torch.arange(100))
    steps = [draw(step).tolist() for step in range(3)]
    for rows in steps:
        assert {random_prompts[row] for row in rows[0::2]} == {"a", "c"}
        assert {random_prompts[row] for row in rows[1::2]} == {"a", "b", "c"}
    for one, other in ((0, 1), (1, 2), (0, 2)):
        # 50 images draw among 2 rows, 50 among 4: 62.5 draws differ, with a deviation of 4.7
        assert 40 < sum(a != b for a, b in zip(steps[one], steps[other], strict=True)) < 85
    alone = draw_others(["d"], random_prompts, torch.tensor([7]))
    assert [alone(step).item() for step in range(3)] == [rows[7] for rows in steps]
    with pytest.raises(ValueError, match="random_prompts must have another prompt than 'a', got"):
        latents(pipeline, "a", guidance="icg", random_prompts=["a", "a"])


def test_settings_by_name_and_a_guidance_object_agree(pipeline: TextToImagePipeline) -> None:
    named = latents(
        pipeline, PROMPTS[0], seeds=[1], guidance="sg", guidance_scale=2, gamma_weak=0.6
    )
    guidance = make_guidance("sg", {"omega": 2, "gamma_weak": 0.6})
    assert torch.equal(named, latents(pipeline, PROMPTS[0], seeds=[1], guidance=guidance))


def test_a_transformer_with_a_scale_input_is_fed_the_scale(
    pipeline: TextToImagePipeline, make_transformer: Callable[..., TRDiT]
) -> None:
    scaled = TextToImagePipeline(
        make_transformer(0, scale_input=True), pipeline.vae, pipeline.text_encoder, size=(64, 64)
    )
    for name in ("none", "cfg+sg"):
        one, strong, default = (
            latents(scaled, PROMPTS[0], seeds=[1], guidance=name, model_scale=scale)
            for scale in (1.0, 2.0, None)
        )
        assert torch.equal(one, default)
        assert (one - strong).abs().max() > 0.01
    with pytest.raises(ValueError, match="the model has no scale input"):
        latents(pipeline, PROMPTS[0], seeds=[1], model_scale=1.0)


def test_the_callback_sees_every_step_and_may_replace_the_latents(
    pipeline: TextToImagePipeline,
) -> None:
    steps = []

    def callback(_: Any, step: int, timestep: float, tensors: dict[str, torch.Tensor]) -> Any:
        steps.append((step, round(timestep, 3)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not latents(pipeline, PROMPTS[0], seeds=[1], callback_on_step_end=callback).any()
    assert steps == [(0, 0.333), (1, 0.667), (2, 1.0)]


def test_a_callback_may_return_nothing(pipeline: TextToImagePipeline) -> None:
    watched = latents(pipeline, PROMPTS[0], seeds=[1], callback_on_step_end=lambda *_: None)
    assert torch.equal(watched, latents(pipeline, PROMPTS[0], seeds=[1]))


def test_a_saved_pipeline_makes_the_same_image(
    pipeline: TextToImagePipeline, tmp_path: Path, pipeline_folder: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    again = TextToImagePipeline.from_pretrained(tmp_path / "saved")
    assert again.size == (64, 64)
    expected = latents(pipeline, PROMPTS[0], seeds=[1])
    assert torch.equal(latents(again, PROMPTS[0], seeds=[1]), expected)
    assert checkpoint_hash(tmp_path / "saved") == checkpoint_hash(pipeline_folder)


def by_hand(
    pipeline: TextToImagePipeline, name: str, captions: dict[str, str], aux: TRDiT | None = None
) -> torch.Tensor:
    """Latents of seed 1 without the pipeline: one caption per condition."""
    given: Any = {
        condition: ConditionText(pipeline.text_encoder.encode([caption]), torch.tensor([0]))
        for condition, caption in captions.items()
    }
    networks = {"main": pipeline.transformer} | ({"aux": aux} if aux else {})
    return sample_latents(networks, given, make_guidance(name), [1], (4, 8, 8), num_steps=3)


@pytest.mark.parametrize("name", ["cfg", "cfg+sg", "s2", "apg"])
def test_the_null_branch_is_the_empty_prompt(pipeline: TextToImagePipeline, name: str) -> None:
    image = latents(pipeline, PROMPTS[0], seeds=[1], guidance=name)
    empty, blank, own = (
        by_hand(pipeline, name, {"text": PROMPTS[0], "null": null})
        for null in ("", " ", PROMPTS[0])
    )
    torch.testing.assert_close(image, empty, rtol=1e-4, atol=1e-4)
    assert (image - blank).abs().max() > 0.01
    assert (image - own).abs().max() > 0.01


@pytest.mark.parametrize("name", ["ag", "ag+sg"])
def test_the_weaker_branch_is_the_second_network_and_told_the_prompt(
    pipeline: TextToImagePipeline,
    pipeline_folder: Path,
    make_transformer: Callable[..., TRDiT],
    tmp_path: Path,
    name: str,
) -> None:
    """Of two different networks, both in a folder and in hand."""
    weaker = make_transformer(1)
    save_transformer(weaker, tmp_path)
    loaded = TextToImagePipeline.from_pretrained(pipeline_folder, aux=tmp_path)
    held = TextToImagePipeline(
        pipeline.transformer, pipeline.vae, pipeline.text_encoder, weaker, size=(64, 64)
    )
    captions = {"text": PROMPTS[0], "null": ""}
    expected = by_hand(pipeline, name, captions, weaker)
    for one in (loaded, held):
        image = latents(one, PROMPTS[0], seeds=[1], guidance=name)
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)
    alone = by_hand(pipeline, name, captions, pipeline.transformer)
    assert (expected - alone).abs().max() > 0.1


@pytest.mark.parametrize(
    ("height", "width", "shift"), [(128, 128, 2.0), (64, 64, 1.0), (32, 32, 0.5), (32, 128, 1.0)]
)
def test_another_size_shifts_the_times_by_the_root_of_its_tokens(
    pipeline: TextToImagePipeline, height: int, width: int, shift: float
) -> None:
    """Of a pipeline made for 64 x 64, which is 16 tokens: t / (shift - (shift - 1) t)."""
    times: list[float] = []
    pipeline(
        PROMPTS[0],
        height=height,
        width=width,
        num_inference_steps=4,
        guidance="none",
        output_type="latent",
        shift="resolution",
        callback_on_step_end=lambda _, step, time, tensors: times.append(time),
    )
    even = (0.25, 0.5, 0.75, 1.0)
    assert times == pytest.approx([t / (shift - (shift - 1) * t) for t in even], rel=1e-9)
    if shift == 2.0:
        assert times == pytest.approx([1 / 7, 1 / 3, 3 / 5, 1], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 40}, "size 40x64: both sides must be multiples of 16"),
        ({"seeds": [1, 2]}, "1 images need as many seeds, got 2"),
        ({"guidance": "agg"}, "unknown guidance 'agg'; valid: none"),
        ({"guidance": make_guidance("cfg"), "guidance_scale": 2}, "omega cannot be given beside"),
        ({"gamma_strong": 1.5}, r"gamma_strong must be in \[0, 1\)"),
        ({"solver": "rk4"}, "unknown solver"),
        ({"prompt": []}, r"prompt must be one or several, got \[\]"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"output_type": "numpy"}, "output_type must be pil, np, pt or latent, got 'numpy'"),
        ({"routing_draw": "Bernouli"}, "routing_draw must be fixed or bernoulli, got 'Bernouli'"),
        (
            {"random_condition": "once"},
            "random_condition must be per_step or per_image, got 'once'",
        ),
        ({"shift": "resolutio"}, "shift must be 'resolution' or a number > 0, got 'resolutio'"),
        ({"shift": 0}, "shift must be 'resolution' or a number > 0, got 0"),
        ({"shift": -1.0}, "shift must be 'resolution' or a number > 0, got -1.0"),
        ({"shift": float("nan")}, "shift must be 'resolution' or a number > 0, got nan"),
        ({"height": 0}, "height must be None or at least 1, got 0"),
        ({"width": -32}, "width must be None or at least 1, got -32"),
        (
            {"guidance": "icg", "random_prompts": []},
            r"random_prompts must have another prompt than 'a red circle', got \[\]",
        ),
    ],
)
def test_bad_arguments_are_refused(
    pipeline: TextToImagePipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": "a red circle", **FEW, **arguments})


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a pipeline folder, it has no model_index"):
        TextToImagePipeline.from_pretrained(tmp_path)
