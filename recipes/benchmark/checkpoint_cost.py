r"""Measure what a checkpoint costs the training beside which it is written.

python recipes/benchmark/checkpoint_cost.py FOLDER [YAML] [--rounds=5]

Trains on noise, saves into FOLDER (removed afterwards) as a run does, and
prints, for each checkpoint, how long the training waited and how much longer
its updates took while the files were written. On the CPU, OMP_NUM_THREADS=1
makes `cpu` the whole of an update, and of the thread that writes; it is not
disturbed by other programs.
"""

from __future__ import annotations

import shutil
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from summarymixing.cost.memory import make_update
from summarymixing.cost.timing import describe_machine
from summarymixing.data.batching import Utterance
from summarymixing.data.manifest import Row
from summarymixing.errors import exit_on_user_error
from summarymixing.lobes.features import SAMPLE_RATE_HZ
from summarymixing.nnet.span_mask import MASK_SCHEMES
from summarymixing.run.brain import make_optimizer
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.hparams_file import HPARAMS_FOLDER, load_hparams
from summarymixing.training.pretraining import parameter_groups
from summarymixing.training.pretraining_data import MaskingCollate

BASE = HPARAMS_FOLDER / "pretraining" / "summarymixing_base.yaml"


def clocks(function: Callable[[], object]) -> torch.Tensor:
    """Return the seconds (2,) of a call: on the wall, of this thread's CPU."""
    start = time.perf_counter(), time.thread_time()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    stop = time.perf_counter(), time.thread_time()
    return torch.tensor(stop) - torch.tensor(start)


def make_training(path: Path, seconds: float) -> tuple[dict, partial]:
    """Return what a checkpoint holds, and what makes an update."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hparams = load_hparams(path, {"manifests": "none", "output_folder": "none"})
    model = hparams["model"].to(device).train()
    optimizer = make_optimizer(hparams["optimizer"], parameter_groups(model))
    noise = torch.randn(round(seconds * SAMPLE_RATE_HZ))
    row = Row("noise", "noise", (), seconds)
    scheme = partial(MASK_SCHEMES["stock"], probability=0.65, length=10)
    collate = MaskingCollate(seed=1, scheme=scheme)
    batch = collate([Utterance(row, noise, 0, "")]).to(device)
    update = partial(
        make_update,
        model,
        optimizer,
        lambda: (
            model(
                batch.wavs, batch.wav_lens, batch.masked, temperature=2.0
            ).loss
        ),
    )
    return {"model": model, "optimizer": optimizer}, update


def main() -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="What a checkpoint costs a training")
    parser.add_argument("folder", type=Path)
    parser.add_argument("yaml", type=Path, nargs="?", default=BASE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of audio")
    options = parser.parse_args()
    torch.manual_seed(1)
    held, update = make_training(options.yaml, options.seconds)
    folder = options.folder / "checkpoint_cost"
    checkpointer = AtomicCheckpointer(folder, held)
    update()
    device = next(held["model"].parameters()).device
    print(describe_machine(device))
    for number in range(options.rounds):
        alone = torch.stack([clocks(update) for _ in range(5)])
        usual = torch.tensor([*map(statistics.median, alone.T.tolist())])
        begun = time.perf_counter()
        cpu = time.process_time() - time.thread_time()
        waited = clocks(lambda: checkpointer.begin_saving(num_to_keep=1))
        beside = []
        while checkpointer.is_saving:
            beside.append(clocks(update) - usual)
        took = time.perf_counter() - begun
        cpu = time.process_time() - time.thread_time() - cpu
        checkpointer.finish_saving()
        files = [*checkpointer.find_checkpoint().path.iterdir()]
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        longer = sum(beside, torch.zeros(2))
        print(
            f"checkpoint {number + 1} of {gigabytes:.2f} GB, written in "
            f"{took:.1f} s (cpu {cpu:.1f}): "
            f"waited {waited[0]:.2f} s (cpu {waited[1]:.2f}); "
            f"{len(beside)} updates of {usual[0]:.2f} s (cpu {usual[1]:.2f}) "
            f"beside it took {longer[0]:+.2f} s (cpu {longer[1]:+.2f}) longer",
            flush=True,
        )
    shutil.rmtree(folder)


if __name__ == "__main__":
    exit_on_user_error(main)
