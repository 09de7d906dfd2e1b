"""`summarymixing transcribe`: words and times, in every format."""

import json
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from summarymixing import SummaryMixing, Wav2Vec2Encoder
from summarymixing.cli import main
from summarymixing.data.audio import read_audio
from summarymixing.data.manifest import Row, write_manifest
from summarymixing.lobes.heads import HiddenLayerHead
from summarymixing.pretrained import save_encoder
from summarymixing.training.ctc import decode_greedily
from summarymixing.training.recogniser import save_recogniser
from summarymixing.training.tokenizers import CharacterTokenizer

RATE = 16_000


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """Return a model that babbles, and a function that decodes at once."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    encoder = Wav2Vec2Encoder(
        mixer=partial(SummaryMixing, num_heads=2),
        num_layers=2,
        d_model=8,
        d_ffn=16,
        num_mels=20,
        front_end_channels=6,
    ).eval()
    tokenizer = CharacterTokenizer(["ab cde"])
    make_head = partial(HiddenLayerHead, hidden_size=32, activation=nn.Tanh)
    head = make_head(8, len(tokenizer.tokens)).eval()
    with torch.no_grad():
        head.linear.w.weight.mul_(20)  # so that frames differ
        head.linear.w.bias[tokenizer.encode(" ")[0]] += 3  # some words
    save_encoder(encoder, folder / "encoder")
    assert not save_recogniser(folder, head, make_head, tokenizer)

    @torch.no_grad()
    def decode(path, seconds):
        wav = read_audio(Row("", str(path), (), seconds))[None]
        states = encoder(wav, torch.ones(1)).hidden_states[-1]
        no_padding = torch.zeros(states.shape[:2], dtype=torch.bool)
        logits = head(states, no_padding)
        return decode_greedily(logits, no_padding, tokenizer)[0].split()

    return folder, decode


@pytest.fixture
def audio(tmp_path):
    """Return a folder with three recordings, one of them damaged."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio/sub").mkdir(parents=True)
    for name, seconds in (("a.flac", 1.0), ("sub/b.wav", 7.0)):
        noise = rng.uniform(-0.3, 0.3, int(seconds * RATE))
        # Bursts, so that there is more than one letter in it.
        noise *= np.repeat(rng.uniform(0, 1, len(noise) // 800 + 1), 800)[
            : len(noise)
        ]
        soundfile.write(tmp_path / "audio" / name, noise, RATE)
    (tmp_path / "audio/bad.wav").write_text("not audio")
    return tmp_path / "audio"


@pytest.fixture
def transcribe(recogniser, capfd):
    """Run the command; returns status, output and errors."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "transcribe",
                    *map(str, words),
                    f"--model={recogniser[0]}",
                    "--device=cpu",
                ]
            )
        return end.value.code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    "block", [[], ["--block_seconds=0.5"], ["--window_seconds=8"]]
)
def test_text_is_that_of_one_pass(recogniser, audio, transcribe, block):
    expected = recogniser[1](audio / "sub/b.wav", 7.0)
    assert len(expected) > 3
    status, output, _ = transcribe(audio / "sub/b.wav", *block)
    assert (status, output.split()) == (0, expected)
    assert output.count("\n") == 1


def test_a_folder_on_the_screen_is_a_table_of_texts(
    recogniser, audio, transcribe
):
    status, output, errors = transcribe(audio)
    assert status == 65
    assert "left out" in errors and "bad.wav" in errors
    lines = dict(line.split("\t") for line in output.splitlines())
    assert lines.keys() == {"a", "sub/b"}
    assert lines["a"].split() == recogniser[1](audio / "a.flac", 1.0)


def test_every_format_has_the_same_words(
    recogniser, audio, transcribe, tmp_path
):
    expected = recogniser[1](audio / "sub/b.wav", 7.0)
    written = {}
    for suffix in ("txt", "json", "srt", "ctm"):
        path = tmp_path / f"b.{suffix}"
        assert transcribe(audio / "sub/b.wav", f"--out={path}")[0] == 0
        written[suffix] = path.read_text("utf-8")
    assert written["txt"].split() == expected
    about = json.loads(written["json"])
    assert [word["word"] for word in about["words"]] == expected
    assert about["seconds"] == 7.0
    times = [
        t for word in about["words"] for t in (word["start"], word["stop"])
    ]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= 7.02
    rows = [line.split() for line in written["ctm"].splitlines()]
    assert [row[4] for row in rows] == expected
    for row, word in zip(rows, about["words"], strict=True):
        assert float(row[2]) == word["start"]
        assert float(row[2]) + float(row[3]) == pytest.approx(word["stop"])
    blocks = [block.splitlines() for block in written["srt"].split("\n\n")]
    assert " ".join(block[2] for block in blocks).split() == expected
    assert blocks[0][0] == "1"
    assert blocks[0][1].startswith("00:00:00,")


def test_a_folder_goes_on(audio, transcribe, tmp_path):
    out = tmp_path / "texts"
    status, _, errors = transcribe(audio, f"--out={out}", "--format=ctm")
    assert status == 65 and "2 of 2 recordings" in errors
    (out / "a.ctm").unlink()
    (out / "sub/b.ctm").write_text("mine")
    _, _, errors = transcribe(audio, f"--out={out}", "--format=ctm")
    assert "1 of 2 recordings" in errors
    assert (out / "a.ctm").exists()
    assert (out / "sub/b.ctm").read_text() == "mine"
    status, _, errors = transcribe(audio, f"--out={out}", "--format=json")
    assert status == 2 and "other options" in errors


def test_windows_hear_no_more_than_they_should(
    recogniser, audio, transcribe, monkeypatch
):
    """Without context, they are recordings of their own."""
    monkeypatch.setattr("summarymixing.cli.transcripts.CONTEXT_SECONDS", 0.0)
    noise, _ = soundfile.read(audio / "sub/b.wav")
    expected = []
    for start, stop in ((0, 4), (4, 7)):
        part = audio / f"{start}.wav"
        soundfile.write(part, noise[start * RATE : stop * RATE], RATE)
        expected += recogniser[1](part, stop - start)
    _, output, _ = transcribe(audio / "sub/b.wav", "--window_seconds=4")
    # Frames at the seam may join two words, or drop a letter said twice.
    assert abs(len(output.split()) - len(expected)) <= 2
    assert output.split()[:5] == expected[:5]


def test_a_manifest_is_taken(recogniser, audio, transcribe, tmp_path):
    row = Row("one", str(audio / "sub/b.wav"), ((2.0, 4.0),), 2.0)
    manifest = write_manifest(tmp_path / "m.csv", [row])
    status, output, _ = transcribe(manifest)
    assert status == 0 and output.startswith("one\t")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audio", "--out=audio/a.flac"], "give a folder for several"),
        (["audio/a.flac", "--out=audio"], "give a file for one"),
        (["audio", "--format=srt"], "give --out=FOLDER"),
        (["nowhere"], "There is no nowhere"),
        (["audio/a.flac", "--kenlm=no.arpa"], "no language model no.arpa"),
        (["audio/a.flac", "--window_seconds=0"], "must be at least 1"),
        (["audio/a.flac", "--mixer=nothing"], "cannot be imported"),
    ],
)
def test_mistakes_are_explained(audio, transcribe, monkeypatch, words, message):
    monkeypatch.chdir(audio.parent)
    status, _, errors = transcribe(*words)
    assert status == 2
    assert message in errors.replace("\n", " ")
    assert "Traceback" not in errors
