"""Probes that encode once: the same numbers, and each utterance only once."""

import errno
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Barrier

import pytest
import torch

from summarymixing import Wav2Vec2Encoder
from summarymixing.data.state_store import StateStore
from summarymixing.errors import UserError
from summarymixing.lobes.encoders import (
    FrozenEncoder,
    LogMelEncoder,
    load_frozen_encoder,
)
from summarymixing.nnet.attention import RotaryAttention
from summarymixing.pretrained import save_encoder
from summarymixing.run.hparams_file import load_hparams
from summarymixing.run.stopping import Stopped
from summarymixing.training import encode_once as module
from summarymixing.training.probe import make_brain, probe

RUN_OPTIONS = {"device": "cpu", "noprogressbar": True}
SPLITS = {"train": 7, "valid": 3, "test": 4}
TOTAL = sum(SPLITS.values())


@pytest.fixture(scope="module")
def material(tmp_path_factory, write_split):
    """Return a folder with an encoder and three manifests."""
    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    for split, num_utterances in SPLITS.items():
        classes = [f"class {i % 2}" for i in range(num_utterances)]
        write_split(folder, split, [{"scenario": name} for name in classes])
    encoder = Wav2Vec2Encoder(
        num_layers=2, d_model=16, d_ffn=32, front_end_channels=8, num_mels=20
    )
    save_encoder(encoder, folder / "encoder")
    return folder


@pytest.fixture
def make(material, tmp_path):
    """Return a function that builds the settings of a run."""

    def settings(name, **overrides):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        chosen = {
            "encoder": str(material / "encoder"),
            "manifests": str(material),
            "output_folder": str(folder),
            "cache_folder": str(tmp_path / "states"),
            "valid_split": "valid",
            "test_splits": ["test"],
            "number_of_epochs": 2,
            "batch_size": 3,
            "order": "random",
            "num_workers": 0,
        }
        text = json.dumps({**chosen, **overrides})
        return load_hparams("mp3s/slurp_linear.yaml", text)

    return settings


@pytest.fixture
def encoded(monkeypatch):
    """Return the number of samples of each utterance that was encoded."""
    seen, encode = [], FrozenEncoder.encode

    def spy(self, wav):
        if len(wav) != 32_000:  # the signal of its identity
            seen.append(len(wav))
        return encode(self, wav)

    monkeypatch.setattr(FrozenEncoder, "encode", spy)
    return seen


@pytest.fixture
def run(make, tmp_path):
    """Return a function that runs a probe; it returns log and metrics."""

    def run_probe(name, **overrides):
        probe(make(name, **overrides), RUN_OPTIONS)
        folder = tmp_path / name
        return (folder / "log.jsonl").read_text(), json.loads(
            (folder / "metrics.json").read_text()
        )

    return run_probe


@pytest.fixture
def fill(make):
    """Return a function that does what a probe does before it learns."""

    def encode(name="run", *, task_adapts=False, **overrides):
        hparams = make(name, **overrides)
        if task_adapts:
            hparams["task"].adapts = lambda: True
        brain = make_brain(hparams, RUN_OPTIONS)
        brain.encode_once()
        return brain.data

    return encode


def is_stored(loader):
    return next(iter(loader)).encoded is not None


def stored_splits(data):
    loaders = {"train": data.train, "valid": data.valid, **data.tests}
    data.sampler.set_range(0, 1)
    return {name for name, loader in loaders.items() if is_stored(loader)}


def test_numbers_are_those_without_a_cache(run, encoded):
    without = run("without", cache_features="off")
    assert len(encoded) == 2 * (SPLITS["train"] + SPLITS["valid"]) + 4
    encoded.clear()
    assert run("with") == without
    assert len(encoded) == TOTAL


def test_others_of_the_corpus_encode_nothing(fill, encoded):
    assert stored_splits(fill("first")) == set(SPLITS)
    assert len(encoded) == TOTAL
    encoded.clear()
    for name, change in {
        "same": {},
        "seed": {"seed": 7},
        "batches": {"batch_size": 2, "order": "ascending"},
        "learning": {"learning_rate": 1.0, "number_of_epochs": 1},
        "splits": {"valid_split": "test", "test_splits": ["valid"]},
    }.items():
        fill(name, **change)
    assert not encoded


def test_an_utterance_does_not_see_its_batch(make):
    encoder = load_frozen_encoder(make("run"))
    lengths = [16_000, 11_111]
    wavs, wav_lens = torch.randn(2, 16_000) * 0.1, torch.tensor(lengths) / 16e3
    out = encoder(wavs, wav_lens)
    for number, length in enumerate(lengths):
        alone = encoder.encode(wavs[number, :length])
        num_frames = alone.shape[1]
        assert torch.equal(out.hidden_states[:, number, :num_frames], alone)
        assert (out.hidden_states[:, number, num_frames:] == 0).all()
    encoder.alone = False
    batch = encoder(wavs, wav_lens)
    assert torch.equal(batch.padding_mask, out.padding_mask)
    torch.testing.assert_close(
        torch.stack(batch.hidden_states), out.hidden_states
    )


def test_half_precision_is_near_and_the_same_each_time(fill):
    batches = [
        next(iter(fill(cache_dtype=dtype).valid)).encoded.hidden_states
        for dtype in ("float32", "float16", "float16")
    ]
    exact, first, second = batches
    assert first.dtype == torch.float16 and torch.equal(first, second)
    torch.testing.assert_close(first.float(), exact, rtol=2**-11, atol=1e-7)


def test_states_beyond_half_precision_are_refused(fill, monkeypatch):
    encode = FrozenEncoder.encode
    monkeypatch.setattr(
        FrozenEncoder, "encode", lambda self, wav: 1e6 * encode(self, wav)
    )
    with pytest.raises(UserError, match="--cache_dtype=float32"):
        fill(cache_dtype="float16")


