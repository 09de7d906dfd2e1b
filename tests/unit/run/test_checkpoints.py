"""Checkpoints are whole or absent, whatever stops or damages them."""

import copy
import errno
import os
import random
import resource
import signal
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer
from torch._subclasses import FakeTensorMode

from summarymixing.errors import UserError
from summarymixing.run import checkpoint_files, checkpoints
from summarymixing.run.checkpoints import (
    AtomicCheckpointer,
    open_checkpoints,
)

WIDTH = 64


class Weights(torch.nn.Module):
    """Two tensors that always hold the same number."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(width))
        self.second = torch.nn.Parameter(torch.zeros(width))

    def set(self, number: int) -> None:
        with torch.no_grad():
            self.first.fill_(number)
            self.second.fill_(number)

    def number(self) -> float:
        assert torch.equal(self.first, self.second)
        assert self.first.min() == self.first.max()
        return self.first[0].item()


def make(
    folder: Path, width: int = WIDTH
) -> tuple[AtomicCheckpointer, Weights]:
    weights = Weights(width)
    recoverables = {"weights": weights, "again": weights}
    return AtomicCheckpointer(folder, recoverables), weights


def save(checkpointer: AtomicCheckpointer, number: int, **options) -> None:
    checkpointer.recoverables["weights"].set(number)
    checkpointer.save_and_keep_only(meta={"number": number}, **options)


def save_beside(checkpointer: AtomicCheckpointer, number: int) -> None:
    """Save while the weights go on to change."""
    weights = checkpointer.recoverables["weights"]
    weights.set(number)
    checkpointer.begin_saving(meta={"number": number})
    weights.set(-1)
    checkpointer.finish_saving()


def save_named(checkpointer: AtomicCheckpointer, number: int) -> None:
    save(checkpointer, number, name="named")


def saved(folder: Path, *numbers: int) -> tuple[AtomicCheckpointer, Weights]:
    checkpointer, weights = make(folder)
    for number in numbers:
        save(checkpointer, number, num_to_keep=len(numbers))
    return checkpointer, weights


def folder_of(checkpointer: AtomicCheckpointer, number: int) -> Path:
    return checkpointer.find_checkpoint(
        ckpt_predicate=lambda c: c.meta["number"] == number
    ).path


def hidden_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name[0] == "."]


def in_child(work: Callable[[], None]) -> int:
    """Run work in a fork; return how it ended, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_call(number: int) -> None:
    """Kill this process just before its n-th step that touches the disk."""
    calls = 0

    def counted(function):
        def step(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return step

    for owner, names in {
        os: ("fsync", "mkdir", "rename", "rmdir", "unlink"),
        torch: ("save",),
    }.items():
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("save", [save, save_named, save_beside])
def test_kill_at_every_step_leaves_a_whole_checkpoint(tmp_path, save):
    checkpointer, weights = make(tmp_path)
    save(checkpointer, 1)

    def save_and_die(step: int, number: int) -> None:
        die_at_call(step)
        save(checkpointer, number)

    outcomes, number = [], 1
    while not outcomes or outcomes[-1] != 0:
        step = len(outcomes) + 1
        outcomes.append(in_child(partial(save_and_die, step, number + 1)))
        recovered, weights = make(tmp_path)
        assert recovered.recover_if_possible() is not None
        assert weights.number() in (number, number + 1)
        number = int(weights.number())
    assert len(outcomes) > 10
    assert set(outcomes[:-1]) == {-signal.SIGKILL}
    save(checkpointer, number + 1)
    assert hidden_names(tmp_path) == []
    assert len(checkpoint_files.checkpoint_folders(tmp_path)) == 1


@pytest.mark.parametrize("save", [save, save_beside])
def test_kill_at_random_moments_leaves_a_whole_checkpoint(tmp_path, save):
    chance = random.Random(0)
    width = 20_000  # below what torch spreads over threads, unsafe in forks
    checkpointer, _ = make(tmp_path, width)
    save(checkpointer, 1)
    number = 1
    for _ in range(5):
        progress, announce = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    number += 1
                    save(checkpointer, number)
                    os.write(announce, b"x")
            finally:
                os._exit(1)
        os.close(announce)
        os.read(progress, 1)  # one save, however slow the machine is
        os.close(progress)
        time.sleep(chance.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        recovered, weights = make(tmp_path, width)
        recovered.recover_if_possible()
        assert weights.number() > number
        number = int(weights.number())


class Counter:
    """Neither a module nor an optimiser: it has a saver of its own."""

    def __init__(self) -> None:
        self.count = 0


def write_count(counter: Counter, path: Path) -> None:
    path.write_text(str(counter.count))


def read_count(counter: Counter, path: Path, end_of_epoch: bool) -> None:
    counter.count = int(path.read_text())


def train_one_step(weights: Weights, adam, counter: Counter) -> None:
    (weights.first.sum() + weights.second.sum()).backward()
    adam.step()
    counter.count += 1


@pytest.fixture
def learner(tmp_path):
    """Return what trains, and its checkpointer."""
    weights, counter = Weights(), Counter()
    adam = torch.optim.AdamW(weights.parameters())
    checkpointer = AtomicCheckpointer(
        tmp_path,
        {"weights": weights, "adam": adam, "counter": counter},
        custom_save_hooks={"counter": write_count},
        custom_load_hooks={"counter": read_count},
    )
    train_one_step(weights, adam, counter)
    return (weights, adam, counter), checkpointer


@pytest.fixture
def held_back(monkeypatch):
    """Return an event before which no checkpoint is sealed."""
    go_on, seal = threading.Event(), checkpoints.seal
    monkeypatch.setattr(
        checkpoints, "seal", lambda folder: go_on.wait(60) and seal(folder)
    )
    yield go_on
    go_on.set()


def test_training_goes_on_beside_and_what_is_saved_is_the_state_before(
    learner, held_back
):
    """Weights, moments and counters, in the checkpoints of all files."""
    training, checkpointer = learner
    train_one_step(*training)
    expected = copy.deepcopy([part.state_dict() for part in training[:2]])
    checkpointer.begin_saving(meta={"update": 2})
    for _ in range(3):
        train_one_step(*training)
    assert checkpointer.list_checkpoints() == []
    held_back.set()
    checkpointer.finish_saving()
    assert checkpointer.recover_if_possible().meta["update"] == 2
    states = [part.state_dict() for part in training[:2]]
    for state, known in zip(states, expected, strict=True):
        torch.testing.assert_close(dict(state), dict(known), rtol=0, atol=0)
    assert training[2].count == 2


def test_files_written_beside_are_those_written_at_once(learner):
    _, checkpointer = learner
    checkpointer.save_and_keep_only()
    checkpointer.begin_saving(num_to_keep=2)
    checkpointer.finish_saving()
    at_once, beside = (
        {name: path.read_bytes() for name, path in c.paramfiles.items()}
        for c in checkpointer.find_checkpoints()
    )
    assert at_once == beside


def test_the_next_checkpoint_waits_for_the_one_before(learner, held_back):
    training, checkpointer = learner
    checkpointer.begin_saving(meta={"update": 1}, num_to_keep=2)
    train_one_step(*training)
    threading.Timer(0.2, held_back.set).start()
    checkpointer.begin_saving(meta={"update": 2}, num_to_keep=2)
    assert [c.meta["update"] for c in checkpointer.list_checkpoints()][0] == 1
    checkpointer.finish_saving()
    updates = [c.meta["update"] for c in checkpointer.find_checkpoints()]
    assert updates == [2, 1]


def test_the_memory_of_a_copy_is_used_again(learner):
    training, checkpointer = learner

    def addresses() -> list[int]:
        moments = checkpointer._copies["adam"]["state"].values()
        tensors = [t for state in moments for t in state.values()]
        tensors += checkpointer._copies["weights"].values()
        return [t.data_ptr() for t in tensors]

    checkpointer.begin_saving()
    first = addresses()
    train_one_step(*training)
    checkpointer.begin_saving()
    checkpointer.finish_saving()
    assert addresses() == first
    own = {t.data_ptr() for t in training[0].state_dict().values()}
    assert not own & set(first)


def test_the_host_does_not_wait_for_copies_from_a_gpu(monkeypatch):
    """With tensors that are of a GPU by name; the thread waits instead."""
    copy_ = Mock(side_effect=lambda target, *_, **__: target)
    empty, event = Mock(wraps=torch.empty), Mock()
    with FakeTensorMode():
        state = {"weight": torch.zeros(3, device="cuda")}
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(
            torch.Tensor, "copy_", lambda *a, **options: copy_(*a, **options)
        )
        copied = checkpoints.copy_to_host(state)["weight"]
    assert (copied.shape, copied.device.type) == ((3,), "cpu")
    assert empty.call_args.kwargs["pin_memory"]
    assert copy_.call_args.kwargs == {"non_blocking": True}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", event)
    wait = checkpoints.copies_made()
    event.return_value.record.assert_called_once()
    event.return_value.synchronize.assert_not_called()
    wait()
    event.return_value.synchronize.assert_called_once()


def test_what_failed_beside_is_told_when_it_is_waited_for(learner, monkeypatch):
    _, checkpointer = learner
    monkeypatch.setattr(checkpoints, "SAVE_PAUSES_S", (0.0,))
    checkpointer.save_and_keep_only()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refuse_to_write)
        checkpointer.begin_saving()
        with pytest.raises(UserError, match="Earlier checkpoints are intact"):
            checkpointer.finish_saving()
    checkpointer.finish_saving()  # told once
    assert hidden_names(checkpointer.checkpoints_dir) == []
    assert len(checkpointer.list_checkpoints()) == 1


def refuse_to_write(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("begin", ["begin_saving", "save_and_keep_only"])
def test_the_next_checkpoint_makes_up_for_one_that_failed_beside(
    learner, monkeypatch, caplog, begin
):
    """And is waited for: the disk may still be full."""
    _, checkpointer = learner
    monkeypatch.setattr(checkpoints, "SAVE_PAUSES_S", ())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refuse_to_write)
        checkpointer.begin_saving(meta={"update": 1})
        with pytest.raises(UserError):
            getattr(checkpointer, begin)(meta={"update": 2})
        checkpointer.begin_saving(meta={"update": 3})
        checkpointer._future.exception()  # waits
    getattr(checkpointer, begin)(meta={"update": 4})
    assert caplog.text.count(checkpoints.INSTEAD) == 2
    (saved,) = checkpointer.list_checkpoints()
    assert saved.meta["update"] == 4


def test_a_run_that_ends_leaves_no_half_of_a_checkpoint(
    learner, monkeypatch, caplog
):
    _, checkpointer = learner
    checkpointer.begin_saving()
    checkpointer.close()
    assert len(checkpointer.list_checkpoints()) == 1
    monkeypatch.setattr(torch, "save", refuse_to_write)
    checkpointer.begin_saving()
    checkpointer.close()  # without the pauses, which take 70 s
    assert "No space left on device" in caplog.text
    checkpointer.finish_saving()


def truncate(folder: Path) -> None:
    os.truncate(folder / "weights.ckpt", 100)


def remove_weights(folder: Path) -> None:
    (folder / "weights.ckpt").unlink()


def remove_meta(folder: Path) -> None:
    (folder / "CKPT.yaml").unlink()


def flip_byte(folder: Path) -> None:
    content = bytearray((folder / "weights.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "weights.ckpt").write_bytes(content)


def truncate_manifest(folder: Path) -> None:
    os.truncate(folder / checkpoint_files.MANIFEST_NAME, 20)


def remove_manifest(folder: Path) -> None:
    (folder / checkpoint_files.MANIFEST_NAME).unlink()


DAMAGES = [
    truncate,
    remove_weights,
    remove_meta,
    flip_byte,
    truncate_manifest,
    remove_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_reported_once_and_replaced(
    tmp_path, damage, caplog
):
    checkpointer, _ = saved(tmp_path, 1, 2)
    torn = folder_of(checkpointer, 2)
    damage(torn)
    recovered, weights = make(tmp_path)
    with caplog.at_level("WARNING"):
        recovered.recover_if_possible()
        recovered.list_checkpoints()
    assert weights.number() == 1
    reports = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len([r for r in reports if str(torn) in r]) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_only_damaged_checkpoints_are_an_error(tmp_path, damage):
    checkpointer, _ = saved(tmp_path, 1)
    torn = folder_of(checkpointer, 1)
    damage(torn)
    with pytest.raises(UserError, match="all checkpoints") as caught:
        make(tmp_path)[0].recover_if_possible()
    assert torn.name in str(caught.value)


def test_checkpoint_of_an_unguarded_save_is_not_trusted(tmp_path):
    Checkpointer(tmp_path, {"weights": Weights()}).save_checkpoint()
    with pytest.raises(UserError, match=r"MANIFEST\.json is missing"):
        make(tmp_path)[0].recover_if_possible()


@pytest.mark.parametrize("name", ["CKPT.yaml", checkpoint_files.MANIFEST_NAME])
def test_no_byte_of_the_small_files_can_change_unseen(tmp_path, name, caplog):
    """The order of the checkpoints and their checksums are in them."""
    checkpointer, _ = saved(tmp_path, 1, 2)
    torn = folder_of(checkpointer, 2)
    content = (torn / name).read_bytes()
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1
        (torn / name).write_bytes(changed)
        recovered, weights = make(tmp_path)
        recovered.recover_if_possible()
        assert weights.number() == 1
        assert f"damaged checkpoint {torn}" in caplog.text
        caplog.clear()


def test_nothing_saved_yet_is_no_error(tmp_path):
    assert make(tmp_path)[0].recover_if_possible() is None


def fill_the_disk(monkeypatch, checkpointer: AtomicCheckpointer) -> None:
    def save_to_full_disk(weights, path):
        with open("/dev/full", "w") as file:
            file.write("x")

    hooks = checkpointer.custom_save_hooks
    monkeypatch.setitem(hooks, "weights", save_to_full_disk)


def limit_file_size(monkeypatch, checkpointer: AtomicCheckpointer) -> None:
    """Let torch's own writer fail in the middle of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    real_save = torch.save

    def save_limited(*args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            real_save(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(torch, "save", save_limited)


@pytest.mark.parametrize("fill", [fill_the_disk, limit_file_size])
def test_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch, fill):
    monkeypatch.setattr(checkpoints, "SAVE_PAUSES_S", (0.0,))
    checkpointer, weights = saved(tmp_path, 1)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with monkeypatch.context() as full:
        fill(full, checkpointer)
        with pytest.raises(UserError, match="Earlier checkpoints are intact"):
            save(checkpointer, 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    checkpointer.recover_if_possible()
    assert weights.number() == 1
    save(checkpointer, 3)
    assert [c.meta["number"] for c in checkpointer.list_checkpoints()] == [3]


@pytest.fixture
def refuse_folders(monkeypatch):
    """Return a function that lets no folder be flushed, with some errno."""
    flush_file = os.fsync

    def refuse(number: int) -> None:
        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            flush_file(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return refuse


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_folders_that_cannot_be_flushed_are_no_error(
    tmp_path, refuse_folders, number
):
    refuse_folders(number)
    checkpointer, weights = saved(tmp_path, 1)
    checkpointer.recover_if_possible()
    assert weights.number() == 1


def test_saving_that_fails_in_passing_is_tried_again(
    tmp_path, monkeypatch, caplog
):
    checkpointer, weights = saved(tmp_path, 1)
    flush, pauses = checkpoint_files.flush, []

    def fail_twice(path: Path) -> None:
        if len(pauses) < 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        flush(path)

    monkeypatch.setattr(checkpoint_files, "flush", fail_twice)
    monkeypatch.setattr(checkpointer._is_leaving, "wait", pauses.append)
    save(checkpointer, 2)
    assert pauses == list(checkpoints.SAVE_PAUSES_S)
    assert caplog.text.count("Next attempt in") == 2
    weights.set(0)
    checkpointer.recover_if_possible()
    assert weights.number() == 2


def test_folder_where_nothing_can_be_saved_is_told_first(
    tmp_path, refuse_folders
):
    recoverables = {"weights": Weights()}
    open_checkpoints(tmp_path, recoverables, {}, {})
    assert [*tmp_path.iterdir()] == []
    refuse_folders(errno.EIO)
    with pytest.raises(UserError) as caught:
        open_checkpoints(tmp_path, recoverables, {}, {})
    assert str(caught.value) == (
        f"could not save a checkpoint in {tmp_path}: Input/output error. "
        "Earlier checkpoints are intact"
    )
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ({"num_to_keep": 2}, {4, 5}),
        ({"max_keys": ["score"]}, {2, 5}),
        ({"min_keys": ["score"]}, {3, 5}),
        ({"min_keys": ["score"], "keep_recent": False}, {3}),
        ({"ckpt_predicate": lambda c: c.meta["number"] != 1}, {1, 5}),
    ],
)
def test_keeps_what_speechbrain_keeps(tmp_path, policy, kept):
    scores = [3, 9, 1, 5, 4]
    for kind in (AtomicCheckpointer, Checkpointer):
        folder = tmp_path / kind.__name__
        checkpointer = kind(folder, {"weights": Weights()})
        for number, score in enumerate(scores, start=1):
            checkpointer.save_and_keep_only(
                meta={"number": number, "score": score},
                **{"importance_keys": [], **policy},
            )
        numbers = {c.meta["number"] for c in checkpointer.list_checkpoints()}
        assert numbers == kept


def test_best_checkpoint_is_loaded_rather_than_the_last(tmp_path):
    _, weights = saved(tmp_path, 3, 1, 2)
    checkpointer, weights = make(tmp_path)
    checkpointer.recover_if_possible(min_key="number")
    assert weights.number() == 1


def test_two_checkpoints_within_a_second_are_both_kept(tmp_path):
    checkpointer, _ = saved(tmp_path, 1, 2, 3)
    assert len(checkpointer.list_checkpoints()) == 3


def test_meta_that_could_not_be_read_back_is_refused_first(tmp_path):
    checkpointer, _ = make(tmp_path)
    with pytest.raises(Exception, match="cannot represent"):
        checkpointer.save_and_keep_only(meta={"loss": torch.tensor(1.0)})
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_that_does_not_fit_is_a_user_error(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(UserError, match="does not fit"):
        make(tmp_path, width=3)[0].recover_if_possible()


def test_object_that_was_not_saved_is_a_user_error(tmp_path):
    saved(tmp_path, 1)
    checkpointer, weights = make(tmp_path)
    checkpointer.add_recoverables({"newcomer": weights})
    with pytest.raises(UserError, match="newcomer"):
        checkpointer.recover_if_possible()


def test_another_run_is_refused_with_every_difference(tmp_path):
    fingerprint = {"model": {"layers": 12, "mixer": "summary"}, "sizes": (1, 2)}
    reasons = {"model.layers": "the weights have its shape"}

    def open_with(**settings):
        return open_checkpoints(tmp_path, {}, settings, reasons)

    open_with(anything="before the first checkpoint")
    open_with(**fingerprint).save_and_keep_only(meta={"loss": 1.0})
    open_with(**fingerprint)
    with pytest.raises(UserError) as caught:
        open_with(model={"layers": 24}, sizes=(1, 2), new=True)
    for difference in (
        "model.layers: saved 12, requested 24 (the weights have its shape)",
        "model.mixer: saved summary, requested nothing",
        "new: saved nothing, requested True",
    ):
        assert difference in str(caught.value)
    assert "sizes" not in str(caught.value)


def test_settings_of_an_optimiser_are_those_of_this_run(tmp_path):
    def make_adam(lr, weight_decay):
        weights = [torch.nn.Parameter(torch.ones(1))]
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
        return optimizer, AtomicCheckpointer(tmp_path, {"adam": optimizer})

    make_adam(0.5, 0.1)[1].save_checkpoint()
    resumed, checkpointer = make_adam(0.9, 0.2)
    checkpointer.recover_if_possible()
    group = resumed.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.2)
