"""Where this process computes: a device by its name, of several GPUs its own."""

from __future__ import annotations

import torch
from accelerate import PartialState


def usable_device(name: str) -> torch.device:
    """The device of a name; of several GPUs "cuda" is this process's.

    Raises:
        ValueError: there is no such device.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", PartialState().local_process_index)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from None
    return device
