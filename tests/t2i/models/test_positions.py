"""Proves absolute positions by numbers worked out by hand, and what they are for by translation.

Without them a model cannot know where a token is: pictures that are shifted copies of one another
have shifted velocities. With them they have not.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from t2i.models.positions import absolute_positions, highest_frequency
from t2i.models.storage import CONFIG_NAME, save_transformer
from t2i.models.tr_dit import TRDiT, load_transformer
from t2i.models.tr_dit_config import TRDiTConfig

CPU = torch.device("cpu")
SIZES = {
    "num_layers": 2,
    "width": 64,
    "num_heads": 2,
    "text_width": 8,
    "adaln_rank": 8,
    "routes": (),
}
POSITIONS = {
    "rope": {"positions": "rope"},
    "rope+absolute": {"positions": "rope+absolute", "smallest_grid": 8},
}


def model_of(positions: str, **changes: object) -> TRDiT:
    """A model whose every weight has a value, those that start at zero too."""
    torch.manual_seed(0)
    model = TRDiT(TRDiTConfig.model_validate({**SIZES, **POSITIONS[positions], **changes}))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


@torch.no_grad()
def velocity(model: TRDiT, latents: torch.Tensor, keep_ids: torch.Tensor | None = None):
    """At t = 0 for a text of three tokens."""
    states = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))
    text = model.prepare_text(states, torch.ones(1, 3, dtype=torch.bool))
    return model(latents, torch.zeros(1), text, keep_ids)


def test_frequencies_stay_below_what_the_smallest_grid_can_tell_apart():
    assert highest_frequency(8) == 4 * math.pi
    assert highest_frequency(16) == 8 * math.pi
    assert highest_frequency(64) == 10 * math.pi


def test_each_side_spans_minus_one_to_one_and_y_comes_before_x():
    waves = absolute_positions(2, 4, 8, 8, CPU).view(
        2, 4, 2, 2, 2
    )  # h, w, axis, sin/cos, frequency
    frequencies = torch.tensor([math.pi / 2, math.pi / 2 * 8**0.5])
    y, x = -0.5, 0.25  # centres of row 0 of 2 and of column 2 of 4
    for axis, position in enumerate((y, x)):
        torch.testing.assert_close(waves[0, 2, axis, 0], (position * frequencies).sin())
        torch.testing.assert_close(waves[0, 2, axis, 1], (position * frequencies).cos())


def test_no_two_tokens_of_a_grid_look_alike():
    distances = torch.cdist(*2 * (absolute_positions(8, 12, 192, 8, CPU),))
    assert (distances + 100 * torch.eye(96)).min() > 1


@pytest.mark.parametrize("positions", POSITIONS)
def test_kept_tokens_moved_as_one_give_the_same_velocity_only_without_absolute_positions(positions):
    model = model_of(positions, routes=((0, 1),))
    patch = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(2))
    outputs = []
    for column in (0, 4):  # in latents: two tokens to the right
        latents = torch.zeros(1, 4, 8, 16)
        latents[..., column : column + 6] = patch
        tokens = torch.arange(4 * 8).view(4, 8)[:, column // 2 : column // 2 + 3]
        moved = velocity(model, latents, tokens.reshape(1, -1))
        outputs.append(moved[..., column : column + 6])
    difference = (outputs[0] - outputs[1]).abs().max()
    assert difference < 1e-4 if positions == "rope" else difference > 0.1


@pytest.mark.parametrize("positions", POSITIONS)
def test_crops_of_one_noise_have_shifted_velocities_only_without_absolute_positions(positions):
    model = model_of(positions)
    noise = torch.randn(1, 4, 32, 36, generator=torch.Generator().manual_seed(3))
    left, right = (velocity(model, noise[..., column : column + 32]) for column in (0, 4))
    inner = slice(4, 28)  # the border sees other neighbours
    difference = left[..., inner, 8:28] - right[..., inner, 4:24]
    relative = difference.square().mean() / left[..., inner, 8:28].square().mean()
    assert relative < 0.02 if positions == "rope" else relative > 0.1


def test_a_folder_from_before_the_setting_is_of_rope_alone(tmp_path: Path):
    save_transformer(model_of("rope"), tmp_path)
    values = json.loads((tmp_path / CONFIG_NAME).read_text())
    for key in ("positions", "smallest_grid"):
        del values[key]
    (tmp_path / CONFIG_NAME).write_text(json.dumps(values))
    assert load_transformer(tmp_path).config.positions == "rope"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positions": "rope+absolute"}, "needs smallest_grid"),
        ({"positions": "rope", "smallest_grid": 8}, "rope ignores it"),
    ],
)
def test_settings_that_would_be_ignored_or_miss_something_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TRDiTConfig.model_validate({**SIZES, **values})
