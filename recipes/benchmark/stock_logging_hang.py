"""Show why SpeechBrain's stock wav2vec 2.0 recipe hangs under DDP.

python recipes/benchmark/stock_logging_hang.py

The recipe logs its steps with `if if_main_process(): logger.log_stats(...)`.
In SpeechBrain 1.1 `log_stats` broadcasts its result, so it is a collective,
and one that only the main process enters. Two processes try both ways.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.train_logger import FileTrainLogger

TIMEOUT = datetime.timedelta(seconds=15)


def log_a_step(rank: int, folder: str, only_main_process: bool) -> None:
    """Log as one of two processes, then meet the other one."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    meeting = Path(folder) / f"meeting_{only_main_process}"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=2,
        timeout=TIMEOUT,
    )
    log = FileTrainLogger(str(Path(folder) / "log.txt"))
    if not only_main_process or if_main_process():
        log.log_stats({"step": 1}, train_stats={"loss": 4.6}, verbose=False)
    # The next gradient reduction, or whatever the processes do together.
    dist.all_gather_object([None, None], f"process {rank} goes on")
    dist.destroy_process_group()


def main() -> None:
    """Try the stock pattern and the right one."""
    with tempfile.TemporaryDirectory() as folder:
        for only_main_process, what in (
            (True, "logged by the main process alone (stock recipe)"),
            (False, "logged by all processes"),
        ):
            try:
                mp.spawn(log_a_step, (folder, only_main_process), nprocs=2)
                print(f"{what}: goes on")
            except mp.ProcessRaisedException as error:
                reason = str(error).strip().splitlines()[-1]
                print(f"{what}: stuck, ended by an error: {reason[:100]}")


if __name__ == "__main__":
    main()
