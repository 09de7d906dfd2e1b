"""Masked batches: a mask belongs to its utterance, a bad file costs itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from summarymixing.data.batching import Utterance
from summarymixing.data.manifest import Row, write_manifest
from summarymixing.errors import UserError
from summarymixing.lobes.features import num_frames
from summarymixing.nnet.span_mask import filled_spans
from summarymixing.training import pretraining_data
from summarymixing.training.pretraining_data import (
    MaskingCollate,
    load_pretraining_data,
)

SETTINGS = {
    "seed": 1,
    "max_batch_seconds": 3.0,
    "accumulation": 1,
    "mask_scheme": "stock",
    "mask_probability": 0.65,
    "mask_length": 10,
    "num_workers": 0,
}


def utterance(name, num_samples, epoch=0, error=""):
    row = Row(name, f"/nowhere/{name}.wav", (), num_samples / 16_000)
    generator = torch.Generator().manual_seed(num_samples)
    wav = torch.randn(0 if error else num_samples, generator=generator)
    return Utterance(row, wav, epoch, error)


def collate(seed=1, stage="train"):
    return MaskingCollate(seed=seed, scheme=filled_spans, stage=stage)


def masks_of(batch, utterances):
    """Masked frames and seed of each utterance, by id."""
    return {
        u.row.id: (row.nonzero().flatten().tolist(), seed)
        for u, row, seed in zip(
            utterances,
            batch.masked.span_mask,
            batch.masked.seeds.tolist(),
            strict=True,
        )
    }


UTTERANCES = [
    utterance("a", 16_000),
    utterance("b", 48_000),
    utterance("c", 100),
    utterance("d", 16_000),
]


def test_a_mask_does_not_depend_on_the_batch():
    joint = masks_of(collate()(UTTERANCES), UTTERANCES)
    reversed_order = masks_of(collate()(UTTERANCES[::-1]), UTTERANCES[::-1])
    alone = {}
    for u in UTTERANCES:
        alone |= masks_of(collate()([u]), [u])
    assert joint == reversed_order == alone


@pytest.mark.parametrize(
    ("other", "epoch"),
    [
        (collate(seed=2), 0),
        (collate(stage="valid"), 0),
        (collate(), 1),
    ],
    ids=["seed", "stage", "epoch"],
)
def test_a_mask_depends_on_seed_stage_and_epoch(other, epoch):
    u = utterance("a", 48_000)
    mask, seed = masks_of(collate()([u]), [u])["a"]
    changed = u._replace(epoch=epoch)
    other_mask, other_seed = masks_of(other([changed]), [changed])["a"]
    assert seed != other_seed
    assert mask != other_mask


def test_utterances_of_one_length_have_masks_of_their_own():
    masks = masks_of(collate()(UTTERANCES), UTTERANCES)
    assert masks["a"] != masks["d"]


def test_masks_lie_within_their_utterance():
    batch = collate()(UTTERANCES)
    assert batch.masked.span_mask.shape == (4, num_frames(48_000))
    for row, u in zip(batch.masked.span_mask, UTTERANCES, strict=True):
        frames = num_frames(len(u.wav))
        assert row[:frames].any()
        assert not row[frames:].any()
    assert batch.seconds == pytest.approx((2 * 16_000 + 48_000 + 100) / 16_000)


def test_unreadable_utterances_are_left_out_and_named():
    bad = utterance("bad", 16_000, error="bad.wav is empty")
    batch = collate()([UTTERANCES[0], bad, UTTERANCES[1]])
    expected = collate()(UTTERANCES[:2])
    assert batch.unreadable == ["bad.wav is empty"]
    assert torch.equal(batch.wavs, expected.wavs)
    assert torch.equal(batch.masked.frames, expected.masked.frames)
    assert batch.seconds == expected.seconds


def test_a_batch_without_readable_utterances_still_takes_part():
    batch = collate()([utterance("bad", 9, error="gone")] * 2)
    assert batch.unreadable == ["gone", "gone"]
    assert batch.seconds == 0
    assert not batch.masked.counts.any()  # no negatives, no loss
    # No size of 1, which compiled layers would take for a constant.
    assert batch.masked.span_mask.shape == (2, 2)
    assert num_frames(batch.wavs.shape[1]) == 2


def test_copying_to_a_device_moves_every_tensor():
    batch = collate()(UTTERANCES).to("meta")
    parts = (batch.wavs, batch.wav_lens, *batch.masked)
    tensors = [part for part in parts if torch.is_tensor(part)]
    assert len(tensors) == 7
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def load(given):
    return load_pretraining_data({**SETTINGS, **given})


@pytest.fixture
def manifests(tmp_path):
    """Six files of 1 s for training, two for validation, one damaged."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("valid", 2)):
        rows = []
        for index in range(count):
            path = tmp_path / f"{split}{index}.wav"
            soundfile.write(path, 0.1 * rng.standard_normal(16_000), 16_000)
            rows.append(Row(f"{split}{index}", str(path), (), 1.0))
        write_manifest(tmp_path / f"{split}.csv", rows)
    (tmp_path / "train3.wav").write_bytes(b"no audio")
    return tmp_path


