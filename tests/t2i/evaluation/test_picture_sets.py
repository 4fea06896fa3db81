"""Proves which pictures a set has, and that each odd one is named, counted, and refused, skipped or
converted as the policy says."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.console import get_logger
from t2i.evaluation.picture_sets import Policy, open_set, read_batches

COLOR = (200, 30, 60)


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(get_logger("evaluate").parent, "propagate", True)
    caplog.set_level(logging.WARNING)


def plain(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOR).convert(mode).save(path)
    return path


def cut(path: Path) -> Path:
    plain(path, (64, 64))
    path.write_bytes(path.read_bytes()[:60])
    return path


def transparent(path: Path) -> Path:
    Image.new("RGBA", (8, 6), (*COLOR, 0)).save(path)
    return path


def grey16(path: Path) -> Path:
    Image.fromarray(np.full((6, 8), 256 * 77, np.uint16)).save(path)
    return path


# what is written, what is said of it, and the pixel after conversion
ODD = {
    "grey": (lambda path: plain(path, mode="L"), "not RGB of 8 bits (L)", (84, 84, 84)),
    "palette": (lambda path: plain(path, mode="P"), "not RGB of 8 bits (P)", None),
    "transparent": (transparent, "not RGB of 8 bits (RGBA)", (255, 255, 255)),
    "16 bits": (grey16, "not RGB of 8 bits (I;16)", (77, 77, 77)),
    "another size": (
        lambda path: plain(path, (9, 6)),
        "of another size than the first one (9x6, not 8x6)",
        COLOR,
    ),
}


def read(folder: Path, policy: Policy) -> list[tuple[str, tuple[int, ...]]]:
    """(name, first pixel) of what is read."""
    batches = read_batches(open_set(folder), 2, policy)
    return [
        (Path(picture.name).name, tuple(map(int, picture.pixels_HW3[0, 0])))
        for batch in batches
        for picture in batch
    ]


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_picture_is_named(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, words, pixel = ODD[kind]
    for name in ("0.png", "2.png"):
        plain(tmp_path / name)
    odd = write(tmp_path / "1.png")
    message = f"{odd}: is {words}; mend it, or --odd-pictures skip or --odd-pictures convert"
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, "refuse")
    assert [name for name, _ in read(tmp_path, "skip")] == ["0.png", "2.png"]
    assert f"1 of 3 skipped: is {words.partition(' (')[0]}" in caplog.text
    assert str(odd) in caplog.text
    converted = dict(read(tmp_path, "convert"))
    assert list(converted) == ["0.png", "1.png", "2.png"]
    assert "1 of 3 converted" in caplog.text
    if pixel is not None:
        assert converted["1.png"] == pixel


def test_a_cut_picture_is_never_converted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain(tmp_path / "0.png")
    odd = cut(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    for policy in ("refuse", "convert"):
        with pytest.raises(
            ValueError, match=rf"{odd}: is no whole picture .* --odd-pictures skip$"
        ):
            read(tmp_path, policy)
    assert [name for name, _ in read(tmp_path, "skip")] == ["0.png"]
    assert "2 of 3 skipped: is no whole picture" in caplog.text


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    cut(tmp_path / "1.png")
    with pytest.raises(ValueError, match="all 1 pictures were skipped"):
        read(tmp_path, "skip")


def test_a_folder_is_sorted_with_subfolders_and_without_contact_sheets(tmp_path: Path) -> None:
    for name in ("b/1.png", "a.png", "b/0.JPG", "contact_sheet.png", "c.webp"):
        plain(tmp_path / name)
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/a.png", "b/._0.jpg"):
        plain(tmp_path / name)
    plain(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "d.png")
    (tmp_path / "linked").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    (tmp_path / "notes.txt").write_text("")
    pictures = open_set(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in pictures.files] == [
        *("a.png", "b/0.JPG", "b/1.png", "c.webp", "linked/d.png")
    ]
    assert (pictures.num, pictures.prompts) == (5, None)


def test_lossy_pictures_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain(tmp_path / "0.jpg")
    assert len(read(tmp_path, "refuse")) == 1
    assert "compressed with losses" in caplog.text


def test_samples_have_prompts_and_seeds(tmp_path: Path, write_set: Callable[..., Path]) -> None:
    pictures = open_set(write_set(tmp_path, 0, prompts=("a", "b"), per_prompt=2))
    assert pictures.prompts == ("a", "a", "b", "b")
    assert pictures.seeds == (0, 1, 2, 3)
    (tmp_path / "another.png").write_bytes(b"of another set")
    batches = list(read_batches(pictures, 3, "refuse", indices=[1, 2, 3]))
    assert [[picture.index for picture in batch] for batch in batches] == [[1, 2, 3]]
    assert [picture.prompt for picture in batches[0]] == ["a", "b", "b"]


def test_many_pictures_come_in_order(tmp_path: Path) -> None:
    for number in range(60):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:03d}.png")
    found = [pixel[0] for _, pixel in read(tmp_path, "refuse")]
    assert found == list(range(60))


def test_an_npz_of_adm_is_a_set(tmp_path: Path) -> None:
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "batch.npz", arr_0=pixels_NHW3)
    pictures = open_set(tmp_path / "batch.npz")
    batches = list(read_batches(pictures, 2, "refuse", indices=[1, 3, 4]))
    assert [[p.index for p in batch] for batch in batches] == [[1, 3], [4]]
    np.testing.assert_array_equal(batches[1][0].pixels_HW3, pixels_NHW3[4])


def test_what_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ValueError, match="holds statistics, but no pictures"):
        open_set(tmp_path / "statistics.npz")
    with pytest.raises(FileNotFoundError, match="no folder of pictures and no"):
        open_set(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures in it"):
        open_set(tmp_path / "empty")
