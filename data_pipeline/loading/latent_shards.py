"""Reads single samples of latents shards, fast and suspicious of the files.

A sample's moments go from the file straight into their row of the batch, so they are copied once.
"""

from __future__ import annotations

import functools
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_pipeline.outputs.shards import BLOCK, MIRRORED_PART, MOMENTS_PART, ShardIndex
from data_pipeline.outputs.step_output import StepOutput

NPY_HEADER_GUESS = 128  # bytes of a header that np.save writes for a few dimensions
TAR_NAME_LENGTH = 100
USTAR_MAGIC = slice(257, 262)
CAPTION_LEVELS = ("detailed", "multi_sentence", "sentence", "keywords")


class BadShardError(ValueError):
    """A shard, or a sample of it, is not what it was; names the file and the way out."""


@dataclass(frozen=True)
class LatentSample:
    """What a sample has beside its moments: its key, four captions, its class if known."""

    key: str
    captions: tuple[str, ...]
    label: int | None = None


@dataclass(frozen=True)
class LatentShard:
    """An open shard: its tar, where the parts lie, and bucket -> places of its members.

    ``moments_part`` and ``facts_part`` are extensions: where moments and captions are found.
    """

    path: Path
    file: BinaryIO
    index: ShardIndex
    members: Mapping[str, np.ndarray]
    moments_part: str = MOMENTS_PART
    facts_part: str = "json"
    made: str = "committed"
    way_out: str = "restore the file, or make the shard again"

    def shape(self, bucket: str, member: int) -> tuple[int, ...]:
        """Of one sample's moments: (2C, h, w). Raises `BadShardError`."""
        return self._shape(int(self.members[bucket][member]))

    def read(
        self, bucket: str, member: int, moments: np.ndarray, is_mirrored: bool = False
    ) -> LatentSample:
        """Read one of the bucket's samples; its moments into ``moments``, float16 (2C, h, w).

        ``is_mirrored``: those of the mirrored picture, which the shard must have.

        Raises:
            BadShardError: the file is not what was committed.
            ValueError: the sample has moments of another shape.
        """
        sample = int(self.members[bucket][member])
        if self.moments_part.endswith("npz"):
            array = self._npz(sample)
            self._require_shape(sample, self.moments_part, array.shape, moments)
            moments[...] = array
        else:
            self._read_moments(sample, MIRRORED_PART if is_mirrored else self.moments_part, moments)
        return self.facts(bucket, member)

    def facts(self, bucket: str, member: int) -> LatentSample:
        """All but the moments of one of the bucket's samples. Raises `BadShardError`."""
        sample = int(self.members[bucket][member])
        data = self._part(sample, self.facts_part)
        try:
            return LatentSample(self.index.keys[sample], *parse_facts(data, self.facts_part))
        except ValueError as error:
            raise self._bad(sample, self.facts_part, error) from None

    def _read_moments(self, sample: int, part: str, moments: np.ndarray) -> None:
        """Header and array by one system call, the latter to where it shall be."""
        _, length = self.index.span(sample, part)
        header_length = length - moments.nbytes
        if header_length > 0:
            head = bytearray(BLOCK + header_length)
            self._fill(sample, part, head, moments)
            if is_npy_header(bytes(head[BLOCK:]), moments.shape):
                return
        self._require_shape(sample, part, self._npy_shape(sample, part), moments)
        raise self._bad(sample, part, "its length is not that of its array")

    def _require_shape(
        self, sample: int, part: str, shape: tuple[int, ...], moments: np.ndarray
    ) -> None:
        if shape != moments.shape:
            raise ValueError(
                f"latents of one bucket differ in shape: {self._name(sample, part)} "
                f"of {self.path} has {shape}, others have {moments.shape}; make both with the "
                "same VAE"
            )

    def _shape(self, sample: int) -> tuple[int, ...]:
        if self.moments_part.endswith("npz"):
            return self._npz(sample).shape
        return self._npy_shape(sample, self.moments_part)

    def _npy_shape(self, sample: int, part: str) -> tuple[int, ...]:
        _, length = self.index.span(sample, part)
        head = bytearray(BLOCK + min(length, NPY_HEADER_GUESS))
        self._fill(sample, part, head)
        try:
            return npy_header(bytes(head[BLOCK:]))[0]
        except ValueError as error:
            raise self._bad(sample, part, error) from None

    def _npz(self, sample: int) -> np.ndarray:
        try:
            return parse_npz(self._part(sample, self.moments_part))
        except ValueError as error:
            raise self._bad(sample, self.moments_part, error) from None

    def _part(self, sample: int, extension: str) -> bytearray:
        """All bytes of a part."""
        _, length = self.index.span(sample, extension)
        data = bytearray(BLOCK + length)
        self._fill(sample, extension, data)
        del data[:BLOCK]
        return data

    def _fill(self, sample: int, extension: str, head: bytearray, *rest: np.ndarray) -> None:
        """Read a part and the tar header before it, which must name the part, into the buffers."""
        offset, _ = self.index.span(sample, extension)
        size = len(head) + sum(buffer.nbytes for buffer in rest)
        buffers = [memoryview(head), *(buffer.data for buffer in rest)]
        count = os.preadv(self.file.fileno(), buffers, offset - BLOCK)
        name = self._name(sample, extension)
        if count < size or not _is_header_of(head, name):
            raise BadShardError(
                f"{self.path}: cut or changed since it was {self.made} ({name} is not at byte "
                f"{offset}); {self.way_out}"
            )

    def _bad(self, sample: int, extension: str, reason: object) -> BadShardError:
        name = self._name(sample, extension)
        return BadShardError(f"{self.path}: {name}: {reason}; {self.way_out}")

    def _name(self, sample: int, extension: str) -> str:
        return f"{self.index.keys[sample]}.{extension}"


