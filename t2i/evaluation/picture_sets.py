"""Sets of pictures to score: folders of samples, folders of any pictures, ADM's .npz batches.

Pictures are read and checked by a few threads while the network is busy with those before.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from t2i.console import get_logger
from t2i.evaluation.adm_files import open_adm_file, read_images
from t2i.picture_files import as_rgb, upright, without_texts
from t2i.sampling.image_folder import CONTACT_SHEET, IMAGE_LIST

logger = get_logger("evaluate")

# What becomes of pictures that are not whole RGB of 8 bits of the first one's size.
Policy = Literal["refuse", "skip", "convert"]
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LOSSY_ENDINGS = (".jpg", ".jpeg", ".webp")
NUM_NAMED = 3  # files that a message names
READ_AHEAD = 4  # batches


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        index: its number in the set.
        name: for messages: a file, or a place in an .npz.
        pixels_HW3: uint8 RGB.
        prompt: None = it has none.
    """

    index: int
    name: str
    pixels_HW3: np.ndarray
    prompt: str | None


@dataclass(frozen=True)
class PictureSet:
    """Pictures in a fixed order, with their prompts where there are any.

    Attributes:
        path: a folder, or an .npz file.
        files: of a folder; empty for an .npz.
        prompts: one a picture, or None.
        seeds: one a picture, or None.
        num: pictures in it.
    """

    path: Path
    files: tuple[Path, ...]
    prompts: tuple[str, ...] | None
    num: int
    seeds: tuple[int, ...] | None = None

    def is_paired_with(self, other: PictureSet) -> bool:
        """Whether picture i of both is of the same prompt and seed."""
        own = self.prompts, self.seeds
        return self.prompts is not None and own == (other.prompts, other.seeds)


def open_set(path: Path) -> PictureSet:
    """The pictures of a folder or an .npz file.

    A folder that `python -m t2i.sample` wrote is its last finished set, with prompts; any other has
    all its pictures, sorted by name, those of subfolders included.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: there are no pictures in it.
    """
    if path.suffix == ".npz":
        num = open_adm_file(path).num_images
        if not num:
            raise ValueError(f"{path} holds statistics, but no pictures (arr_0)")
        return PictureSet(path, (), None, num)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no folder of pictures and no .npz file")
    if (path / IMAGE_LIST).is_file():
        return _open_samples(path)
    files = tuple(sorted(_pictures_below(path)))
    if not files:
        raise ValueError(
            f"{path}: no pictures in it ({', '.join(ENDINGS)}), nor a finished set of samples "
            f"({IMAGE_LIST})"
        )
    return PictureSet(path, files, None, len(files))


