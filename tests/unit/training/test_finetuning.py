"""Fine-tuning without audio: schedules of layers, groups, decoders."""

import importlib.util

import pytest
import torch

from summarymixing import Wav2Vec2Encoder
from summarymixing.errors import UserError
from summarymixing.lobes.finetuning import FineTuned
from summarymixing.training import ctc
from summarymixing.training.ctc import (
    BeamSearch,
    CtcTask,
    decode_greedily,
    make_decoder,
)
from summarymixing.training.finetuning import layers_that_learn, learning_groups
from summarymixing.training.tokenizers import BpeTokenizer, CharacterTokenizer

TEXTS = ["A CAB", "BAD DAB", "", "ABBA"]


@pytest.mark.parametrize(
    "order, expected",
    [
        # Updates 1 to 8: two with the head alone, two for each layer.
        ("together", ["", "", "012", "012", "012", "012", "012", "012"]),
        ("top_down", ["", "", "2", "2", "12", "12", "012", "012"]),
        ("bottom_up", ["", "", "0", "0", "01", "01", "012", "012"]),
    ],
)
def test_layers_join_one_after_the_other(order, expected):
    layers = [
        layers_that_learn(update, 3, freeze=2, every=2, order=order)
        for update in range(1, 9)
    ]
    assert ["".join(map(str, found)) for found in layers] == expected


def test_every_parameter_is_in_one_group_with_the_right_decay():
    encoder = Wav2Vec2Encoder(num_layers=2, d_model=16, d_ffn=32)
    model = FineTuned(encoder, torch.nn.Linear(16, 4))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = learning_groups(model)
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(names.values())
    for group in groups:
        for name in (names[id(p)] for p in group["params"]):
            part = "mixers" if ".mixer." in name else name.split(".")[0]
            assert group["name"] == part
            if "norm" in name or "bias" in name or "mask_embedding" in name:
                assert group.get("weight_decay") == 0
    assert {g["name"] for g in groups if "weight_decay" not in g} == {
        "head",
        "mixers",
        "encoder",
    }


def logits_that_say(tokenizer, texts):
    """Two frames and a blank for each token, then noise in the padding."""
    ids = [tokenizer.encode(text) for text in texts]
    num_frames = 3 * max(len(i) for i in ids) + 5
    predicted = torch.randn(len(texts), num_frames, len(tokenizer.tokens))
    padding_mask = torch.ones(len(texts), num_frames, dtype=torch.bool)
    for b, tokens in enumerate(ids):
        for i, token in enumerate(tokens):
            predicted[b, 3 * i : 3 * i + 2, token] += 15
            predicted[b, 3 * i + 2, tokenizer.blank_id] += 15
        end = max(3 * len(tokens), 1)
        predicted[b, 0, tokenizer.blank_id] += 0 if tokens else 15
        padding_mask[b, :end] = False
    return predicted, padding_mask


@pytest.mark.parametrize(
    "make_tokenizer",
    [CharacterTokenizer, lambda texts: BpeTokenizer(texts, vocab_size=9)],
)
def test_beam_search_agrees_with_greedy_decoding_where_all_is_clear(
    make_tokenizer,
):
    tokenizer = make_tokenizer(TEXTS)
    logits = logits_that_say(tokenizer, TEXTS)
    assert decode_greedily(*logits, tokenizer) == TEXTS
    assert BeamSearch()(*logits, tokenizer) == TEXTS


def test_beam_search_adds_up_alignments():
    """Greedy takes two blanks; "A" has more probability over all paths."""
    tokenizer = CharacterTokenizer(["A"])
    probabilities = torch.tensor([0.55, 1e-6, 0.45])
    predicted = probabilities.log().repeat(1, 2, 1)
    padding_mask = torch.zeros(1, 2, dtype=torch.bool)
    assert decode_greedily(predicted, padding_mask, tokenizer) == [""]
    assert BeamSearch()(predicted, padding_mask, tokenizer) == ["A"]


