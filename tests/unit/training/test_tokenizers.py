"""Byte-pair encoding, and CTC over it."""

import pytest
import torch

from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.errors import UserError
from summarymixing.training.ctc import CtcTask
from summarymixing.training.tokenizers import BpeTokenizer

TEXTS = [
    "Mae'r gath yn y tŷ.",
    "Mae hi'n braf… heddiw! ½",
    "yn y tŷ mae'r gath",
]


def make_tokenizer(folder=None):
    return BpeTokenizer(TEXTS, folder, vocab_size=40)


def test_texts_survive_and_the_model_is_kept(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    assert len(tokenizer.tokens) == 40
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert 0 not in ids
    assert (tmp_path / "bpe.model").stat().st_size > 100
    assert tokenizer.tokens == make_tokenizer().tokens


def test_unknown_characters_are_the_blank():
    tokenizer = make_tokenizer()
    assert tokenizer.unknown_id == tokenizer.blank_id == 0
    assert 0 in tokenizer.encode("q")


@pytest.mark.parametrize("vocab_size", [3, 10_000])
def test_impossible_sizes_are_refused(vocab_size):
    with pytest.raises(UserError, match=f"cannot make {vocab_size} units"):
        BpeTokenizer(TEXTS, vocab_size=vocab_size)


def test_rare_characters_make_room_for_units(caplog):
    """More characters than units, as in cased and punctuated Welsh."""
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    letters = "".join(map(chr, range(0xC0, 0xC0 + 50)))
    texts = [*[f"{letters} abc"] * 2000, rare]
    tokenizer = BpeTokenizer(texts, vocab_size=100)
    assert len(tokenizer.tokens) == 100
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    # The 75 most frequent characters stay: the space, a to c, 50 letters.
    assert 35 <= sum(0 in tokenizer.encode(c) for c in rare) <= 45
    assert "too rare for 100 units" in caplog.text
    with pytest.raises(UserError, match="cannot make 100 units"):
        BpeTokenizer([*texts[:9], rare], vocab_size=100)


@pytest.mark.parametrize("number", range(94, 101))
def test_as_many_characters_as_units(number):
    """Counted with the space, on both sides of what SentencePiece takes."""
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + number - 1)))
    texts = [f"{letters[:48]} {letters[:48]}"] * 2000 + [letters[48:]]
    tokenizer = BpeTokenizer(texts, vocab_size=100)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def make_manifest(folder, texts, seconds):
    rows = [
        Row(f"u{i}", f"/{i}.wav", (), s, {"text": text})
        for i, (text, s) in enumerate(zip(texts, seconds, strict=True))
    ]
    return Manifest.read(write_manifest(folder / "rows.csv", rows))


def make_task(folder, **limits):
    task = CtcTask(
        label="text",
        tokenizer=lambda texts, folder: BpeTokenizer(texts, vocab_size=40),
        **limits,
    )
    task.fit(make_manifest(folder, TEXTS, [1.0] * 3), folder)
    return task


def test_a_blank_is_no_target(tmp_path):
    """An unknown character must not ask CTC to align a blank."""
    task = make_task(tmp_path)
    predicted = torch.randn(2, 50, 40)
    rows = make_manifest(tmp_path, ["yn y tŷ", "yn q y tŷ"], [1.0, 1.0])
    known = task.tokenizer.encode("yn q y tŷ")
    assert 0 in known
    losses = task.loss(predicted, torch.zeros(2, 50) > 0, list(rows))
    expected = torch.nn.functional.ctc_loss(
        predicted[1:].log_softmax(-1).transpose(0, 1),
        torch.tensor([[i for i in known if i]]),
        [50],
        [len([i for i in known if i])],
        reduction="none",
    )
    torch.testing.assert_close(
        losses[1], expected[0] / len([i for i in known if i])
    )
    # In the error rate the reference is the transcript itself.
    scores = task.score(predicted, torch.zeros(2, 50) > 0, list(rows))
    assert scores[1].words["num_ref_tokens"] == 4


@pytest.mark.parametrize("everywhere", [False, True])
def test_limits_of_common_voice(everywhere, tmp_path):
    task = make_task(
        tmp_path,
        max_train_s=10,
        min_words=3,
        min_words_everywhere=everywhere,
    )
    manifest = make_manifest(
        tmp_path, ["a b c", "a b c", "a b"], [10.0, 10.5, 1.0]
    )
    kept = {
        role: [row.id for row in manifest if task.keeps(row, role)]
        for role in ("train", "valid", "test")
    }
    assert kept["train"] == ["u0"]
    evaluated = ["u0", "u1"] if everywhere else ["u0", "u1", "u2"]
    assert kept["valid"] == kept["test"] == evaluated
