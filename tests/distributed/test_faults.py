"""Run faults.py in a process of its own.

It forks, and what has been forked cannot train where the process before has:
PyTorch's autograd keeps threads.
"""

import subprocess
import sys
from pathlib import Path


def test_two_processes_end_together_whatever_happens():
    file = Path(__file__).with_name("faults.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(file)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]