def test_unknown_characters_look_alike_in_both_decoders():
    tokenizer = CharacterTokenizer(["A"])
    logits = logits_that_say(tokenizer, ["AXA"])
    greedy = decode_greedily(*logits, tokenizer)
    assert BeamSearch()(*logits, tokenizer) == greedy == ["A\u2047A"]


def test_decoder_serves_the_tests_alone():
    def shout(predicted, padding_mask, tokenizer):
        return ["TEST"]

    task = CtcTask(label="text", tokenizer=CharacterTokenizer, decoder=shout)
    task.tokenizer = CharacterTokenizer(TEXTS)
    logits = logits_that_say(task.tokenizer, ["CAB"])
    assert task.decode(*logits) == ["CAB"]
    assert task.for_test().decode(*logits) == ["TEST"]


def test_mistakes_about_decoders_are_explained(tmp_path, monkeypatch):
    model = tmp_path / "words.bin"
    with pytest.raises(UserError, match="decoder is greedy or beam"):
        make_decoder("viterbi")
    with pytest.raises(UserError, match="needs --decoder=beam"):
        make_decoder("greedy", model)
    with pytest.raises(UserError, match="no language model .*words.bin"):
        make_decoder("beam", model)
    model.write_bytes(b"")
    found = {"kenlm": "found", "pygtrie": "found"}
    for missing in found:
        monkeypatch.setattr(
            importlib.util, "find_spec", {**found, missing: None}.get
        )
        with pytest.raises(UserError, match=f"package {missing}, which is"):
            make_decoder("beam", model)


def test_file_that_is_no_language_model_is_named(tmp_path, monkeypatch):
    def refuse(**settings):
        raise OSError("not a model")

    model = tmp_path / "words.bin"
    model.write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(ctc, "CTCBeamSearcher", refuse)
    decode = make_decoder("beam", model)
    tokenizer = CharacterTokenizer(TEXTS)
    with pytest.raises(UserError, match=r"words.bin is no KenLM model \(not"):
        decode(*logits_that_say(tokenizer, ["A"]), tokenizer)


# Logarithms to base 10: AC follows A more often than AB does.
ARPA = """\\data\\
ngram 1=6
ngram 2=2

\\1-grams:
-2.0\t<unk>\t0
0\t<s>\t0
-1.0\t</s>\t0
-1.0\tA\t-0.3
-0.5\tAB\t0
-1.5\tAC\t0

\\2-grams:
-3.0\tA AB
-0.1\tA AC

\\end\\
"""


@pytest.fixture
def kenlm():
    """Skip where language models cannot be read."""
    for package in ("kenlm", "pygtrie"):
        pytest.importorskip(package)


@pytest.mark.usefixtures("kenlm")
@pytest.mark.parametrize(
    "spoken, alpha, written",
    [("AB", 0.8, "AB"), ("A AB", 0.8, "A AC"), ("A AB", 0.0, "A AB")],
)
def test_language_model_decides_what_is_unclear(
    tmp_path, spoken, alpha, written
):
    model = tmp_path / "words.arpa"
    model.write_text(ARPA)
    tokenizer = CharacterTokenizer(["A AB AC"])
    predicted, padding_mask = logits_that_say(tokenizer, [spoken])
    b, c = tokenizer.encode("BC")
    # The last letter is B, or, a little less likely, C.
    last = predicted[..., b] > 10
    predicted[..., c][last] = predicted[..., b][last] - 0.3
    decode = BeamSearch(model, alpha=alpha)
    assert decode(predicted, padding_mask, tokenizer) == [written]
    assert decode_greedily(predicted, padding_mask, tokenizer) == [spoken]


@pytest.mark.usefixtures("kenlm")
def test_real_file_that_is_no_language_model_is_named(tmp_path):
    for name, content in (("a.arpa", "no model\n"), ("a.bin", "\0" * 99)):
        model = tmp_path / name
        model.write_text(content)
        decode = make_decoder("beam", model)
        tokenizer = CharacterTokenizer(TEXTS)
        with pytest.raises(UserError, match=f"{name} is no KenLM model"):
            decode(*logits_that_say(tokenizer, ["A"]), tokenizer)
