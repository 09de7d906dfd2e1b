"""The batch script of recipes/README.md, under a stand-in for Slurm.

It signals every process of a step but `srun`, and kills what is left after
the time that the script asked for.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    *("--d_model=16", "--d_ffn=32", "--num_heads=2", "--num_layers=1"),
    *("--front_end_channels=8", "--num_codes=4", "--target_dim=8"),
    *("--accumulation=1", "--num_workers=1", "--max_batch_seconds=4"),
    *("--max_updates=6", "--checkpoint_every_updates=6", "--compile=False"),
)
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
nodes = range(int(os.environ["SLURM_NNODES"]))
tasks = [subprocess.Popen(sys.argv[1:]) for _ in nodes]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" > "$SCONTROL_SAID"
"""
# train.py that waits for a signal in an update, and may be slow to save.
TRAIN = f"""
import os, runpy, time
from pathlib import Path
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.stopping import stop_requested
from summarymixing.training.pretraining import PretrainingBrain as Brain

forward, save = Brain._forward, AtomicCheckpointer._save

def forward_and_wait(self, *args, **kwargs):
    if self.optimizer_step == int(os.environ["WAIT_IN_UPDATE"]):
        Path(f"waits.{{self.rank}}").touch()
        while not stop_requested():
            time.sleep(0.05)
    return forward(self, *args, **kwargs)

def save_slowly(*args, **kwargs):
    time.sleep(float(os.environ.get("SAVE_SECONDS", "0")))
    return save(*args, **kwargs)

Brain._forward = forward_and_wait
AtomicCheckpointer._save = save_slowly
if __name__ == "__main__":
    runpy.run_path("{ROOT}/recipes/pretraining/train.py", run_name="__main__")
"""
START_SECONDS = 240


def batch_script(command: str, output: Path) -> tuple[str, float]:
    """Return what README.md says, and the seconds that it asks for."""
    text = (ROOT / "recipes" / "README.md").read_text("utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    (script,) = [block for block in blocks if "#SBATCH" in block]
    script = script.replace("torchrun ...", command)
    seconds = re.search(r"--signal=USR1@(\d+)", script).group(1)
    return script.replace("results/base", str(output)), float(seconds)


def step_of(job: int) -> list[int]:
    """Return the processes below `srun`, which a batch script waits for."""
    found = [job]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found[2:]


@pytest.fixture
def submit(manifests, tmp_path, monkeypatch):
    """Return a function that runs the job once, and tells if it requeues."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SCONTROL_SAID", str(tmp_path / "said"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def submit(
        output: Path, nodes: int, wait_in_update: int, number: int
    ) -> bool:
        words = (
            *(sys.executable, "-m", "torch.distributed.run"),
            *(f"--nnodes={nodes}", f"--nproc_per_node={2 // nodes}"),
            *("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}"),
            *("--local_addr=127.0.0.1", "train.py"),
            *(f"{ROOT}/hparams/pretraining/tiny.yaml", *SETTINGS),
            *(f"--manifests={manifests}", f"--output_folder={output}"),
        )
        script, grace = batch_script(" ".join(words), output)
        signs = [tmp_path / "said", *(tmp_path / f"waits.{r}" for r in (0, 1))]
        for path in signs:
            path.unlink(missing_ok=True)
        job = subprocess.Popen(
            ["bash", "-c", f"{script}\nexit"],  # the last one is not exec'ed
            cwd=tmp_path,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",  # also where a process is alone
                "SLURM_NNODES": str(nodes),
                "WAIT_IN_UPDATE": str(wait_in_update),
            },
        )
        try:
            begin = time.monotonic()
            while job.poll() is None and not all(p.exists() for p in signs[1:]):
                assert time.monotonic() - begin < START_SECONDS, "no start"
                time.sleep(0.05)
            if job.poll() is None:
                for pid in step_of(job.pid):
                    os.kill(pid, number)
            job.wait(grace)
        finally:
            if job.poll() is None:
                for pid in [*step_of(job.pid), job.pid]:
                    os.kill(pid, signal.SIGKILL)
            job.wait()
        said = signs[0]
        return said.exists() and said.read_text() == "requeue 42\n"

    return submit


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "encoder" / "encoder.safetensors")


def test_a_job_is_requeued_until_it_is_done(submit, tmp_path):
    """On one node, on two, and on one again, as nodes are free."""
    output, straight = tmp_path / "out", tmp_path / "straight"
    assert submit(output, 1, wait_in_update=2, number=signal.SIGUSR1)
    assert (output / "stopped").read_text() == "stopped by SIGUSR1\n"
    assert submit(output, 2, wait_in_update=4, number=signal.SIGUSR1)
    assert (output / "stopped").read_text() == "stopped by SIGUSR1\n"
    assert not submit(output, 1, wait_in_update=-1, number=signal.SIGUSR1)
    assert not (output / "stopped").exists()
    assert not submit(straight, 1, wait_in_update=-1, number=signal.SIGUSR1)
    expected, found = weights(straight), weights(output)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
