"""Writes down the batches that training would see; started by test_order_of_training.

    python tests/launch/record_batches.py CONFIG FOLDER JOURNEY...

A journey is NAME:WORLD_SIZE,START,STOP:WORLD_SIZE,START,STOP...: at each of its stations so many
processes join a group and read the steps START ... STOP - 1 as training does, then leave their
loaders with what they have read ahead. FOLDER/NAME-STATION-RANK.json receives a row per
micro-batch: step, sample ids, keys, captions.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from launch.train_t2i import Config, make_batches
from t2i.config import load_config

MAX_WORLD_SIZE = 4


def record(rank: int, config_file: str, folder: str, journeys: list[str]) -> None:
    """What one process reads at each station that it is part of."""
    config = load_config(Path(config_file), [], Config)
    torch.set_num_threads(1)
    for journey in journeys:
        name, *stations = journey.split(":")
        for number, station in enumerate(stations):
            world_size, start, stop = map(int, station.split(","))
            place = Path(folder) / f"{name}-{number}"
            if rank < world_size:
                distributed.init_process_group(
                    "gloo", init_method=f"file://{place}.group", rank=rank, world_size=world_size
                )
                batches = make_batches(
                    config.loader, config.training, config.storage, Path(folder)
                )(start)
                num_batches = (stop - start) * config.training.accumulation(world_size)
                rows = [
                    (batch.step, batch.sample_ids.tolist(), batch.keys, batch.captions)
                    for batch in islice(batches, num_batches)
                ]
                Path(f"{place}-{rank}.json").write_text(json.dumps(rows))
                distributed.destroy_process_group()


if __name__ == "__main__":
    arguments = (sys.argv[1], sys.argv[2], sys.argv[3:])
    # forked, so that torch is imported once
    multiprocessing.start_processes(record, arguments, MAX_WORLD_SIZE, start_method="fork")
