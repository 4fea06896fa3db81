"""The folder of images: metadata in the PNGs, what counts as missing, names, the contact sheet."""

from pathlib import Path

import pytest
from PIL import Image

from t2i.sampling.image_folder import ImageFolder, ImageJob, plan_images, read_image_list

SETTINGS = {"guidance": "sg omega=1.8", "steps": "50"}
PROMPTS = ["a red circle", "\u4e00\u4e2a\u5706 & more\u2026" * 30]


@pytest.fixture
def jobs() -> list[ImageJob]:
    return plan_images(PROMPTS, 2, first_seed=7, settings=SETTINGS)


def fill(folder: ImageFolder, jobs: list[ImageJob]) -> None:
    for job in jobs:
        folder.write(job, Image.new("RGB", (8, 4), (job.seed, 0, 0)))


def test_each_image_has_its_own_seed_and_name(jobs: list[ImageJob]) -> None:
    assert [job.seed for job in jobs] == [7, 8, 9, 10]
    assert [job.prompt for job in jobs] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert len({job.name for job in jobs}) == 4
    assert jobs[0].name.startswith("00000-a-red-circle-")
    assert all(len(job.name) < 100 and job.name.isascii() for job in jobs)


def test_written_images_are_done_and_carry_all_metadata(
    tmp_path: Path, jobs: list[ImageJob]
) -> None:
    folder = ImageFolder(tmp_path / "new" / "sg")
    assert folder.missing(jobs) == jobs
    fill(folder, jobs)
    assert folder.missing(jobs) == []
    with Image.open(folder.path / jobs[2].name) as image:
        assert image.info == {"prompt": PROMPTS[1], "seed": "9", **SETTINGS}


def test_other_settings_and_broken_files_are_missing(tmp_path: Path, jobs: list[ImageJob]) -> None:
    folder = ImageFolder(tmp_path)
    fill(folder, jobs)
    (tmp_path / jobs[1].name).write_bytes(b"not a picture")
    (tmp_path / jobs[3].name).unlink()
    assert folder.missing(jobs) == [jobs[1], jobs[3]]
    other = plan_images(PROMPTS, 2, 7, {**SETTINGS, "steps": "20"})
    assert folder.missing(other) == other


def test_a_picture_that_is_cut_or_damaged_is_missing(tmp_path: Path, jobs: list[ImageJob]) -> None:
    """Its head with the metadata is whole: only all of the file tells."""
    folder = ImageFolder(tmp_path)
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    for job in jobs:
        folder.write(job, noise)
    sheet = folder.finish(jobs)
    path = tmp_path / jobs[2].name
    whole = path.read_bytes()
    half = len(whole) // 2
    for size in (len(whole) - 12, half, 40, 0):
        path.write_bytes(whole[:size])
        assert folder.missing(jobs) == [jobs[2]], f"cut to {size} of {len(whole)} bytes"
    for start in (half, len(whole) - 40):
        path.write_bytes(whole[:start] + bytes(20) + whole[start + 20 :])
        assert folder.missing(jobs) == [jobs[2]], f"overwritten at {start} of {len(whole)}"
    path.write_bytes(whole)
    assert folder.missing(jobs) == []

    sheet.write_bytes(sheet.read_bytes()[:-30])
    with Image.open(folder.finish(jobs)) as mended:
        mended.load()


def test_the_contact_sheet_shows_the_images_in_order(tmp_path: Path, jobs: list[ImageJob]) -> None:
    folder = ImageFolder(tmp_path)
    fill(folder, jobs)
    with Image.open(folder.finish(jobs)) as sheet:
        assert sheet.size == (4 * 8, 4)
        assert [sheet.getpixel((8 * i, 0)) for i in range(4)] == [(7 + i, 0, 0) for i in range(4)]
    assert not list(tmp_path.glob("*.tmp"))


def test_the_contact_sheet_shows_the_first_64_images(tmp_path: Path) -> None:
    folder, jobs = ImageFolder(tmp_path), plan_images(PROMPTS[:1], 70, 0, SETTINGS)
    fill(folder, jobs)
    with Image.open(folder.finish(jobs)) as sheet:
        assert sheet.size == (8 * 8, 8 * 4)
        assert sheet.getpixel((63, 31)) == (63, 0, 0)
    assert len(read_image_list(tmp_path)) == 70


def test_the_contact_sheet_is_made_once(tmp_path: Path, jobs: list[ImageJob]) -> None:
    folder = ImageFolder(tmp_path)
    fill(folder, jobs)
    sheet = folder.finish(jobs)
    made_at = sheet.stat().st_mtime_ns
    folder.begin(jobs)
    assert folder.finish(jobs).stat().st_mtime_ns == made_at
    sheet.unlink()
    assert folder.finish(jobs).exists()
    # another set in the same folder has a sheet of its own
    others = plan_images(PROMPTS[:1], 2, 7, SETTINGS)
    folder.begin(others)
    with Image.open(folder.finish(others)) as small:
        assert small.size == (2 * 8, 4)


def test_a_seed_beyond_64_bits_is_refused() -> None:
    assert plan_images(["a"], 1, 2**63 - 1, SETTINGS)[0].seed == 2**63 - 1
    with pytest.raises(ValueError, match=r"--seed 9223372036854775807: the last of 2 images"):
        plan_images(["a"], 2, 2**63 - 1, SETTINGS)


def test_only_a_finished_set_is_listed(tmp_path: Path, jobs: list[ImageJob]) -> None:
    folder = ImageFolder(tmp_path)
    fill(folder, jobs)
    with pytest.raises(FileNotFoundError, match="no finished set"):
        read_image_list(tmp_path)
    folder.finish(jobs)
    assert read_image_list(tmp_path) == [(tmp_path / job.name, job.prompt) for job in jobs]
    folder.begin(jobs)
    assert len(read_image_list(tmp_path)) == 4

    others = plan_images(PROMPTS, 2, 7, {**SETTINGS, "steps": "20"})
    folder.begin(others)
    with pytest.raises(FileNotFoundError, match="no finished set"):
        read_image_list(tmp_path)