def _pictures_below(folder: Path) -> Iterator[Path]:
    """Files by their endings, through links too; what systems leave behind is none of them."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__MACOSX" and not name.startswith(".")]
        for name in files:
            is_picture = Path(name).suffix.lower() in ENDINGS and name != CONTACT_SHEET
            if is_picture and not name.startswith("."):
                yield Path(root) / name


def _open_samples(folder: Path) -> PictureSet:
    lines = [json.loads(line) for line in (folder / IMAGE_LIST).read_text().splitlines()]
    return PictureSet(
        path=folder,
        files=tuple(folder / line["file"] for line in lines),
        prompts=tuple(line["prompt"] for line in lines),
        num=len(lines),
        seeds=tuple(int(line["seed"]) for line in lines),
    )


def read_batches(
    pictures: PictureSet,
    batch_size: int,
    policy: Policy,
    indices: Sequence[int] | None = None,
    num_threads: int = 2,
) -> Iterator[list[Picture]]:
    """The pictures in order, in batches; the last may be smaller.

    A picture is odd if it is cut or broken, not RGB of 8 bits, or of another size than the set's
    first one. "refuse" stops at the first; "skip" leaves all of them out; "convert" takes grey
    pictures as RGB, transparent ones over white, and any size, and refuses broken ones. What was
    skipped or converted is counted, and a few are named, in a warning at the end.

    Args:
        pictures: the set.
        batch_size: pictures in a batch.
        policy: see above.
        indices: numbers of those wanted, ascending; None = all.
        num_threads: that read files.

    Raises:
        ValueError: an odd picture that is refused; names it and the way out. Also if none is left.
    """
    wanted = range(pictures.num) if indices is None else indices
    if pictures.files and any(file.suffix.lower() in LOSSY_ENDINGS for file in pictures.files):
        logger.warning(
            "%s: some pictures are compressed with losses, which moves FID and its kind by more "
            "than methods differ: score PNG, and compare like with like",
            pictures.path,
        )
    oddities: Counter[str] = Counter()
    named: dict[str, list[str]] = {}
    first_size: tuple[int, int] | None = None
    batch: list[Picture] = []
    num_left = 0
    for index, name, image, damage in _decoded(pictures, wanted, num_threads):
        if first_size is None and image is not None:
            first_size = image.size
        oddity = damage or _oddity(image, first_size)
        if oddity:
            if policy == "refuse" or (policy == "convert" and damage):
                way_out = "skip" if damage else "skip or --odd-pictures convert"
                raise ValueError(f"{name}: {oddity}; mend it, or --odd-pictures {way_out}")
            kind = oddity.partition(" (")[0]
            oddities[kind] += 1
            named.setdefault(kind, []).append(name)
            if policy == "skip":
                continue
        assert image is not None
        prompt = pictures.prompts[index] if pictures.prompts else None
        batch.append(Picture(index, name, np.asarray(as_rgb(image)), prompt))
        num_left += 1
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
    done = "skipped" if policy == "skip" else "converted"
    for kind, num in oddities.items():
        shown = ", ".join(named[kind][:NUM_NAMED]) + (" ..." if num > NUM_NAMED else "")
        logger.warning(
            "%s: %d of %d %s: %s: %s", pictures.path, num, len(wanted), done, kind, shown
        )
    if wanted and not num_left:
        raise ValueError(f"{pictures.path}: all {len(wanted)} pictures were skipped")


def _decoded(
    pictures: PictureSet, indices: Sequence[int], num_threads: int
) -> Iterator[tuple[int, str, Image.Image | None, str]]:
    """(index, name, picture, "") in order, or (index, name, None, what is broken)."""
    if not pictures.files:
        yield from _of_npz(pictures, set(indices))
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[tuple[int, Future[tuple[Image.Image | None, str]]]] = deque()
        todo = iter(indices)
        for index in todo:
            waiting.append((index, pool.submit(_decode, pictures.files[index])))
            if len(waiting) >= READ_AHEAD * num_threads * 4:
                break
        while waiting:
            index, decoded = waiting.popleft()
            image, damage = decoded.result()
            following = next(todo, None)
            if following is not None:
                waiting.append((following, pool.submit(_decode, pictures.files[following])))
            yield index, str(pictures.files[index]), image, damage


def _of_npz(
    pictures: PictureSet, wanted: set[int]
) -> Iterator[tuple[int, str, Image.Image | None, str]]:
    index = 0
    for batch_BHW3 in read_images(pictures.path, batch_size=64):
        for pixels_HW3 in batch_BHW3:
            if index in wanted:
                yield index, f"{pictures.path}[{index}]", Image.fromarray(pixels_HW3), ""
            index += 1


def _decode(file: Path) -> tuple[Image.Image | None, str]:
    try:
        with Image.open(io.BytesIO(without_texts(file.read_bytes()))) as image:
            image.load()
            return upright(image), ""
    except FileNotFoundError:
        return None, "is not there"
    # PIL calls a broken chunk of a PNG a SyntaxError, and a bomb an error of its own
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return None, f"is no whole picture ({error})"


def _oddity(image: Image.Image | None, size: tuple[int, int] | None) -> str:
    """ "" for what metrics expect."""
    assert image is not None
    if image.mode != "RGB":
        return f"is not RGB of 8 bits ({image.mode})"
    if image.size != size:
        assert size is not None
        own, first = ("x".join(map(str, sides)) for sides in (image.size, size))
        return f"is of another size than the first one ({own}, not {first})"
    return ""