def test_a_damaged_file_is_reported_and_the_others_are_read(manifests):
    data = load({"manifests": manifests})
    data.sampler.set_range(0, 2)  # one epoch: two batches of three
    batches = list(data.train)
    assert sum(len(batch.wavs) for batch in batches) == 5
    (message,) = [text for batch in batches for text in batch.unreadable]
    assert "train3" in message
    assert data.hours == pytest.approx(6 / 3600)


def test_what_a_list_excludes_is_not_read(manifests):
    path = manifests / "quarantine.csv"
    path.write_text("manifest,id\ntrain.csv,train3\nvalid.csv,valid0\n")
    data = load({"manifests": manifests, "exclude": path})
    data.sampler.set_range(0, 2)
    batches = [*data.train, *data.valid]
    assert sum(len(batch.wavs) for batch in batches) == 6
    assert not any(batch.unreadable for batch in batches)
    assert data.hours == pytest.approx(5 / 3600)


def test_validation_is_the_same_every_time(manifests):
    data = load({"manifests": manifests})
    first, again = list(data.valid), list(data.valid)
    assert sum(len(batch.wavs) for batch in first) == 2
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.masked.frames, other.masked.frames)
        assert torch.equal(one.masked.seeds, other.masked.seeds)


def test_training_masks_change_with_the_epoch(manifests):
    data = load({"manifests": manifests})
    data.sampler.set_range(0, 4)
    seeds = torch.cat([batch.masked.seeds for batch in data.train])
    assert len(seeds.unique()) == len(seeds) == 10


def on_two_processes(monkeypatch, rank):
    monkeypatch.setattr(pretraining_data, "rank", lambda: rank)
    monkeypatch.setattr(pretraining_data, "world_size", lambda: 2)


def test_processes_see_different_utterances(manifests, monkeypatch):
    seeds = []
    for rank in range(2):
        on_two_processes(monkeypatch, rank)
        data = load({"manifests": manifests})
        data.sampler.set_range(0, 1)
        seeds += [batch.masked.seeds for batch in data.train]
    seeds = torch.cat(seeds)
    assert len(seeds.unique()) == len(seeds) == 5


def test_too_little_audio_for_an_update_says_what_to_do(manifests, monkeypatch):
    on_two_processes(monkeypatch, 0)
    with pytest.raises(UserError, match="makes 2 batches, but.*takes 4"):
        load({"manifests": manifests, "accumulation": 2})


def test_an_unknown_mask_scheme_lists_the_known_ones(manifests):
    with pytest.raises(UserError, match="stock, fairseq, not 'random'"):
        load({"manifests": manifests, "mask_scheme": "random"})


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match=r"train\.csv"):
        load({"manifests": tmp_path})


def workers(loader):
    return {worker.pid for worker in loader._iterator._workers}


def test_workers_live_from_one_range_of_updates_to_the_next(manifests):
    data = load({"manifests": manifests, "num_workers": 2})
    seen = []
    for start, stop in ((0, 2), (2, 3)):
        data.sampler.set_range(start, stop)
        batches = list(data.train)
        seen.append((len(batches), workers(data.train)))
    (first, before), (second, after) = seen
    assert (first, second) == (2, 1)
    assert before == after and len(before) == 2
    data.close()
    assert not any(map(is_alive, before))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_do_not_keep_a_failed_run_from_ending(manifests):
    """They ignore the signal by which Python would end them."""
    script = (
        "import multiprocessing, sys\n"
        "from tests.unit.training.test_pretraining_data import load\n"
        "data = load({'manifests': sys.argv[1], 'num_workers': 1})\n"
        "data.sampler.set_range(0, 9)\n"
        "for batch in data.train:\n"
        "    print(*[c.pid for c in multiprocessing.active_children()])\n"
        "    raise ValueError\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(manifests)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "ValueError" in done.stderr and done.returncode == 1
    assert not is_alive(int(done.stdout))
