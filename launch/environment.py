"""What is looked at before a run starts, on every process: one line says what is wrong, and where.

    ranks     the same code, versions and settings everywhere; as many processes per node as planned
    folder    writable by all processes, one and the same for all of them, room for checkpoints
    data      each dataset opens on each node, with its filter, and has the same shards everywhere

Each process looks for itself, then all of them learn of the problems and stop together. The first
process names them, the others end silently.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

from data_pipeline.loading.loader_config import LoaderConfig
from data_pipeline.storage.interface import StorageConfig
from launch.config import LaunchConfig
from t2i.config import REPO_FOLDER, ConfigError, flatten
from t2i.training.checkpoint import checkpoint_paths
from t2i.training.memory import checkpoint_bytes, snapshots_bytes
from t2i.training.training_config import TrainingConfig

CODE_FOLDERS = ("t2i", "data_pipeline", "launch")
# A file that another machine wrote may be seen late (NFS remembers for a while what is not there).
SECONDS_UNTIL_SHARED = 30.0

# problems of this process; [] = none
Check = Callable[[], Sequence[str]]


class StartError(ConfigError):
    """The machines or their settings do not fit the run; the message names rank and node."""


@dataclass(frozen=True)
class Checked:
    """What a start that may go on has found.

    Attributes:
        warnings: lines for the user.
        data: tells the shards of each dataset, see `data_pipeline.loading.catalogs.describe_shards`.
    """

    warnings: Sequence[str]
    data: Sequence[str]


def check_own_devices() -> None:
    """Refuse more processes than GPUs, and GPUs without NCCL; before processes meet.

    Raises:
        StartError: names the node.
    """
    import torch

    if not torch.cuda.is_available():
        return
    num_gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if local >= num_gpus:
        raise StartError(
            f"node {socket.gethostname()} has {num_gpus} GPU(s), but process {local} was started on "
            f"it; start at most {num_gpus} there (deepspeed --num_gpus, torchrun --nproc-per-node)"
        )
    if not torch.distributed.is_nccl_available():
        raise StartError(
            f"node {socket.gethostname()} has GPUs, but its torch has no NCCL; install torch for "
            "CUDA: pip install torch, see pytorch.org"
        )


def check_environment(
    settings: str,
    folder: Path,
    num_parameters: int,
    training: TrainingConfig,
    loader: LoaderConfig,
    storage: StorageConfig,
    launch: LaunchConfig,
) -> Checked:
    """All checks, called by all processes together.

    Args:
        settings: YAML of the resolved config, with the stage.
        folder: of the run; made when it is missing.
        num_parameters: of the model.

    Raises:
        StartError: on the first process, with all that is wrong.
        SystemExit: on the other processes, with code 2.
    """
    from torch import distributed as dist

    stop_if(_unequal(_all_facts(settings)))
    rank, is_first_of_node = dist.get_rank(), os.environ.get("LOCAL_RANK", "0") == "0"
    stop_if(_gathered(lambda: _uneven_batch(training) if rank == 0 else []))
    token = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, src=0)
    problems = _gathered(lambda: write_token(folder, token[0], rank))
    problems = problems or _gathered(lambda: read_token(folder, token[0]))
    own = folder / _token_name(token[0], rank)
    if own.exists():
        own.unlink()
    stop_if(problems)
    data: list[str] = []
    stop_if(_gathered(lambda: look_at_data(loader, storage, data) if is_first_of_node else []))
    of_first = [data]
    dist.broadcast_object_list(of_first, src=0)
    stop_if(_gathered(lambda: other_data(loader, data, of_first[0])))
    warnings = _gathered(
        lambda: little_disk(folder, num_parameters, training, launch) if rank == 0 else []
    )
    stop_if(warnings if launch.little_disk == "fail" else [])
    return Checked(warnings, of_first[0])


def facts_of_this_process(settings: str) -> dict[str, str]:
    """What has to be the same on all processes."""
    import torch

    facts = {
        "the code": code_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "the number of processes": os.environ["WORLD_SIZE"],
        "processes per node": _local_size(),
        "the kind of device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    resolved = flatten(yaml.safe_load(settings))
    return facts | {name: repr(value) for name, value in resolved.items()}


def code_hash() -> str:
    """The first digits of the SHA-256 of the source files, also when they are not committed."""
    total = hashlib.sha256()
    for name in CODE_FOLDERS:
        for path in sorted((REPO_FOLDER / name).rglob("*.py")):
            total.update(path.relative_to(REPO_FOLDER).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:12]


def write_token(folder: Path, token: str, rank: int) -> list[str]:
    """Write a file of this process into the run folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _token_name(token, rank)).write_text(token)
    except OSError as error:
        return [f"{folder} cannot be written ({error}); choose another folder of the stage"]
    return []


def read_token(folder: Path, token: str) -> list[str]:
    """Look for the file of the first process in the run folder."""
    path = folder / _token_name(token, 0)
    end = time.monotonic() + (SECONDS_UNTIL_SHARED if _has_other_nodes() else 0)
    while not path.is_file() and time.monotonic() < end:
        time.sleep(0.5)
    if path.is_file():
        return []
    return [
        f"{folder.absolute()} is not the folder that the first process sees under that name; put "
        "the run on a file system that all nodes share (NFS, Lustre, FSx)"
    ]


