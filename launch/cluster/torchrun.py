"""torchrun with an exit code that tells wrong settings (2) from all that another attempt may not meet (1)."""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

EXIT_WRONG_SETTINGS = 2

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        print(error, file=sys.stderr)
        raise SystemExit(
            EXIT_WRONG_SETTINGS if first.exitcode == EXIT_WRONG_SETTINGS else 1
        ) from None
