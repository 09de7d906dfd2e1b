"""`summarymixing encode`: folders, manifests and files become features."""

import errno
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from summarymixing import MultiHeadAttention, SummaryMixing, Wav2Vec2Encoder
from summarymixing.cli import main
from summarymixing.data.audio import read_audio
from summarymixing.data.feature_files import FeatureFile
from summarymixing.data.manifest import Row, write_manifest
from summarymixing.pretrained import save_encoder

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _two_seconds_are_long(monkeypatch):
    for module, name in (
        ("wav2vec2", "MAX_SECONDS_AT_ONCE"),
        ("long_audio", "WINDOW_SECONDS"),
    ):
        monkeypatch.setattr(f"summarymixing.lobes.{module}.{name}", 2)
    monkeypatch.setattr("summarymixing.lobes.long_audio.CONTEXT_SECONDS", 0)


@pytest.fixture
def encoder(tmp_path):
    return make_encoder(tmp_path / "encoder")


def make_encoder(folder, mixer=None):
    encoder = Wav2Vec2Encoder(
        mixer=mixer or partial(SummaryMixing, num_heads=2),
        num_layers=2,
        d_model=8,
        d_ffn=16,
        num_mels=20,
        front_end_channels=6,
    )
    save_encoder(encoder, folder)
    return encoder.eval()


def write(path, seconds, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * rate))
    soundfile.write(path, wave, rate)
    return Row("", str(path), (), seconds)


@pytest.fixture
def audio(tmp_path):
    """Return a folder with short, long and damaged files."""
    folder = tmp_path / "audio"
    for name, seconds, rate in (
        ("a.flac", 0.5, 16_000),
        ("sub/b.wav", 1.3, 8000),
        ("sub/long.flac", 4.31, 44_100),
        ("twice.wav", 0.01, 16_000),
        ("twice.flac", 1.9, 16_000),
    ):
        write(folder / name, seconds, rate)
    (folder / "damaged.wav").write_text("no audio")
    return folder


def encode(audio, tmp_path, *options, out="out"):
    """Return the exit status."""
    words = [str(audio), str(tmp_path / out), "--num_workers=0"]
    if not any(word.startswith("--encoder") for word in options):
        words.append(f"--encoder={tmp_path / 'encoder'}")
    with pytest.raises(SystemExit) as caught:
        main(["encode", *words, *options])
    return caught.value.code


@torch.no_grad()
def states_of(encoder, row):
    states = encoder(read_audio(row)[None], torch.ones(1)).hidden_states
    return [state[0] for state in states]


def find(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
    )


LISTS = ["features.json", "recordings.jsonl"]
FILES = {
    "a": "a.flac",
    "sub/b": "sub/b.wav",
    "sub/long": "sub/long.flac",
    "twice.flac": "twice.flac",
    "twice.wav": "twice.wav",
}
SECONDS = {"sub/long": 4.31, "sub/b": 1.3, "twice.flac": 1.9}


def rows_of(audio):
    return {
        name: Row(name, str(audio / file), (), SECONDS.get(name, 0.01))
        for name, file in FILES.items()
    }


def test_a_folder_with_its_names(encoder, audio, tmp_path, capsys):
    assert encode(audio, tmp_path) == 65
    out = tmp_path / "out"
    assert find(out) == sorted(
        [*LISTS, "unreadable.txt", *(f"{name}.safetensors" for name in FILES)]
    )
    for name, row in rows_of(audio).items():
        content = load_file(out / f"{name}.safetensors")
        for layer, state in enumerate(states_of(encoder, row)):
            torch.testing.assert_close(
                content[f"layer_{layer}"], state, rtol=1e-4, atol=1e-4
            )
    assert "damaged.wav" in (out / "unreadable.txt").read_text()
    assert "1 of 6 recordings could not be read" in capsys.readouterr().err
    facts = json.loads((out / "features.json").read_text())
    assert facts["tensors"] == ["layer_0", "layer_1", "layer_2"]
    assert (facts["frames_per_second"], facts["width"]) == (50, 8)
    assert facts["long_recordings"] == "exact"
    lines = (out / "recordings.jsonl").read_text().splitlines()
    entries = {entry["id"]: entry for entry in map(json.loads, lines)}
    assert entries.keys() == FILES.keys()
    assert entries["sub/long"]["frames"] == 216


def test_the_mean_as_npy_in_fp16(encoder, audio, tmp_path):
    (audio / "damaged.wav").unlink()
    options = ("--layers=mean", "--format=npy", "--dtype=fp16")
    assert encode(audio, tmp_path, *options) == 0
    for name, row in rows_of(audio).items():
        mean = torch.stack(states_of(encoder, row)).mean(0)
        found = np.load(tmp_path / "out" / f"{name}.npy", mmap_mode="r")
        assert found.dtype == np.float16 and len(found) == 1
        np.testing.assert_allclose(found[0], mean, atol=2e-3)


