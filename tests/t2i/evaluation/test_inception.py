"""Proves the FID Inception network: names and shapes of the published weights, what TensorFlow's
resize and pools compute by hand and by a plain loop, which activations come out, and golden numbers.

With the golden numbers' weights the network agreed bit for bit with torch-fidelity 0.4.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from t2i.evaluation.inception import (
    PUBLISHED_SHA256,
    FIDInception,
    load_inception,
    preprocess,
    random_inception,
    resize_bilinear_tf1,
)
from t2i.evaluation.inception_blocks import BasicConv2d, BlockE, average_pool

NUM_PARAMETERS = 23_850_960
NUM_MEANS_AND_VARIANCES = 2 * 17_216

GOLDEN = {
    "pool3": [0.0, 0.005835, 0.329618, 5.506336, 0.0, 0.005915, 0.330101, 5.509264],
    "spatial": [5.468119, 3.550287, 0.0, 0.0, 5.473968, 3.557706, 0.0, 0.0],
    "logits": [3.153657, -2.636258, 12.078035, 3.160233, -2.644786, 12.093271],
}


def chain(prefix: str, *links: int | str) -> dict[str, tuple[int, ...]]:
    """Shapes of convolutions from a row such as 192, "branch1x1 1x1", 64."""
    shapes = {}
    for index in range(1, len(links), 2):
        name, _, kernel = str(links[index]).partition(" ")
        height, width = map(int, kernel.split("x"))
        shapes[prefix + name] = (int(links[index + 1]), int(links[index - 1]), height, width)
    return shapes


def convolutions() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weight, of all convolutions of the published file."""
    shapes = chain("Conv2d_", 3, "1a_3x3 3x3", 32, "2a_3x3 3x3", 32, "2b_3x3 3x3", 64)
    shapes |= chain("Conv2d_", 64, "3b_1x1 1x1", 80, "4a_3x3 3x3", 192)
    for block, inputs, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        name = f"Mixed_{block}."
        shapes |= chain(name, inputs, "branch1x1 1x1", 64)
        shapes |= chain(name, inputs, "branch5x5_1 1x1", 48, "branch5x5_2 5x5", 64)
        shapes |= chain(name, inputs, "branch3x3dbl_1 1x1", 64, "branch3x3dbl_2 3x3", 96)
        shapes |= chain(name, 96, "branch3x3dbl_3 3x3", 96)
        shapes |= chain(name, inputs, "branch_pool 1x1", pooled)
    shapes |= chain("Mixed_6a.", 288, "branch3x3 3x3", 384)
    shapes |= chain("Mixed_6a.", 288, "branch3x3dbl_1 1x1", 64, "branch3x3dbl_2 3x3", 96)
    shapes |= chain("Mixed_6a.", 96, "branch3x3dbl_3 3x3", 96)
    for block, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        name = f"Mixed_{block}."
        shapes |= chain(name, 768, "branch1x1 1x1", 192)
        shapes |= chain(name, 768, "branch7x7_1 1x1", inner, "branch7x7_2 1x7", inner)
        shapes |= chain(name, inner, "branch7x7_3 7x1", 192)
        shapes |= chain(name, 768, "branch7x7dbl_1 1x1", inner, "branch7x7dbl_2 7x1", inner)
        shapes |= chain(name, inner, "branch7x7dbl_3 1x7", inner, "branch7x7dbl_4 7x1", inner)
        shapes |= chain(name, inner, "branch7x7dbl_5 1x7", 192)
        shapes |= chain(name, 768, "branch_pool 1x1", 192)
    shapes |= chain("Mixed_7a.", 768, "branch3x3_1 1x1", 192, "branch3x3_2 3x3", 320)
    shapes |= chain("Mixed_7a.", 768, "branch7x7x3_1 1x1", 192, "branch7x7x3_2 1x7", 192)
    shapes |= chain("Mixed_7a.", 192, "branch7x7x3_3 7x1", 192, "branch7x7x3_4 3x3", 192)
    for block, inputs in (("7b", 1280), ("7c", 2048)):
        name = f"Mixed_{block}."
        shapes |= chain(name, inputs, "branch1x1 1x1", 320)
        shapes |= chain(name, inputs, "branch3x3_1 1x1", 384, "branch3x3_2a 1x3", 384)
        shapes |= chain(name, 384, "branch3x3_2b 3x1", 384)
        shapes |= chain(name, inputs, "branch3x3dbl_1 1x1", 448, "branch3x3dbl_2 3x3", 384)
        shapes |= chain(name, 384, "branch3x3dbl_3a 1x3", 384)
        shapes |= chain(name, 384, "branch3x3dbl_3b 3x1", 384)
        shapes |= chain(name, inputs, "branch_pool 1x1", 192)
    return shapes


