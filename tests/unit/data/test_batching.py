"""Batches: all utterances, bounded, and a function of (seed, epoch) alone."""

import multiprocessing
import os
import select
import signal
import sys
import time
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from summarymixing.data.batching import (
    STOP_SIGNALS,
    BatchPlan,
    EpochBatchSampler,
    UpdateBatchSampler,
    pad_wavs,
    start_worker,
)
from summarymixing.errors import UserError


def libri_light(count, seed=0):
    """Durations like those of voice-activity segments, up to 60 s."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(2.7, 0.7, count), 0.3, 60.0)


DURATIONS = {
    "speech": libri_light(2000),
    "few": libri_light(3),
    "one": np.array([12.5]),
    "equal": np.full(101, 7.3),
    "longest": np.array([360.0, 1.0, 360.0]),
    "shortest": np.full(5000, 0.05),
    "wide": np.array([0.01] * 30 + [1.0] * 7 + [359.0] * 2),
}
every_corpus = pytest.mark.parametrize(
    "durations", DURATIONS.values(), ids=DURATIONS
)
PLANS = [
    {"max_batch_seconds": 360},
    {"max_batch_seconds": 360, "order": "ascending"},
    {"batch_size": 4},
    {"batch_size": 4, "order": "ascending"},
    {"max_batch_seconds": 360, "world_size": 3},
]
every_plan = pytest.mark.parametrize("options", PLANS, ids=str)


@every_corpus
@every_plan
def test_every_utterance_comes_once_in_each_epoch(durations, options):
    plan = BatchPlan(durations, seed=1, **options)
    for epoch in range(4):
        batches = plan.batches(epoch)
        assert len(batches) == len(plan)
        assert all(batches)
        assert sorted(chain(*batches)) == list(range(len(durations)))


@every_corpus
@pytest.mark.parametrize("order", ["random", "ascending"])
def test_padded_seconds_are_bounded(durations, order):
    plan = BatchPlan(durations, seed=1, max_batch_seconds=360, order=order)
    for batch in plan.batches(0):
        assert len(batch) * durations[batch].max() <= 360 * (1 + 1e-9)


def fewest_batches(durations, max_batch_seconds):
    """Fill from the longest down: the fewest batches of padded seconds."""
    descending, count, first = np.sort(durations)[::-1], 0, 0
    while first < len(durations):
        first += int(max_batch_seconds / descending[first])
        count += 1
    return count


@pytest.mark.parametrize("max_batch_seconds", [90, 180, 360])
def test_no_other_plan_has_fewer_batches(max_batch_seconds):
    # Many last little less than 30 s, as where shorter clips were joined.
    rng = np.random.default_rng(0)
    joined = 30 - np.clip(rng.exponential(3, 20_000), 0, 29)
    durations = np.concatenate([joined, rng.uniform(30, 60, 2000)])
    plan = BatchPlan(durations, seed=1, max_batch_seconds=max_batch_seconds)
    fewest = fewest_batches(durations, max_batch_seconds)
    assert fewest <= len(plan) <= 1.002 * fewest
    padded = sum(len(b) * durations[b].max() for b in plan.batches(0))
    assert padded < 1.01 * durations.sum()


def test_batches_are_full_and_waste_little():
    durations = DURATIONS["speech"]
    plan = BatchPlan(durations, seed=1, max_batch_seconds=360)
    padded = [len(b) * durations[b].max() for b in plan.batches(0)]
    assert sum(padded) / durations.sum() < 1.05
    # One batch alone is a remainder; a full one misses one utterance, at
    # most, of the longest in it.
    assert np.sort(padded)[1] >= 360 - 60
    assert len(padded) <= 1.1 * durations.sum() / 360


@every_plan
def test_a_plan_is_a_function_of_seed_and_epoch(options):
    durations = DURATIONS["speech"]
    plan = BatchPlan(durations, seed=1, **options)
    again = BatchPlan(durations, seed=1, **options)
    other_epoch = list(plan.batches(8))
    first = list(plan.batches(7))
    assert list(again.batches(7)) == first  # whatever came before
    other_seed = BatchPlan(durations, seed=2, **options).batches(7)
    is_random = "order" not in options
    assert (first != other_epoch) is is_random
    assert (first != list(other_seed)) is is_random


def test_partners_change_from_epoch_to_epoch():
    durations = DURATIONS["speech"]
    plan = BatchPlan(durations, seed=1, max_batch_seconds=360)
    first, second = (
        {frozenset(batch) for batch in plan.batches(epoch)} for epoch in (0, 1)
    )
    assert len(first & second) < 0.1 * len(first)


def test_ascending_order_goes_from_short_to_long():
    durations = DURATIONS["speech"]
    plan = BatchPlan(durations, seed=1, batch_size=4, order="ascending")
    flat = durations[list(chain(*plan.batches(0)))]
    assert (np.diff(flat) >= 0).all()


def test_random_order_mixes_short_and_long_batches():
    durations = DURATIONS["speech"]
    plan = BatchPlan(durations, seed=1, max_batch_seconds=360)
    means = [durations[batch].mean() for batch in plan.batches(0)]
    ranks = np.argsort(np.argsort(means))
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.4


@pytest.mark.parametrize("world_size", [2, 4, 16])
def test_the_batches_of_a_step_last_equally_long(world_size):
    durations = libri_light(10_000)
    plan = BatchPlan(
        durations, seed=1, max_batch_seconds=90, world_size=world_size
    )
    assert len(plan) % world_size  # later epochs begin within a step
    steps = 3 * len(plan) // world_size
    seconds = []
    for rank in range(world_size):
        sampler = UpdateBatchSampler(plan, rank=rank, world_size=world_size)
        seconds.append(
            [
                len(batch) * max(durations[item.utterance] for item in batch)
                for batch in batches_of(sampler, 0, steps)
            ]
        )
    waiting = np.mean(np.max(seconds, axis=0)) / np.mean(seconds) - 1
    assert waiting < 0.01  # 0.06 or more in an order that is all random


def test_the_number_of_processes_changes_the_order_alone():
    plans = [
        BatchPlan(
            DURATIONS["speech"], seed=1, max_batch_seconds=90, world_size=n
        )
        for n in (1, 4)
    ]
    alone, four = (list(plan.batches(epoch=3)) for plan in plans)
    assert alone != four and sorted(alone) == sorted(four)


def test_an_utterance_longer_than_a_batch_says_what_to_do():
    with pytest.raises(UserError) as caught:
        BatchPlan([1.0, 400.3, 2.0], seed=0, max_batch_seconds=360)
    for part in ("utterance 2", "400.3 s", "--max_batch_seconds", "401"):
        assert part in str(caught.value)
    BatchPlan([1.0, 400.3, 2.0], seed=0, max_batch_seconds=401)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_seconds": 9, "batch_size": 2},
        {"batch_size": 2, "order": "descending"},
    ],
    ids=str,
)
def test_contradictory_options_are_refused(options):
    with pytest.raises(ValueError):
        BatchPlan([1.0], seed=0, **options)


def sharded(sampler_class, world_size, epoch=0, **options):
    plan = BatchPlan(DURATIONS["speech"][:200], seed=3, batch_size=6)
    samplers = [
        sampler_class(plan, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return plan, samplers


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_share_an_epoch_without_repetition(world_size):
    plan, samplers = sharded(
        EpochBatchSampler, world_size, epoch=2, pad_to_equal_length=False
    )
    shards = [list(sampler) for sampler in samplers]
    assert [len(shard) for shard in shards] == [len(s) for s in samplers]
    assert sorted(chain(*shards)) == sorted(plan.batches(2))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 40])
def test_processes_have_equally_many_batches_where_asked(world_size):
    plan, samplers = sharded(
        EpochBatchSampler, world_size, pad_to_equal_length=True
    )
    shards = [list(sampler) for sampler in samplers]
    expected = -(-len(plan) // world_size)
    assert {len(s) for s in samplers} == {expected}
    assert {len(shard) for shard in shards} == {expected}
    counts = Counter(map(tuple, chain(*shards)))
    assert counts.keys() == set(map(tuple, plan.batches(0)))
    assert counts.total() == expected * world_size
    assert max(counts.values()) - min(counts.values()) <= 1


def make_updates(world_size=2, accumulation=3, size=50):
    plan = BatchPlan(DURATIONS["speech"][:size], seed=3, batch_size=6)
    return plan, [
        UpdateBatchSampler(
            plan, rank=rank, world_size=world_size, accumulation=accumulation
        )
        for rank in range(world_size)
    ]


def batches_of(sampler, start, stop):
    sampler.set_range(start, stop)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize("cuts", [[7], [1, 2, 3], [0, 20]])
def test_going_on_after_a_stop_is_going_straight_on(cuts):
    _, straight = make_updates()
    _, resumed = make_updates()
    for before, after in zip(straight, resumed, strict=True):
        expected = batches_of(before, 0, 20)
        bounds = [0, *cuts, 20]
        parts = [
            batches_of(after, start, stop)
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]
        assert list(chain(*parts)) == expected
        assert len(expected) == 20 * 3


def test_updates_walk_through_epoch_after_epoch_without_a_gap():
    plan, samplers = make_updates(world_size=2, accumulation=3)
    streams = [batches_of(sampler, 0, 30) for sampler in samplers]
    merged = list(chain(*zip(*streams, strict=True)))
    for position, batch in enumerate(merged):
        epoch, number = divmod(position, len(plan))
        assert {item.epoch for item in batch} == {epoch}
        assert [item.utterance for item in batch] == plan.batches(epoch)[number]


def test_the_processes_of_an_update_take_neighbouring_batches():
    # As one process with accumulation 2 would: the same batches per update.
    _, two = make_updates(world_size=2, accumulation=1)
    _, (one,) = make_updates(world_size=1, accumulation=2)
    for update in range(12):
        together = [batches_of(s, update, update + 1)[0] for s in two]
        assert together == batches_of(one, update, update + 1)


def test_wavs_are_padded_on_the_right_and_lengths_are_relative():
    wavs = [torch.ones(3), torch.full((5,), 2.0), torch.ones(1)]
    padded, lengths = pad_wavs(wavs)
    assert padded.tolist() == [
        [1, 1, 1, 0, 0],
        [2, 2, 2, 2, 2],
        [1, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(lengths, torch.tensor([0.6, 1.0, 0.2]))


@pytest.mark.parametrize("order", ["random", "ascending"])
def test_a_left_over_that_is_too_small_joins_the_batch_before(order):
    plan = BatchPlan(
        [1.0] * 9, seed=0, batch_size=4, order=order, smallest_batch=2
    )
    for epoch in range(3):
        batches = list(plan.batches(epoch))
        assert sorted(map(len, batches)) == [4, 5] and len(plan) == 2
        assert sorted(sum(batches, [])) == list(range(9))
    alone = BatchPlan([1.0], seed=0, batch_size=4, smallest_batch=2)
    assert list(alone.batches(0)) == [[0]]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_to_stop_leaves_the_workers_alone(number):
    pid = os.fork()
    if pid == 0:
        start_worker(0)
        os.kill(os.getpid(), number)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def wait_as_a_worker(writing):
    start_worker(0)
    os.write(writing, b"w")
    time.sleep(600)  # as for a disk that does not answer


def begin_as_an_orphan(writing):
    parent = os.getppid()
    os.write(writing, b"w")
    while os.getppid() == parent:
        time.sleep(0.01)
    start_worker(0)
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="by a call of Linux")
@pytest.mark.parametrize("work", [wait_as_a_worker, begin_as_an_orphan])
def test_a_worker_ends_with_its_parent(work):
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        context = multiprocessing.get_context("fork")
        context.Process(target=work, args=(writing,), daemon=True).start()
        time.sleep(600)
        os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"w"
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    # The end of the pipe: nobody is left who could write.
    assert select.select([reading], [], [], 60)[0]
    assert os.read(reading, 1) == b""
    os.close(reading)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_of_every_kind_work(method):
    loader = torch.utils.data.DataLoader(
        torch.arange(4.0),
        num_workers=1,
        worker_init_fn=start_worker,
        multiprocessing_context=method,
    )
    assert [float(x) for x in loader] == [0, 1, 2, 3]
