"""From item files and audio to errors by layer."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch

from summarymixing import Wav2Vec2Encoder
from summarymixing.cli import main
from summarymixing.errors import UserError
from summarymixing.evaluation import items
from summarymixing.evaluation.items import ItemSet, score_codes, score_layers
from summarymixing.lobes.wav2vec2 import Wav2Vec2Output
from summarymixing.nnet.quantiser import GumbelQuantiser
from summarymixing.pretrained import save_encoder

HEADER = "#file onset offset #phone prev-phone next-phone speaker\n"
PITCHES = {"low": 300, "high": 1500}  # Hz
RATE = 16_000


def tone(pitch, seconds, seed):
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    noise = 0.02 * rng.standard_normal(len(times))
    return 0.3 * np.sin(2 * np.pi * pitch * times) + noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two speakers say two "phones" in turn, in files of several lengths."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for number, speaker in enumerate(["ann", "bob"] * 3):
        parts, seconds = [], 0.0
        for place in range(4 + number % 3):
            phone = list(PITCHES)[place % 2]
            pitch = PITCHES[phone] * (1.1 if speaker == "bob" else 1)
            parts.append(tone(pitch, 0.2, seed=10 * number + place))
            lines.append(
                f"f{number} {seconds:.4f} {seconds + 0.2:.4f} {phone} x y "
                f"{speaker}\n"
            )
            seconds += 0.2
        (folder / speaker).mkdir(exist_ok=True)
        path = folder / speaker / f"f{number}.wav"
        soundfile.write(path, np.concatenate(parts), RATE)
    (folder / "tones.item").write_text(HEADER + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    torch.manual_seed(0)
    encoder = Wav2Vec2Encoder(
        num_layers=2, d_model=8, d_ffn=8, kernel_size=3, front_end_channels=6
    )
    quantiser = GumbelQuantiser(6, num_groups=2, num_codes=4, target_dim=4)
    folder = tmp_path_factory.mktemp("run") / "encoder"
    return save_encoder(encoder, folder, quantiser=quantiser)


def read(corpus, audio=None):
    return ItemSet.read(corpus / "tones.item", audio or corpus)


class Spectrum(torch.nn.Module):
    """Frames of 20 ms: how loud below and above 900 Hz; counts batches."""

    calls = 0

    def forward(self, wavs, wav_lens):
        self.calls += 1
        counts = (wav_lens * wavs.shape[1] / 320).round().long()
        wavs = torch.nn.functional.pad(wavs, (0, 320 * int(counts.max())))
        frames = wavs[:, : 320 * int(counts.max())].unflatten(1, (-1, 320))
        magnitudes = torch.fft.rfft(frames).abs().split([18, 143], dim=-1)
        states = torch.stack([m.amax(dim=-1) for m in magnitudes], dim=-1)
        padding_mask = torch.arange(states.shape[1]) >= counts[:, None]
        states[padding_mask] = math.nan
        return Wav2Vec2Output([0 * states + 1, states], padding_mask)


def test_features_that_know_the_phones_make_no_error(corpus):
    errors = dict(score_layers(Spectrum(), read(corpus), [0, 1]))
    assert errors[0] == (0.5, 0.5)  # constant features know nothing
    assert errors[1] == (0, 0)


def test_items_take_their_own_frames(corpus, tmp_path):
    """Phones under each other's times are the other phone."""
    item_set = read(corpus)
    swapped = {"low": "high", "high": "low"}
    mixed = [
        item._replace(phone=swapped[item.phone])
        if item.file in ("f0", "f1")
        else item
        for item in item_set.items
    ]
    wrong = ItemSet(mixed, item_set.recordings, 0)
    ((_, errors),) = score_layers(Spectrum(), wrong, [1])
    assert min(errors) > 0.2


@pytest.mark.parametrize("layers_at_a_time", [1, 2])
def test_layers_that_do_not_fit_are_encoded_again(layers_at_a_time, corpus):
    encode = Spectrum()
    errors = score_layers(
        encode, read(corpus), [0, 1], layers_at_a_time=layers_at_a_time
    )
    assert dict(errors)[1] == (0, 0)
    assert encode.calls == 2 // layers_at_a_time


def test_batches_change_nothing(corpus, encoder_folder, monkeypatch):
    encoder = Wav2Vec2Encoder.from_pretrained(encoder_folder)
    layers = range(3)

    @torch.no_grad()
    def encode(*arguments):
        return encoder(*arguments)

    together = dict(score_layers(encode, read(corpus), layers))
    monkeypatch.setattr(items, "SECONDS_AT_A_TIME", 0.0)
    alone = dict(score_layers(encode, read(corpus), layers))
    for layer in layers:
        assert alone[layer] == pytest.approx(together[layer], abs=1e-3)


