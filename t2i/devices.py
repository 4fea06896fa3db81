"""Where this process computes: a device by its name, and its place among those of a launcher."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """This process's place under `accelerate launch` or torchrun; alone, it is the first of one."""
    # LOCAL_RANK is a sign of a group for accelerate, also where there is none to meet.
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    hidden = os.environ.pop("LOCAL_RANK", None) if is_alone else None
    try:
        # Without a GPU accelerate starts no group unless it is told that this is meant.
        return PartialState(cpu=not torch.cuda.is_available())
    finally:
        if hidden is not None:
            os.environ["LOCAL_RANK"] = hidden


def usable_device(name: str) -> torch.device:
    """The device of a name; of several GPUs "cuda" is this process's.

    Raises:
        ValueError: there is no such device.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", process_state().local_process_index)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from None
    return device


def leave_group() -> None:
    """Part from the other processes at the end of a command; alone, there is nothing to leave."""
    if process_state().num_processes > 1:
        process_state().destroy_process_group()
