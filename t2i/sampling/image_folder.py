"""A folder of sampled PNGs that knows which images are done: each file's metadata says what made it.

`IMAGE_LIST` names the images of the last finished set, a JSON object per line. Images of other sets
(say, of another prompt) may lie beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i.sampling.contact_sheet import paste

CONTACT_SHEET = "contact_sheet.png"
IMAGE_LIST = "images.jsonl"
CONTACT_SHEET_COLUMNS = 8
MAX_ON_CONTACT_SHEET = 64
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class ImageJob:
    """An image to make.

    Attributes:
        name: file name; the same prompt and seed at the same place give the same name.
        metadata: all that the image depends on, as text.
    """

    name: str
    prompt: str
    seed: int
    metadata: Mapping[str, str]


def plan_images(
    prompts: Sequence[str], images_per_prompt: int, first_seed: int, settings: Mapping[str, str]
) -> list[ImageJob]:
    """All images of a run: image number i, counting through the prompts, has seed first_seed + i.

    Raises:
        ValueError: the last seed does not fit 64 bits.
    """
    jobs, num_images = [], len(prompts) * images_per_prompt
    if first_seed + num_images - 1 > MAX_SEED:
        raise ValueError(
            f"--seed {first_seed}: the last of {num_images} images would have a seed above "
            f"{MAX_SEED}; start at a smaller one"
        )
    for number in range(num_images):
        prompt, seed = prompts[number // images_per_prompt], first_seed + number
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-")
        digest = hashlib.sha256(f"{seed}/{prompt}".encode()).hexdigest()[:8]
        metadata = {"prompt": prompt, "seed": str(seed), **settings}
        jobs.append(ImageJob(f"{number:05d}-{words}-{digest}.png", prompt, seed, metadata))
    return jobs


class ImageFolder:
    """The folder; made when the first image is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def missing(self, jobs: Iterable[ImageJob]) -> list[ImageJob]:
        """The jobs without a whole file of exactly their metadata."""
        return [job for job in jobs if read_metadata(self.path / job.name) != job.metadata]

    def write(self, job: ImageJob, image: Image.Image) -> None:
        """Write the PNG with its metadata; it appears whole or not at all."""
        info = PngInfo()
        for key, value in job.metadata.items():
            info.add_itxt(key, value)
        self._save(image, self.path / job.name, info)

    def begin(self, jobs: Sequence[ImageJob]) -> None:
        """Forget the list of another set, or of the same one with other settings."""
        if not self._lists(jobs):
            (self.path / IMAGE_LIST).unlink(missing_ok=True)

    def finish(self, jobs: Sequence[ImageJob]) -> Path:
        """List the images, now that all are there, and show the first in one picture; its path.

        A later call has nothing to do.
        """
        path, sheet = self.path / IMAGE_LIST, self.path / CONTACT_SHEET
        if self._lists(jobs) and read_metadata(sheet) is not None:
            return sheet
        self.write_contact_sheet(jobs[:MAX_ON_CONTACT_SHEET])
        temporary = _temporary(path)
        temporary.write_text(_list_of(jobs))
        temporary.replace(path)
        return sheet

    def write_contact_sheet(self, jobs: Sequence[ImageJob]) -> None:
        """Paste the images, all of one size, in order into one picture."""
        images = [read_image(self.path / job.name) for job in jobs]
        sheet = paste(images, min(CONTACT_SHEET_COLUMNS, len(images)))
        self._save(sheet, self.path / CONTACT_SHEET, PngInfo())

    def _lists(self, jobs: Sequence[ImageJob]) -> bool:
        """Whether the list is there and is exactly that of these images."""
        try:
            return (self.path / IMAGE_LIST).read_text() == _list_of(jobs)
        except FileNotFoundError:
            return False

    def _save(self, image: Image.Image, path: Path, info: PngInfo) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        image.save(temporary, format="PNG", pnginfo=info)
        temporary.replace(path)


def read_metadata(path: Path) -> dict[str, str] | None:
    """The metadata of a PNG; None when there is none, or it is cut or damaged.

    All of the file is read and held against its checksums; its pixels are not decoded.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
            return {str(key): str(value) for key, value in image.info.items()}
    except (OSError, SyntaxError):  # not there; Pillow's words for what is cut or damaged
        return None


def read_image_list(folder: Path) -> list[tuple[Path, str]]:
    """(file, prompt) of each image of the folder's last finished set, in order.

    Raises:
        FileNotFoundError: there is no finished set.
    """
    path = folder / IMAGE_LIST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no finished set of images in it ({IMAGE_LIST} is missing); make one with "
            "python -m t2i.sample, or let it finish by the same command"
        )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(folder / line["file"], line["prompt"]) for line in lines]


def short_names(folders: Sequence[Path]) -> list[str]:
    """The folders relative to what they have in common; a single one by its name."""
    common = os.path.commonpath([folder.absolute().parent for folder in folders])
    return [str(folder.absolute().relative_to(common)) for folder in folders]


def read_image(path: Path) -> Image.Image:
    """An image of the folder, in RGB.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the file is cut or no picture; names it and the way out.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # PIL calls a broken chunk of a PNG a SyntaxError
        raise ValueError(
            f"{path}: not a whole picture ({error}); delete it and run the python -m t2i.sample "
            "that made it again"
        ) from None


def _list_of(jobs: Sequence[ImageJob]) -> str:
    return "".join(json.dumps({"file": job.name, **job.metadata}) + "\n" for job in jobs)


def _temporary(path: Path) -> Path:
    """Unlike the final name, it is not found by *.png."""
    return path.with_suffix(f".{os.getpid()}.tmp")
