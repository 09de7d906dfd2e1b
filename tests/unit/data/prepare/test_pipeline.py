"""A preparation can be killed, goes on, and does not depend on workers."""

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest

from summarymixing.data.manifest import Manifest, Row
from summarymixing.data.prepare.account import Account, Outcome
from summarymixing.data.prepare.pipeline import Plan, Preparation
from summarymixing.errors import UserError

NUM_ITEMS = 300


def work(item, log=None, seconds=0.0, fail_after=None):
    """Make two rows of a item, and note that it was done."""
    if log is not None:
        with open(log, "a") as file:
            file.write(f"{item}\n")
        if fail_after and len(log.read_text().splitlines()) > fail_after:
            raise KeyboardInterrupt
    time.sleep(seconds)
    rows = [Row(f"{item}/{i}", f"/x/{item}", (), 1.5, {}) for i in range(2)]
    return Outcome(group=item, found_s=4.0, rows=rows, dropped=[("gap", 1.0)])


def assign_all(group_seconds):
    return {
        group: "train.csv" if group > "item000" else "valid.csv"
        for group in group_seconds
    }


def make(manifests_folder, corpus="toy", options=None, **changes):
    settings = {
        "source": Path("/x"),
        "files": [],
        "work_items": [f"item{i:03d}" for i in range(NUM_ITEMS)],
        "work": work,
        "assign": assign_all,
    }
    return Preparation(
        corpus=corpus,
        layout="anything",
        options=options or {"min_seconds": 1.0},
        manifests_folder=manifests_folder,
        plan=Plan(**{**settings, **changes}),
    )


