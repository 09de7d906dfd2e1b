"""A recogniser on disk, and words with their times."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from summarymixing import Wav2Vec2Encoder
from summarymixing.errors import UserError
from summarymixing.lobes.heads import HiddenLayerHead, LSTMHead
from summarymixing.pretrained import save_encoder
from summarymixing.training.ctc import BeamSearch, decode_greedily
from summarymixing.training.recogniser import (
    beam_words,
    cut_at_blanks,
    frame_scores,
    greedy_words,
    load_recogniser,
    save_recogniser,
)
from summarymixing.training.tokenizers import (
    UNKNOWN,
    BpeTokenizer,
    CharacterTokenizer,
)

TEXTS = ["bad cab", "dab a bad", "ab da", "bac"]
HEAD = partial(
    HiddenLayerHead, hidden_size=6, num_layers=2, activation=nn.LeakyReLU
)
LSTM_HEAD = partial(LSTMHead, hidden_size=4, num_layers=1, dropout=0.0)


def make_tokenizer(kind, folder):
    if kind == "characters":
        return CharacterTokenizer(TEXTS, folder)
    return BpeTokenizer(TEXTS, folder, vocab_size=9)


def write_recogniser(folder, make_head=HEAD, kind="characters"):
    tokenizer = make_tokenizer(kind, folder)
    encoder = Wav2Vec2Encoder(
        num_layers=1, d_model=8, d_ffn=16, num_mels=20, front_end_channels=6
    )
    head = make_head(8, len(tokenizer.tokens))
    save_encoder(encoder, folder / "encoder")
    assert not save_recogniser(folder, head, make_head, tokenizer)
    return head.eval(), tokenizer


@pytest.mark.parametrize("kind", ["characters", "bpe"])
@pytest.mark.parametrize(
    "make_head",
    [HEAD, partial(LSTMHead, hidden_size=4, num_layers=1, dropout=0.0)],
)
def test_what_is_saved_is_loaded(tmp_path, kind, make_head):
    head, tokenizer = write_recogniser(tmp_path, make_head, kind)
    encoder, loaded, other = load_recogniser(tmp_path)
    states = list(torch.randn(3, 5, encoder.d_model))
    no_padding = torch.zeros(1, 15, dtype=torch.bool)
    expected = head(torch.cat(states)[None], no_padding)[0]
    found = torch.cat(list(frame_scores(loaded, states)))
    torch.testing.assert_close(found, expected)
    assert not encoder.training and not loaded.training
    assert other.encode("cab x") == tokenizer.encode("cab x")


def test_what_cannot_be_described_is_not_written(tmp_path):
    write_recogniser(tmp_path)
    tokenizer = CharacterTokenizer(TEXTS)
    make_head = partial(HiddenLayerHead, hidden_size=2, activation=lambda: None)
    reason = save_recogniser(tmp_path, nn.Linear(1, 1), make_head, tokenizer)
    assert "no class of torch.nn" in reason
    assert "none of HiddenLayerHead" in save_recogniser(
        tmp_path, nn.Linear(1, 1), nn.Linear, tokenizer
    )
    with pytest.raises(UserError, match=r"holds no recogniser\.json"):
        load_recogniser(tmp_path)


def change(folder, kind):
    path = folder / "recogniser.json"
    about = json.loads(path.read_text())
    if kind == "head":
        about["head"]["class"] = "os.system"
    elif kind == "activation":
        about["head"]["activation"] = "os.system"
    elif kind == "function":
        about["head"]["activation"] = "factory_kwargs"
    elif kind == "size":
        about["head"]["hidden_size"] = 7
    elif kind == "version":
        about["version"] = 2
    elif kind == "tokens":
        about["tokens"] = about["tokens"][::-1]
    elif kind == "weights":
        weights = folder / "head.safetensors"
        weights.write_bytes(weights.read_bytes()[:50])
    path.write_text("{" if kind == "json" else json.dumps(about))


@pytest.mark.parametrize(
    "kind",
    [
        "head",
        "activation",
        "function",
        "size",
        "version",
        "tokens",
        "weights",
        "json",
    ],
)
def test_a_damaged_folder_is_one_message(tmp_path, kind):
    write_recogniser(tmp_path)
    change(tmp_path, kind)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_recogniser(tmp_path)


def test_other_folders_are_explained(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        load_recogniser(tmp_path / "nowhere")
    write_recogniser(tmp_path)
    with pytest.raises(UserError, match="is an encoder, without a head"):
        load_recogniser(tmp_path / "encoder")
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/layer_weights.json").touch()
    with pytest.raises(UserError, match="is a probe"):
        load_recogniser(tmp_path / "probe")


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_words_are_those_of_the_decoder(tmp_path, kind):
    """Random frames with many blanks, repetitions and unknown tokens."""
    tokenizer = make_tokenizer(kind, tmp_path)
    ids = torch.randint(len(tokenizer.tokens), (300,))
    ids = ids.repeat_interleave(torch.randint(1, 4, (300,)))
    ids[torch.rand(len(ids)) < 0.3] = tokenizer.blank_id
    logits = nn.functional.one_hot(ids, len(tokenizer.tokens)).float()[None]
    no_padding = torch.zeros(logits.shape[:2], dtype=torch.bool)
    (expected,) = decode_greedily(logits, no_padding, tokenizer)
    words = greedy_words(ids.tolist(), tokenizer)
    assert [word.text for word in words] == expected.split()
    assert (UNKNOWN in expected) == (kind == "characters")
    times = [time for word in words for time in word[1:]]
    assert times == sorted(times)
    assert all(word.start_s < word.stop_s for word in words)


def spell(text, tokenizer, frames=3):
    """Return logits: each character in `frames` frames, then as many blanks."""
    ids = [[i] * frames + [0] * frames for i in tokenizer.encode(text)]
    ids = torch.tensor(ids).flatten()
    return 20 * nn.functional.one_hot(ids, len(tokenizer.tokens)).float()


def test_a_beam_search_gives_the_words_the_same_places(monkeypatch):
    tokenizer = CharacterTokenizer(TEXTS)
    logits = spell("bad cab dab", tokenizer)
    expected = greedy_words(logits.argmax(-1).tolist(), tokenizer)
    assert [word.text for word in expected] == ["bad", "cab", "dab"]
    assert expected[1][1:] == (24 / 50, 39 / 50)
    search = BeamSearch()
    for longest in (1000, 45):
        monkeypatch.setattr(
            "summarymixing.training.recogniser.MAX_SEARCH_FRAMES", longest
        )
        found = beam_words(logits, tokenizer, search)
        texts = "".join(word.text for word in found)
        assert texts == "badcabdab"
        if longest == 1000:
            assert [word.text for word in found] == ["bad", "cab", "dab"]
            for word, like in zip(found, expected, strict=True):
                assert word[1:] == pytest.approx(like[1:], abs=0.061)


@pytest.mark.parametrize("blank_share", [0.0, 0.1, 0.9, 1.0])
def test_cuts_keep_every_frame(blank_share):
    blanks = (torch.rand(1000) < blank_share).tolist()
    cuts = cut_at_blanks(blanks, 90)
    assert cuts[0][0] == 0 and cuts[-1][1] == 1000
    assert all(a[1] == b[0] for a, b in zip(cuts, cuts[1:], strict=False))
    assert all(0 < stop - start <= 90 for start, stop in cuts)