def test_the_last_frame_may_be_missing(corpus):
    class Short(Spectrum):
        def forward(self, wavs, wav_lens):
            states, padding_mask = super().forward(wavs, wav_lens)
            counts = (~padding_mask).sum(dim=1) - 1
            return Wav2Vec2Output(
                states, torch.arange(states[0].shape[1]) >= counts[:, None]
            )

    assert dict(score_layers(Short(), read(corpus), [1]))[1] == (0, 0)


def test_states_that_are_not_finite_are_refused(corpus):
    def encode(*arguments):
        states, padding_mask = Spectrum()(*arguments)
        return Wav2Vec2Output([states[1] * math.inf], padding_mask)

    with pytest.raises(UserError, match="layer 0 has NaN"):
        dict(score_layers(encode, read(corpus), [0]))


def test_codes_of_frames_belong_to_the_phones_of_their_items(corpus):
    """A quantiser that tells the pitch knows the phone of each frame."""
    item_set = read(corpus)

    class Pitch(torch.nn.Module):
        def extract(self, wavs, wav_lens):
            states, padding_mask = Spectrum()(wavs, wav_lens)
            return states[1], padding_mask

    quantiser = GumbelQuantiser(2, num_groups=2, num_codes=2, target_dim=2)
    with torch.no_grad():
        quantiser.to_logits.weight.zero_()
        quantiser.to_logits.weight[2:] = torch.eye(2)  # of the second group
    scores = score_codes(Pitch(), quantiser, item_set)
    assert scores.codes[:3] == pytest.approx((1, 1, 1))
    assert scores.groups[0].pnmi == pytest.approx(0)
    assert scores.groups[1].pnmi == pytest.approx(1)
    longer = [
        item._replace(offset_s=item.offset_s + item.onset_s / 4)
        for item in item_set.items
    ]
    overlapping = ItemSet(longer, item_set.recordings, 0)
    with pytest.raises(UserError, match="overlap"):
        score_codes(Pitch(), quantiser, overlapping)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone 0.1 0.2 low x y ann\n", "gone"),
        ("f0 0.7 0.9 low x y ann\n", "'low' of f0 ends at 0.9 s"),
    ],
)
def test_items_of_other_recordings_are_refused(line, message, corpus, tmp_path):
    path = tmp_path / "wrong.item"
    path.write_text(HEADER + line)
    with pytest.raises(UserError, match=message):
        ItemSet.read(path, corpus)


def test_items_shorter_than_a_frame_are_left_out_and_counted(corpus, tmp_path):
    path = tmp_path / "short.item"
    text = (corpus / "tones.item").read_text()
    path.write_text(
        text + "f0 0.0100 0.0101 low x y ann\nf0 0 0.009 low x y ann\n"
    )
    assert ItemSet.read(path, corpus).left_out == 1
    path.write_text(HEADER + "f0 0 0.009 low x y ann\n")
    with pytest.raises(UserError, match="in seconds"):
        ItemSet.read(path, corpus)


def command(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["abx", *map(str, words)])
    shown = capsys.readouterr()
    assert not ended.value.code, shown.err
    return shown.out


def test_the_command_prints_and_writes_all_layers(
    corpus, encoder_folder, tmp_path, capsys
):
    out = tmp_path / "new" / "abx.json"
    words = encoder_folder, corpus / "tones.item", corpus, "--device=cpu"
    shown = command(capsys, *words, "--codes", f"--out={out}")
    written = json.loads(out.read_text())
    assert [row["layer"] for row in written["layers"]] == [0, 1, 2]
    for row in written["layers"]:
        assert f"{row['layer']:>5} {row['within']:8.2f}" in shown
    assert written["codes"]["all"]["used"] >= 1
    assert written["num_items"] == 30
    chosen = command(capsys, *words, "--layers=2", "--memory=10MB")
    assert chosen.splitlines()[-1].split()[0] == "2"


def test_the_command_takes_log_mel_and_random_weights(
    corpus, encoder_folder, capsys
):
    words = corpus / "tones.item", corpus, "--device=cpu"
    mel = command(capsys, "log_mel", *words)
    assert mel.splitlines()[-1].split() == ["0", "0.00*", "0.00*"]
    trained = command(capsys, encoder_folder, *words, "--pooled")
    random = command(capsys, encoder_folder, *words, "--pooled", "--random")
    assert trained != random


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers=9"], "has the layers 0"),
        (["--layers=top"], "or numbers as in 6,12"),
        (["--layers=mean"], "no ABX error"),
        (["--random", "--codes"], "has no codes"),
    ],
)
def test_mistakes_in_the_command_are_explained(
    words, message, corpus, encoder_folder, capsys
):
    given = [str(encoder_folder), str(corpus / "tones.item"), str(corpus)]
    with pytest.raises(SystemExit):
        main(["abx", *given, "--device=cpu", *words])
    assert message in capsys.readouterr().err
