"""The processes of a run meet, or say why they cannot. (Gathering and ZeRO: test_trainer.)"""

import socket

import pytest
import torch

from t2i.training.engine import start_processes, stop_processes


def test_a_single_process_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    start_processes(timeout_minutes=1)
    try:
        assert torch.distributed.get_world_size() == 1
    finally:
        stop_processes()


def test_a_taken_port_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        for name, value in {**address, **place}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=r"127\.0\.0\.1:\d+ .*--master_port"):
            start_processes(timeout_minutes=1)