def pictures(num: int, size: int) -> Tensor:
    """Unlike pictures, (num, 3, size, size) uint8: waves of different lengths and colours."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    waves = [
        torch.sin((1 + index) * (rows + (1 + channel) * columns) / size * 3 + index)
        for index in range(num)
        for channel in range(3)
    ]
    return (127.5 + 127 * torch.stack(waves)).to(torch.uint8).reshape(num, 3, size, size)


@pytest.fixture(scope="module")
def network() -> FIDInception:
    return random_inception(0)


def test_names_and_shapes_are_those_of_the_published_file(network: FIDInception) -> None:
    expected: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in convolutions().items():
        expected[f"{name}.conv.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{name}.bn.{part}"] = shape[:1]
        expected[f"{name}.bn.num_batches_tracked"] = ()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == expected
    assert sum(parameter.numel() for parameter in network.parameters()) == NUM_PARAMETERS
    floats = [buffer.numel() for buffer in network.buffers() if buffer.is_floating_point()]
    assert sum(floats) == NUM_MEANS_AND_VARIANCES


def test_golden_numbers(network: FIDInception) -> None:
    """One picture is resized, and one of 299 is not; the numbers are far from alike."""
    with torch.inference_mode():
        features = [network(pictures(1, size)) for size in (64, 299)]
    found = {
        "pool3": [f.pool3[0, index].item() for f in features for index in (0, 400, 1100, 2047)],
        "spatial": [f.spatial[0, index].item() for f in features for index in (0, 8, 1000, 2022)],
        "logits": [f.logits[0, index].item() for f in features for index in (0, 500, 1007)],
    }
    for name, values in found.items():
        assert values == pytest.approx(GOLDEN[name], rel=1e-4, abs=2e-6), name


def test_spatial_features_are_the_first_branch_of_mixed_6d_by_rows_columns_channels(
    network: FIDInception,
) -> None:
    """mixed_6/conv:0 of the graph, after batch norm and ReLU, computed here layer by layer."""
    images = pictures(1, 80)
    with torch.inference_mode():
        x = preprocess(images, torch.float32)
        x = network.Conv2d_2b_3x3(network.Conv2d_2a_3x3(network.Conv2d_1a_3x3(x)))
        x = network.Conv2d_4a_3x3(network.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = network.Mixed_5d(network.Mixed_5c(network.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = network.Mixed_6c(network.Mixed_6b(network.Mixed_6a(x)))
        conv, bn = network.Mixed_6d.branch1x1.conv, network.Mixed_6d.branch1x1.bn
        y = F.conv2d(x, conv.weight)
        y = (y - bn.running_mean[:, None, None]) / (bn.running_var[:, None, None] + 1e-3).sqrt()
        y = (y * bn.weight[:, None, None] + bn.bias[:, None, None]).clamp(min=0)
        features = network(images)
    assert features.spatial.shape == (1, 2023)
    row, column, channel = 3, 11, 5
    index = (row * 17 + column) * 7 + channel
    torch.testing.assert_close(features.spatial[0, index], y[0, channel, row, column])
    expected = y[0, :7].permute(1, 2, 0).reshape(-1)
    torch.testing.assert_close(features.spatial[0], expected, rtol=1e-4, atol=1e-5)
    assert (expected == 0).any()
    torch.testing.assert_close(features.logits, features.pool3 @ network.fc.weight.T)


def test_average_pools_leave_out_the_padding() -> None:
    assert torch.equal(average_pool(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


def test_only_the_last_block_pools_by_maximum(network: FIDInception) -> None:
    pools = {name: m.pool for name, m in network.named_modules() if isinstance(m, BlockE)}
    assert pools == {"Mixed_7b": "average", "Mixed_7c": "max"}
    torch.manual_seed(0)
    x, last = torch.rand(1, 2048, 8, 8), network.Mixed_7c
    with torch.inference_mode():
        expected = last.branch_pool(F.max_pool2d(x, 3, 1, 1))
        torch.testing.assert_close(last(x)[:, -192:], expected)


def test_batch_norm_adds_a_thousandth_to_the_variance() -> None:
    unit = BasicConv2d(1, 1).eval()
    torch.nn.init.ones_(unit.conv.weight)
    torch.nn.init.zeros_(unit.bn.running_var)
    with torch.inference_mode():
        y = unit(torch.tensor([0.5, -0.5]).reshape(1, 1, 1, 2))
    assert y.flatten().tolist() == pytest.approx([0.5 / 1e-3**0.5, 0.0])


def test_resize_by_hand() -> None:
    """Pixel i looks at i / 2 of the source; beyond its last pixel there is only this one."""
    row = torch.tensor([0.0, 10.0, 40.0]).expand(1, 1, 3, 3)
    expected = torch.tensor([0.0, 5.0, 10.0, 25.0, 40.0, 40.0]).expand(1, 1, 6, 6)
    assert torch.equal(resize_bilinear_tf1(row, 6), expected)
    assert torch.equal(resize_bilinear_tf1(row.mT, 6), expected.mT)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (7, 13), (20, 3), (8, 8)])
def test_resize_equals_a_plain_loop(height: int, width: int) -> None:
    size = 8
    x = np.random.default_rng(0).uniform(0, 255, (height, width))
    expected = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            y, z = row * height / size, column * width / size
            top, left = int(y), int(z)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = x[top, left] * (1 - z + left) + x[top, right] * (z - left)
            lower = x[bottom, left] * (1 - z + left) + x[bottom, right] * (z - left)
            expected[row, column] = upper * (1 - y + top) + lower * (y - top)
    found = resize_bilinear_tf1(torch.from_numpy(x)[None, None], size)[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_preprocessing_shifts_by_128_and_leaves_299_alone() -> None:
    images = torch.zeros(1, 3, 299, 299, dtype=torch.uint8)
    images[..., 0, 0], images[..., 0, 1] = 128, 255
    x = preprocess(images, torch.float32)
    assert x[0, 0, 0, :3].tolist() == [0.0, 127 / 128, -1.0]
    assert torch.equal(preprocess(images.float(), torch.float32), x)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"shape \(B, 3, H, W\), not \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), r"not \(1, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "not torch.int64"),
    ],
)
def test_other_tensors_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(images, torch.float32)


@pytest.mark.parametrize("name", ["other.pth", "other.safetensors"])
def test_other_weights_are_refused_or_marked(
    network: FIDInception, tmp_path: Path, name: str
) -> None:
    """Also without the counts of training steps, which old files lack."""
    weights = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    with pytest.raises(ValueError, match=f"not {PUBLISHED_SHA256} of .* would not be comparable"):
        load_inception(path)
    loaded = load_inception(path, accept_other_weights=True)
    assert not loaded.is_comparable
    assert len(loaded.weights_hash) == 64
    assert not any(module.training for module in loaded.modules())
    assert all(
        torch.equal(tensor, network.state_dict()[name])
        for name, tensor in loaded.state_dict().items()
    )


def test_only_the_published_hash_is_comparable(network: FIDInception) -> None:
    assert not network.is_comparable
    with torch.device("meta"):
        assert FIDInception(PUBLISHED_SHA256).is_comparable


def test_a_missing_file_says_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"6726825d.*https://github\.com/mseitzer") as error:
        load_inception(tmp_path / "none.pth")
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit .*missing Conv2d_1a_3x3"):
        load_inception(tmp_path / "other.pth", accept_other_weights=True)