def test_random_windows_are_encoded_each_time(fill, encoded):
    data = fill(task_adapts=True)
    assert len(encoded) == TOTAL - SPLITS["train"]
    assert stored_splits(data) == {"valid", "test"}


def test_less_than_an_epoch_does_not_encode_all_of_training(fill, encoded):
    assert stored_splits(fill(max_updates=2)) == {"valid", "test"}
    assert "train" in stored_splits(fill(max_updates=3))


# What prevents it.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_train_mode": True}, "give --encoder_train_mode=False"),
        ({"encode_alone": False}, "give --encode_alone=True"),
        ({"cache_folder": "/proc/states"}, "/proc/states"),
        ({}, "take more than .*the 0.0 MB free in .*float16"),
    ],
)
def test_on_is_a_must_and_auto_goes_without(
    fill, change, message, monkeypatch, caplog, encoded
):
    if not change:
        monkeypatch.setattr(module, "free_bytes", lambda folder: 2000)
    with pytest.raises(UserError, match=message):
        fill(cache_features="on", **change)
    with caplog.at_level(logging.WARNING):
        data = fill(cache_features="auto", **change)
    said = [r for r in caplog.records if "every epoch" in r.getMessage()]
    assert len(said) == 1
    assert not encoded and not stored_splits(data)


def test_auto_stores_the_splits_that_fit(fill, monkeypatch, caplog):
    size = 3 * 16 * 4 * 120  # bytes of 2.4 s; tests have 2.6 s
    monkeypatch.setattr(module, "free_bytes", lambda folder: 2 * size)
    with caplog.at_level(logging.WARNING):
        data = fill()
    assert stored_splits(data) == {"valid"}
    assert re.search(r"of training \(.*\), test test \(.*\) take", caplog.text)


@pytest.mark.parametrize(
    ("key", "value"), [("cache_features", "yes"), ("cache_dtype", "int8")]
)
def test_unknown_choice_is_named(make, key, value):
    with pytest.raises(UserError, match=f"{key} must be one of"):
        make_brain(make("run", **{key: value}), RUN_OPTIONS)


@pytest.mark.parametrize("value", [False, "off"])
def test_off_writes_nothing(fill, tmp_path, value):
    fill(cache_features=value)
    assert not (tmp_path / "states").exists()


# What is interrupted, and who else writes.


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(module, "FILE_UTTERANCES", 2)


def test_killed_run_has_encoded_what_is_whole(
    fill, encoded, small_files, monkeypatch, tmp_path
):
    write = StateStore.write

    def killed(self, states):
        if len(encoded) == 6:
            raise KeyboardInterrupt
        return write(self, states)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(StateStore, "write", killed)
        fill()
    assert len(encoded) == 6
    encoded.clear()
    assert stored_splits(fill()) == set(SPLITS)
    assert len(encoded) == TOTAL - 4
    assert not list(tmp_path.glob("states/*/*.lock"))


def test_stop_keeps_what_is_written(fill, encoded, small_files, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(module, "stop_requested", lambda: len(encoded) == 5)
        fill()
    encoded.clear()
    fill()
    assert len(encoded) == TOTAL - 4


def test_full_disk_costs_the_cache_and_not_the_run(
    fill, small_files, monkeypatch, caplog, tmp_path
):
    write, written = StateStore.write, []

    def full(self, states):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "states/x")
        written.append(write(self, states))
        return written[-1]

    monkeypatch.setattr(StateStore, "write", full)
    with caplog.at_level(logging.WARNING):
        assert not stored_splits(fill())
    assert caplog.text.count("No space left on device") == 1
    assert not list(tmp_path.glob("states/*/*.safetensors"))
    written.clear()
    with pytest.raises(UserError, match="No space left"):
        fill(cache_features="on")


def test_unreadable_audio_is_named(fill, material, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    for split in SPLITS:
        text = (material / f"{split}.csv").read_text()
        text = text.replace(str(material / "train-2.wav"), str(broken))
        (tmp_path / f"{split}.csv").write_text(text)
    with pytest.raises(UserError, match="broken.wav cannot be read"):
        fill(manifests=str(tmp_path))


def test_two_writers_share_the_work(make, encoded, small_files, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    brains = [make_brain(make(name), RUN_OPTIONS) for name in "ab"]
    start = Barrier(2)

    def encode(brain):
        start.wait()
        brain.encode_once()
        return next(iter(brain.data.valid)).encoded.hidden_states

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(encode, brains)
    assert len(encoded) == TOTAL
    assert torch.equal(first, second)


# Whose states they are.


def make_encoder(num_heads):
    torch.manual_seed(0)
    return Wav2Vec2Encoder(
        num_layers=1,
        d_model=16,
        d_ffn=32,
        num_mels=20,
        front_end_channels=8,
        mixer=partial(RotaryAttention, num_heads=num_heads),
    )


def test_identity_tells_what_weights_do_not():
    encoder = make_encoder(num_heads=2)
    given = FrozenEncoder(encoder).identity()
    assert given == json.loads(json.dumps(FrozenEncoder(encoder).identity()))
    for other in (
        FrozenEncoder(make_encoder(num_heads=4)),
        FrozenEncoder(encoder, precision="bf16"),
    ):
        found = other.identity()
        assert found["weights"] == given["weights"]
        assert found["signal"] != given["signal"]
    random = FrozenEncoder(encoder.untrained_twin()).identity()
    assert random["weights"] != given["weights"]
    assert FrozenEncoder(LogMelEncoder()).identity()["class"] == "LogMelEncoder"
