"""Runs a script in the processes of one group, as a launcher does but in a fraction of its time.

    python tests/t2i/training/start_ranks.py NUM_PROCESSES SCRIPT [ARGUMENTS]

The processes are forked after all is imported, which takes far longer than a tiny run. That scripts
run under the real launchers is proven by tests/launch.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys


def main() -> None:
    num_processes, script, *arguments = sys.argv[1:]
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401  by each first optimizer

    runpy.run_path(script)  # for its imports
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
    children = []
    for rank in range(int(num_processes)):
        child = os.fork()
        if child == 0:
            os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")
            return
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    raise SystemExit(next((code % 256 for code in codes if code), 0))


if __name__ == "__main__":
    main()