def open_latent_shard(
    latents: StepOutput, shard_id: str, members: Mapping[str, np.ndarray]
) -> LatentShard:
    """Open a shard of ``latents`` for reading single samples.

    Raises:
        FileNotFoundError: the tar or its index is gone.
        BadShardError: the tar is not of the committed size, or ledger and index differ.
    """
    try:
        path, index = latents.shard_path(shard_id), latents.index(shard_id)
    except ValueError as error:
        raise BadShardError(str(error)) from None
    num_samples = latents.manifest(shard_id).num_ok
    if len(index.keys) != num_samples:
        raise BadShardError(
            f"{latents.url}: the index of shard {shard_id} has {len(index.keys)} samples, "
            f"{num_samples} were committed; make the shard again"
        )
    return LatentShard(path, path.open("rb", buffering=0), index, members)


def parse_facts(data: bytes | bytearray, extension: str) -> tuple[tuple[str, ...], Any]:
    """(four captions, label or None) of a sample's json or txt.

    Captions are a list of four or a mapping of the levels' names under ``captions``, or a single
    text under ``caption`` (or the whole of a txt), which then serves all levels.

    Raises:
        ValueError: no captions are found.
    """
    text = data.decode()
    if extension == "txt":
        return (text.strip(),) * len(CAPTION_LEVELS), None
    facts = json.loads(text)
    if not isinstance(facts, dict):
        raise ValueError(f"expected a JSON object, got {type(facts).__name__}")
    captions = facts.get("captions", facts.get("caption"))
    if isinstance(captions, dict) and captions.keys() >= set(CAPTION_LEVELS):
        captions = [captions[level] for level in CAPTION_LEVELS]
    elif isinstance(captions, str):
        captions = [captions]
    if isinstance(captions, list) and len(captions) == 1:
        captions *= len(CAPTION_LEVELS)
    if not isinstance(captions, list) or len(captions) != len(CAPTION_LEVELS):
        raise ValueError(
            'expected "captions": [four texts], {'
            f'{", ".join(CAPTION_LEVELS)}}} or "caption": a text'
        )
    return tuple(captions), facts.get("label")


def npy_header(head: bytes) -> tuple[tuple[int, ...], int]:
    """(shape, where the array begins) of a .npy file by its head; what follows is ignored.

    Raises:
        ValueError: not the header of a float16 array in C order, version 1.0 of the format.
    """
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"expected version 1.0 of the format, got {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype != np.float16:
        raise ValueError(f"expected float16 in C order, got {dtype}")
    return shape, file.tell()


@functools.lru_cache(maxsize=256)
def is_npy_header(head: bytes, shape: tuple[int, ...]) -> bool:
    """Whether the bytes are the header of a float16 array of this shape, no more and no less."""
    try:
        return npy_header(head) == (shape, len(head))
    except ValueError:
        return False


def parse_npz(data: bytes | bytearray) -> np.ndarray:
    """The one array of a .npz file, or the one named "moments".

    Raises:
        ValueError: not such a file, or not float16.
    """
    try:
        with np.lib.npyio.NpzFile(io.BytesIO(data)) as arrays:
            names = [n for n in arrays.files if n == "moments" or len(arrays.files) == 1]
            array = arrays[names[0]] if names else None
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"not a .npz file ({error})") from None
    if array is None or array.dtype != np.float16:
        raise ValueError("expected one float16 array, or one that is named moments")
    return array


def _is_header_of(head: bytearray, name: str) -> bool:
    """Whether a tar header names a member. Longer names lie elsewhere, in one of several ways."""
    if len(name) >= TAR_NAME_LENGTH:
        return head[USTAR_MAGIC] == b"ustar"
    return bytes(head[:TAR_NAME_LENGTH]).partition(b"\0")[0].lower() == name.lower().encode()