def read_all(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def read_csvs(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.csv")}


def test_rows_come_in_order_for_any_number_of_workers(tmp_path):
    make(tmp_path / "one").run(num_workers=1)
    make(tmp_path / "three").run(num_workers=3)
    one, three = (read_csvs(tmp_path / n) for n in ("one", "three"))
    assert one == three and set(one) == {"train.csv", "valid.csv"}
    ids = [row.id for row in Manifest.read(tmp_path / "one" / "train.csv")]
    assert ids == [f"item{i:03d}/{j}" for i in range(1, 300) for j in (0, 1)]


def test_the_account_adds_up(tmp_path):
    account = make(tmp_path).run()
    assert account.found.count == NUM_ITEMS
    dropped = sum(total.hours for total in account.dropped.values())
    assert account.kept.hours + dropped == pytest.approx(account.found.hours)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["manifests"]["train.csv"]["count"] == 2 * (NUM_ITEMS - 1)
    assert Account.load(tmp_path) == account
    assert "gap" in account.summary()


def test_an_interrupted_run_goes_on(tmp_path):
    log = tmp_path / "log"
    folder = tmp_path / "m"
    interrupted = make(folder, work=partial(work, log=log, fail_after=100))
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    assert not (folder / "train.csv").exists()
    make(folder, work=partial(work, log=log)).run()
    done = log.read_text().splitlines()
    assert set(done) == {f"item{i:03d}" for i in range(NUM_ITEMS)}
    assert len(done) < NUM_ITEMS + 10  # at most the chunk in hand again
    make(tmp_path / "whole").run()
    assert read_csvs(folder) == read_csvs(tmp_path / "whole")
    assert sorted(read_all(folder)) == ["report.json", "train.csv", "valid.csv"]
    assert not (folder / ".partial").exists()


@pytest.mark.parametrize("torn", [b"", b'[{"group": "ta', bytes(100)])
def test_a_torn_partial_result_is_made_again(tmp_path, torn):
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "m", work=partial(work, log=log, fail_after=100)).run()
    first, *_ = sorted(tmp_path.glob("m/.partial/*/0*.json"))
    first.write_bytes(torn)
    make(tmp_path / "m").run()
    make(tmp_path / "whole").run()
    assert read_csvs(tmp_path / "m") == read_csvs(tmp_path / "whole")


def test_a_killed_run_goes_on(tmp_path):
    folder, log = tmp_path / "m", tmp_path / "log"
    slow = make(folder, work=partial(work, log=log, seconds=0.01))
    context = multiprocessing.get_context("fork")
    process = context.Process(target=slow.run, kwargs={"num_workers": 2})
    process.start()
    deadline = time.monotonic() + 60
    while len(list(folder.glob(".partial/*/0*.json"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (folder / "train.csv").exists()
    time.sleep(0.5)  # the workers notice and leave
    num_done = len(log.read_text().splitlines())
    assert num_done < NUM_ITEMS
    make(folder, work=partial(work, log=log)).run(num_workers=2)
    assert len(log.read_text().splitlines()) < NUM_ITEMS + 20
    make(tmp_path / "whole").run()
    assert read_csvs(folder) == read_csvs(tmp_path / "whole")


def run_counting(folder, log, **arguments):
    """Return the account and how many items were done."""
    log.unlink(missing_ok=True)
    changes = arguments.pop("changes", {})
    account = make(folder, work=partial(work, log=log), **changes).run(
        **arguments
    )
    done = log.read_text().splitlines() if log.exists() else []
    return account, len(done)


@pytest.mark.parametrize(
    ("arguments", "num_expected"),
    [
        ({}, 0),
        ({"num_workers": 2}, 0),
        ({"overwrite": True}, NUM_ITEMS),
        ({"changes": {"options": {"min_seconds": 2.0}}}, NUM_ITEMS),
        ({"changes": {"files": [("a.wav", 1, 1)]}}, NUM_ITEMS),
        ({"changes": {"work_items": ["item000", "item001"]}}, 2),
    ],
)
def test_only_what_differs_is_done_again(tmp_path, arguments, num_expected):
    folder, log = tmp_path / "m", tmp_path / "log"
    first, _ = run_counting(folder, log)
    again, num_done = run_counting(folder, log, **arguments)
    assert num_done == num_expected
    assert again.reused == (num_expected == 0)
    assert again.kept.count == 2 * (num_expected or NUM_ITEMS)


@pytest.mark.parametrize("lost", ["train.csv", "report.json"])
def test_a_lost_file_is_made_again(tmp_path, lost):
    make(tmp_path).run()
    before = read_all(tmp_path)
    (tmp_path / lost).unlink()
    assert not make(tmp_path).run().reused
    assert read_all(tmp_path) == before


def test_an_old_report_never_vouches_for_new_manifests(tmp_path):
    def fail(group_seconds):
        raise KeyboardInterrupt

    make(tmp_path).run()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, options={"min_seconds": 2.0}, assign=fail).run()
    assert not make(tmp_path).run().reused


def test_a_refused_division_writes_the_account_and_no_manifest(tmp_path):
    def refuse(group_seconds):
        raise UserError(f"{len(group_seconds)} are too few.")

    make(tmp_path).run()
    refused = make(tmp_path, assign=refuse, replaces=("train.csv", "valid.csv"))
    for _ in range(2):
        with pytest.raises(UserError, match="300 are too few") as caught:
            refused.run(overwrite=True)
        assert "toy: 300 recordings" in str(caught.value)
        assert not read_csvs(tmp_path)
        assert Account.load(tmp_path).dropped["gap"].count == NUM_ITEMS
    assert not make(tmp_path).run().reused


def test_what_was_listed_is_part_of_the_account(tmp_path):
    listed = Outcome(
        num_recordings=2,
        found_s=7200.0,
        dropped=[("other", 3600.0), ("other", 3600.0)],
        problems=[("malformed line", "table:7")],
    )
    account = make(tmp_path, listing_outcome=listed).run()
    assert account.found.count == NUM_ITEMS + 2
    assert account.dropped["other"].hours == 2.0
    assert account.problems == {"malformed line": ["table:7"]}


def write_pairs(account):
    """Write another file, as lists of trials are."""
    path = Path(account.manifests_folder) / "pairs.csv"
    rows = Manifest.read(path.with_name("train.csv"))
    path.write_text(f"{rows[0].id},{rows[1].id}\n")
    account.other_files["pairs.csv"] = 1


def test_other_files_belong_to_a_preparation(tmp_path):
    account = make(tmp_path, finish=write_pairs).run()
    assert "1 lines: pairs.csv" in account.summary()
    assert Account.load(tmp_path) == account
    assert make(tmp_path, finish=write_pairs).run().reused
    (tmp_path / "pairs.csv").unlink()
    assert not make(tmp_path, finish=write_pairs).run().reused
    assert (tmp_path / "pairs.csv").read_text() == "item001/0,item001/1\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_manifests_without_their_other_files_are_not_finished(tmp_path, error):
    def stop(account):
        raise error

    make(tmp_path, finish=write_pairs).run()
    with pytest.raises(error):
        make(tmp_path, finish=stop).run(overwrite=True)
    assert not make(tmp_path, finish=write_pairs).run().reused


def test_another_corpus_is_not_overwritten(tmp_path):
    make(tmp_path).run()
    with pytest.raises(UserError, match="manifests of another corpus"):
        make(tmp_path, corpus="other").run()
    assert make(tmp_path, corpus="other").run(overwrite=True).kept.count


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    def refuse(item):
        return Outcome(problems=[("unreadable", item)])

    with pytest.raises(UserError, match="Nothing in /x is usable") as caught:
        make(tmp_path, work=refuse).run()
    assert "300: unreadable: item000, item001, item002, ..." in str(
        caught.value
    )
    saved = json.loads((tmp_path / "report.json").read_text())
    assert len(saved["problems"]["unreadable"]) == NUM_ITEMS
    assert make(tmp_path).run().kept.count  # repaired: done again


def test_no_worker_is_refused(tmp_path):
    with pytest.raises(UserError, match="--num_workers must be at least 1"):
        make(tmp_path).run(num_workers=0)


def test_a_worker_that_dies_is_explained(tmp_path):
    with pytest.raises(UserError, match="worker process was killed"):
        make(tmp_path, work=die).run(num_workers=2)


def test_a_worker_that_dies_early_is_explained(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise BrokenProcessPool("A child process terminated abruptly")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", refuse)
    with pytest.raises(UserError, match="worker process was killed"):
        make(tmp_path).run(num_workers=2)


def die(item):
    os._exit(1)


def test_a_manifest_folder_that_is_a_file_is_explained(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file"):
            make(folder).run()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_manifest_folder_is_explained(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Cannot write"):
        make(tmp_path / "m").run()


def test_a_full_disk_is_explained(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="No space left"):
        make(tmp_path).run()
    monkeypatch.undo()
    assert make(tmp_path).run().kept.count == 2 * NUM_ITEMS
