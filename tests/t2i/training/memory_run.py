"""Measures what an engine holds and the peak of a step; `test_memory` compares it with formulas.

    torchrun --nproc-per-node 2 tests/t2i/training/memory_run.py FOLDER ZERO:PRECISION...

Rank r writes FOLDER/r.json: the sizes of the run, and for each case the bytes held between steps, and the highest sum of bytes
during a step, in tensors that the engine, its EMA, the network or autograd have made since the start.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t2i.batch import TrainingBatch
from t2i.encoders.text import TextStates
from t2i.flow import TimestepConfig
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.averages.ema import EMA, decay_at
from t2i.training.backbone import text_backbone
from t2i.training.engine import Engine, start_processes, stop_processes
from t2i.training.objectives.flow_matching import FlowMatching
from t2i.training.training_config import TrainingConfig

MODEL = TRDiTConfig(
    num_layers=4, width=256, num_heads=4, text_width=64, adaln_rank=32, routes=((1, 2),)
)
MICRO_BATCH, TEXT_TOKENS, LATENT_SIDE, GAMMA, ACCUMULATION = 2, 32, 32, 0.5, 2


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations make, from the moment they are made until they are freed.

    ``old``: addresses of memory that is there already and does not count.
    """

    def __init__(self, old: Container[int]) -> None:
        super().__init__()
        self.old = old
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.sizes or storage.data_ptr() in self.old:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, key)

    def remove(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def held() -> dict[int, int]:
    """Address and bytes of every tensor's memory that is alive."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tensors
        if t.device.type == "cpu"
    }


def measure(zero_stage: int, precision: str) -> dict[str, int]:
    """One case, in a process group."""
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    config = TrainingConfig.model_validate(
        {
            "global_batch": MICRO_BATCH * ACCUMULATION * world_size,
            "micro_batch": MICRO_BATCH,
            "zero_stage": zero_stage,
            "precision": precision,
        }
    )
    shape = (MICRO_BATCH, 2 * MODEL.in_channels, LATENT_SIDE, LATENT_SIDE)
    ids = torch.arange(MICRO_BATCH) + rank * MICRO_BATCH
    keys = ("",) * MICRO_BATCH
    batch = TrainingBatch(torch.rand(shape).half(), keys, keys, ids, step=0)
    states = torch.randn(MICRO_BATCH, TEXT_TOKENS, MODEL.text_width)
    text = TextStates(states, torch.ones(MICRO_BATCH, TEXT_TOKENS, dtype=torch.bool))
    objective = FlowMatching(0, GAMMA, TimestepConfig(), MODEL.patch_size)

    before = held()
    model = TRDiT(MODEL)
    network = text_backbone(model, lambda captions: text, torch.device("cpu")).network
    engine = Engine(network, model, config, world_size)
    ema = EMA(engine.masters, partial(decay_at, limit=0.99))

    def step() -> None:
        for _ in range(ACCUMULATION):
            losses = objective.training_loss(engine.network, batch, text)
            engine.backward(losses.loss_B.mean())
            engine.step(1e-4)
        ema.update()

    step()  # DeepSpeed makes some of its buffers in the first
    now = held()
    at_rest = sum(size for address, size in now.items() if address not in before)
    with LiveBytes(now) as live:
        step()
    engine.close()
    return {"held": at_rest, "peak": at_rest + live.peak}


if __name__ == "__main__":
    start_processes(timeout_minutes=1)
    results = {}
    for case in sys.argv[2:]:
        stage, precision = case.split(":")
        results[case] = measure(int(stage), precision)
    path = Path(sys.argv[1]) / f"{torch.distributed.get_rank()}.json"
    sizes = {
        "micro_batch": MICRO_BATCH,
        "num_tokens": (LATENT_SIDE // MODEL.patch_size) ** 2,
        "text_tokens": TEXT_TOKENS,
        "gamma": GAMMA,
    }
    path.write_text(json.dumps({"model": MODEL.model_dump(), "sizes": sizes, "cases": results}))
    stop_processes()
