"""The whole recipe on two processes, of one machine and of two."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from summarymixing.run.records import read_metrics

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "recipes" / "pretraining" / "train.py"


SETTINGS = (
    *("--d_model=16", "--d_ffn=32", "--num_heads=2"),
    *("--front_end_channels=8", "--num_codes=4", "--target_dim=8"),
    *("--layer_drop=0.5", "--accumulation=2", "--num_workers=0"),
    *("--max_batch_seconds=4", "--max_updates=10"),
    *("--checkpoint_every_updates=5", "--log_every_updates=5"),
)


def pretrain(
    manifests: Path,
    output: Path,
    *more: str,
    script: Path = TRAIN,
    torchrun: tuple[str, ...] = ("--standalone", "--nproc_per_node=2"),
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", *torchrun),
            str(script),
            str(ROOT / "hparams/pretraining/tiny.yaml"),
            f"--manifests={manifests}",
            f"--output_folder={output}",
            *SETTINGS,
            *more,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


LOSES_ITS_DISK = f"""
import os
import runpy

from summarymixing.data import batching
from summarymixing.data.audio import AudioError
from summarymixing.training import pretraining

pretraining.MIN_UNREADABLE = 2
read_audio, done = batching.read_audio, []


def read(row):
    done.append(row)
    if os.environ["RANK"] == "1" and len(done) > 12:
        raise AudioError("a disk is gone")
    return read_audio(row)


batching.read_audio = read
runpy.run_path({str(TRAIN)!r}, run_name="__main__")
"""


def test_what_was_learned_is_saved_when_one_process_cannot_go_on(
    manifests, tmp_path
):
    script = tmp_path / "loses_its_disk.py"
    script.write_text(LOSES_ITS_DISK)
    done = pretrain(manifests, tmp_path / "out", script=script)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr[-2000:]
    assert "error: rank 1: " in done.stderr and "a disk is gone" in done.stderr
    assert not (tmp_path / "out" / "stopped").exists()
    (entry,) = read_metrics(tmp_path / "out")
    assert 0 < entry["update"] < 5
    assert len(list((tmp_path / "out" / "checkpoints").iterdir())) == 1


ANOTHER_CLOCK = f"""
import os
import runpy
import time

if os.environ["RANK"] == "1":
    start, monotonic = time.monotonic(), time.monotonic
    time.monotonic = lambda: start + 1e6 * (monotonic() - start)
runpy.run_path({str(TRAIN)!r}, run_name="__main__")
"""


LOG = ("--log_every_updates=4",)


@pytest.fixture(scope="module")
def one_machine(
    manifests: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the output of two processes of one machine."""
    folder = tmp_path_factory.mktemp("one")
    script = folder / "another_clock.py"
    script.write_text(ANOTHER_CLOCK)
    done = pretrain(manifests, folder / "out", *LOG, script=script)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "out"


def test_accumulation_layer_drop_and_validation_do_not_hang(one_machine):
    """The stock recipe hangs here: collectives that one rank skips.

    Checkpoints by the clock, at updates 4 and 8, hang neither, though one rank
    alone finds that it is time.
    """
    entries = [(e["stage"], e["update"]) for e in read_metrics(one_machine)]
    assert entries == [
        *(("train", 4), ("train", 5), ("valid", 5)),
        *(("train", 8), ("train", 10), ("valid", 10)),
    ]
    log = (one_machine / "log.txt").read_text()
    assert log.count("Saved a checkpoint") == 4


def test_two_machines_end_as_one_with_as_many_processes(
    manifests, one_machine, tmp_path
):
    """Two torchruns that meet over the network, here the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torchrun = (
        *("--nnodes=2", "--nproc_per_node=1", "--local_addr=127.0.0.1"),
        *("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}"),
    )
    with ThreadPoolExecutor() as pool:
        machines = [
            pool.submit(
                pretrain, manifests, tmp_path / "out", *LOG, torchrun=torchrun
            )
            for _ in range(2)
        ]
    for machine in machines:
        done = machine.result()
        assert done.returncode == 0, done.stderr[-2000:]
    weights, expected = (
        load_file(output / "encoder" / "encoder.safetensors")
        for output in (tmp_path / "out", one_machine)
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    losses, expected_losses = (
        [(e["stage"], e["update"], e["loss"]) for e in read_metrics(output)]
        for output in (tmp_path / "out", one_machine)
    )
    assert losses == expected_losses
