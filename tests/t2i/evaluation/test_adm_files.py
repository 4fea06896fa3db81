"""Proves that statistics survive ADM's .npz files under ADM's names, that files of pictures are told
from files of statistics, and that pictures are read batch by batch as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from t2i.evaluation.adm_files import open_adm_file, read_images, save_statistics
from t2i.evaluation.moments import Statistics

POOLED = Statistics(np.arange(3.0), np.eye(3))
SPATIAL = Statistics(np.arange(2.0), 2 * np.eye(2))
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)


def check(found: Statistics | None, expected: Statistics) -> None:
    assert found
    np.testing.assert_array_equal(found.mean_D, expected.mean_D)
    np.testing.assert_array_equal(found.covariance_DD, expected.covariance_DD)


def test_statistics_come_back(tmp_path: Path) -> None:
    path = tmp_path / "both.npz"
    save_statistics(path, POOLED, SPATIAL)
    with np.load(path) as arrays:
        assert set(arrays.files) == {"mu", "sigma", "mu_s", "sigma_s"}
    found = open_adm_file(path)
    check(found.pooled, POOLED)
    check(found.spatial, SPATIAL)
    assert found.num_images == 0


def test_spatial_statistics_may_be_absent(tmp_path: Path) -> None:
    save_statistics(tmp_path / "pooled.npz", POOLED)
    assert open_adm_file(tmp_path / "pooled.npz").spatial is None


def test_a_file_of_pictures_has_no_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", IMAGES)
    found = open_adm_file(tmp_path / "images.npz")
    assert (found.pooled, found.spatial, found.num_images) == (None, None, 5)


def test_a_virtual_reference_has_both(tmp_path: Path) -> None:
    path = tmp_path / "virtual.npz"
    # ADM's own are float32 or float64, by file.
    np.savez(path, arr_0=IMAGES, mu=POOLED.mean_D.astype(np.float32), sigma=POOLED.covariance_DD)
    found = open_adm_file(path)
    check(found.pooled, POOLED)
    assert found.pooled
    assert found.pooled.mean_D.dtype == np.float64
    assert found.num_images == 5


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pictures_are_read_in_batches(tmp_path: Path, save: object) -> None:
    assert callable(save)
    save(tmp_path / "images.npz", IMAGES)
    batches = list(read_images(tmp_path / "images.npz", 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), IMAGES)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"is no \.npz file"):
        open_adm_file(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"neither statistics .* but weights"):
        open_adm_file(tmp_path / "other.npz")
    np.savez(tmp_path / "floats.npz", IMAGES / 255)
    with pytest.raises(ValueError, match=r"uint8, not .* float64"):
        open_adm_file(tmp_path / "floats.npz")