def test_a_manifest_with_segments(encoder, audio, tmp_path):
    path = str(audio / "sub/long.flac")
    rows = [
        Row("spk-1", path, ((1.0, 1.5), (3.0, 3.75)), 1.25),
        Row("spk/2", path, ((0.5, 1.0), (1.0, 4.0)), 3.5),
    ]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    options = ("--layers=2,0", "--memory=10MB", "--block_seconds=0.5")
    assert encode(manifest, tmp_path, *options) == 0
    for row in rows:
        content = load_file(tmp_path / "out" / f"{row.id}.safetensors")
        assert sorted(content) == ["layer_0", "layer_2"]
        state = states_of(encoder, row)[2]
        torch.testing.assert_close(
            content["layer_2"], state, rtol=1e-4, atol=1e-4
        )


def test_the_same_command_goes_on(encoder, audio, tmp_path, capsys):
    (audio / "damaged.wav").unlink()
    out = tmp_path / "out"
    assert encode(audio, tmp_path) == 0
    before = {name: (out / name).stat().st_mtime_ns for name in find(out)}
    assert encode(audio, tmp_path) == 0
    assert "0 recordings" in capsys.readouterr().err
    # As a kill may leave it: a line cut off, a file lost, a recording changed.
    (out / "a.safetensors").unlink()
    write(audio / "sub/b.wav", 1.1)
    write(audio / "new.wav", 0.3)
    with open(out / "recordings.jsonl", "a") as file:
        file.write('{"id": "sub')
    assert encode(audio, tmp_path) == 0
    after = {name: (out / name).stat().st_mtime_ns for name in find(out)}
    changed = {name for name in after if before.get(name) != after[name]}
    files = {"a.safetensors", "new.safetensors", "sub/b.safetensors"}
    assert changed == {*files, "recordings.jsonl"}


def test_other_settings_are_refused(encoder, audio, tmp_path, capsys):
    encode(audio, tmp_path)
    before = find(tmp_path / "out")
    assert encode(audio, tmp_path, "--layers=1") == 2
    error = capsys.readouterr().err
    assert "tensors" in error and "another folder OUT" in error
    make_encoder(tmp_path / "encoder")
    assert encode(audio, tmp_path) == 2
    assert "encoder_digest" in capsys.readouterr().err
    assert find(tmp_path / "out") == before


def test_attention_says_that_it_is_approximate(audio, tmp_path):
    make_encoder(tmp_path / "encoder", partial(MultiHeadAttention, num_heads=2))
    assert encode(audio / "sub/long.flac", tmp_path) == 0
    out = tmp_path / "out"
    facts = json.loads((out / "features.json").read_text())
    assert facts["long_recordings"].startswith("approximate")
    assert not json.loads((out / "recordings.jsonl").read_text())["exact"]
    assert load_file(out / "long.safetensors")["layer_2"].shape == (216, 8)


def test_log_mel_has_one_layer(audio, tmp_path):
    options = ("--encoder=log_mel", "--layers=0")
    assert encode(audio / "a.flac", tmp_path, *options) == 0
    content = load_file(tmp_path / "out" / "a.safetensors")
    assert content["layer_0"].shape == (26, 160)


def test_a_full_disk_ends_in_one_message(
    encoder, audio, tmp_path, capsys, monkeypatch
):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FeatureFile, "write", fail)
    assert encode(audio, tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "free some space" in error
    assert find(tmp_path / "out") == ["features.json"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--layers=3", "0 (the input of the first) to 2"),
        ("--layers=1,1", "must be all, mean, or numbers"),
        ("--layers=last", "must be all, mean, or numbers"),
        ("--memory=2", "10MB or more"),
        ("--memory=much", "10MB or more"),
        ("--device=abacus", "--device=abacus cannot be used here"),
        ("--mixer=nowhere.Mixer", "cannot be imported"),
        ("--encoder=nowhere/at/all", "holds no encoder"),
    ],
)
def test_mistakes_are_explained(
    option, message, encoder, audio, tmp_path, capsys
):
    assert encode(audio, tmp_path, option) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nothing", "encoder"])
def test_no_audio_is_explained(name, encoder, tmp_path, capsys):
    assert encode(tmp_path / name, tmp_path) == 2
    assert f"There is no {'' if name == 'nothing' else 'audio'}" in (
        capsys.readouterr().err
    )


def test_ids_do_not_lead_out_of_the_folder(encoder, audio, tmp_path, capsys):
    row = Row("../../a", str(audio / "a.flac"), (), 0.5)
    manifest = write_manifest(tmp_path / "m.csv", [row])
    assert encode(manifest, tmp_path) == 2
    assert "outside of" in capsys.readouterr().err


def test_help_names_commands_and_options(capsys):
    for words, shown in (
        (["--help"], "encode"),
        (["encode", "-h"], "--layers"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert shown in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["decode"])


HEAVY = "speechbrain torchaudio transformers hyperpyyaml scipy matplotlib"
PROGRAM = f"""
import sys
import torch
for name in {HEAVY.split()!r}:
    sys.modules[name] = None  # to import it fails
from summarymixing.cli import main
main(sys.argv[1:])
"""


def test_encoding_needs_no_heavy_packages(encoder, audio, tmp_path):
    words = [audio / "sub/../a.flac", tmp_path / "out", "--num_workers=0"]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "encode", *words]
        + [f"--encoder={tmp_path / 'encoder'}"],
        check=True,
        cwd=ROOT,
    )
    assert (tmp_path / "out/a.safetensors").is_file()