def look_at_data(loader: LoaderConfig, storage: StorageConfig, data: list[str]) -> list[str]:
    """Open each dataset as the loader does, with its filter; append what tells its shards to data."""
    from data_pipeline.loading.catalogs import describe_shards, open_catalog

    problems = []
    for dataset in loader.datasets:
        try:
            data.append(describe_shards(open_catalog(dataset, loader, storage)))
        # whatever keeps data from being read: no network, no credentials, no such bucket
        except Exception as error:
            way_out = (
                "give credentials as boto3 finds them (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, ~/.aws, an instance role) and "
                "data_pipeline.storage.endpoint_url"
                if dataset.path.startswith("s3://")
                else "make it (python -m data_pipeline.latents), or put it where all nodes see it"
            )
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            problems.append(f"{dataset.path} cannot be read ({reason}); {way_out}")
    return problems


def other_data(loader: LoaderConfig, data: Sequence[str], of_first: Sequence[str]) -> list[str]:
    """Compare what this process has looked at, if anything, with what the first process has."""
    return [
        f"{dataset.path} has {own}, but {expected} for rank 0; give all nodes the same data, and start "
        "when nothing writes to it any more"
        for dataset, own, expected in zip(loader.datasets, data, of_first, strict=False)
        if own != expected
    ]


def little_disk(
    folder: Path, num_parameters: int, training: TrainingConfig, launch: LaunchConfig
) -> list[str]:
    """Compare the free space with what checkpoints and snapshots take.

    These are ``keep_checkpoints``, those of ``keep_at``, one that is being written and, with uploads,
    one that is being sent and one that waits: their links hold the space of what retention has
    removed. To these come all snapshots of the run.
    """
    one = checkpoint_bytes(num_parameters, training)
    most = training.keep_checkpoints + len(training.keep_at) + (1 if launch.upload is None else 3)
    there = min(len(checkpoint_paths(folder / "checkpoints")), most - 1)
    num_snapshots = len(checkpoint_paths(folder / "snapshots"))
    snapshots = snapshots_bytes(num_parameters, training, num_snapshots)
    needed = float((most - there) * one + snapshots)
    asked_by, way_out = f"checkpoints of {one / 1e9:.1f} GB each", "t2i.training.keep_checkpoints"
    if snapshots:
        asked_by += f" and {snapshots / 1e9:.1f} GB of snapshots"
        way_out += ", raise snapshot_every"
    if launch.min_free_disk_gb is not None:
        needed, asked_by = launch.min_free_disk_gb * 1e9, "launch.train.min_free_disk_gb"
        way_out = asked_by
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [
        f"{folder} has {free / 1e9:.1f} GB free of the {needed / 1e9:.1f} GB that {asked_by} ask for; "
        f"free some, lower {way_out}, or set launch.train.little_disk to warn"
    ]


def _all_facts(settings: str) -> list[dict[str, str]]:
    from torch import distributed as dist

    own = {"node": socket.gethostname(), **facts_of_this_process(settings)}
    facts: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(facts, own)
    return facts


def _unequal(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """One problem for each fact that differs; the first process is right."""
    problems = []
    for name in dict.fromkeys(name for of_rank in facts for name in of_rank if name != "node"):
        expected = facts[0].get(name, "not set")
        for rank, of_rank in enumerate(facts):
            if of_rank.get(name, "not set") != expected:
                problems.append(
                    f"rank {rank} ({of_rank['node']}): {name} is {of_rank.get(name, 'not set')}, "
                    f"but {expected} on rank 0 ({facts[0]['node']}); start all processes with the "
                    "same command, config and installation"
                )
                break
    return problems


def _gathered(check: Check) -> list[str]:
    """Run a check on every process; the problems of all of them, known to all."""
    from torch import distributed as dist

    rank = dist.get_rank()
    own = [f"rank {rank} ({socket.gethostname()}): {problem}" for problem in check()]
    problems: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(problems, own)
    return [problem for of_rank in problems for problem in of_rank]


def stop_if(problems: Sequence[str]) -> None:
    """End all processes when there are problems; the first process alone names them.

    Raises:
        StartError: on the first process.
        SystemExit: on the other processes, with code 2.
    """
    from torch import distributed as dist

    if not problems:
        return
    if dist.get_rank() > 0:
        raise SystemExit(2)
    others = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
    raise StartError(problems[0] + others)


def _token_name(token: str, rank: int) -> str:
    return f".check-{token}-rank{rank}"


def _has_other_nodes() -> bool:
    """Whether other machines take part, whose files may be seen late."""
    return os.environ["WORLD_SIZE"] != _local_size()


def _local_size() -> str:
    """Processes on this node: torchrun and the deepspeed launcher name it differently."""
    return os.environ.get("LOCAL_WORLD_SIZE") or os.environ["LOCAL_SIZE"]


def _uneven_batch(training: TrainingConfig) -> list[str]:
    from torch import distributed as dist

    try:
        training.fitted(dist.get_world_size())
    except ValueError as error:
        return [str(error)]
    return []
