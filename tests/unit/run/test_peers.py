"""What a process finds of others that it cannot ask."""

import os
import signal
import subprocess
import time

import pytest
import torch.distributed as dist

from summarymixing.run import peers


def test_a_process_ends_when_the_store_answers_no_more(monkeypatch, capfd):
    """As when the machine is cut off on which torchrun keeps it."""
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(peers, "GONE_SECONDS", 1.0)
    reading, writing = os.pipe()
    keeper = os.fork()
    if not keeper:
        store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        os.write(writing, str(store.port).encode())
        signal.pause()
    port = int(os.read(reading, 10))
    process = os.fork()
    if not process:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        with peers.Peers(0, 1, store).watching():
            os.write(writing, b"watches")
            time.sleep(600)
        os._exit(99)
    assert os.read(reading, 10) == b"watches"
    os.kill(keeper, signal.SIGSTOP)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    assert status == peers.STATUS
    assert f"error: {peers.STORE_GONE}" in capfd.readouterr().err


def test_a_killed_process_is_told_from_a_stopped_one():
    process = subprocess.Popen(["sleep", "600"])
    identity = peers.identify(process.pid)
    process.send_signal(signal.SIGSTOP)
    assert peers.identify(process.pid) == identity
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert peers.identify(process.pid) != identity  # not yet waited for
    process.wait()
    assert peers.identify(process.pid) != identity
    assert identity[0] == peers.identify(os.getpid())[0]


@pytest.mark.parametrize("answers", [True, False])
def test_who_is_behind_is_named(answers):
    """Rank 0 waits in a collective; rank 1 is behind, or says nothing."""
    store = dist.HashStore()
    store.set(f"{peers.STALLED}/0", '[5, true, "all_reduce (x:1)", 60.0]')
    if answers:
        store.set(f"{peers.STALLED}/1", '[5, false, "read (x:2)", 61.0]')
    message = peers.Peers(0, 2, store)._describe_stall()
    said = "has made no progress for 61 s" if answers else "answers no more"
    assert message.startswith(f"rank 1 {said}")
