"""CTC task: tokens, loss, decoding and error rates."""

import pytest
import torch

from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.errors import UserError
from summarymixing.training.ctc import USUAL_PLATEAU_UPDATES, CtcTask
from summarymixing.training.tokenizers import CharacterTokenizer

TRAIN = ["BAD CAB", "DAB"]  # tokens: blank, unk, B, A, D, space, C


def make_rows(texts, seconds=1.0):
    return [
        Row(f"u{i}", f"/corpus/{i}.wav", (), seconds, {"text": text})
        for i, text in enumerate(texts)
    ]


def make_manifest(folder, texts, seconds=1.0):
    path = write_manifest(folder / "rows.csv", make_rows(texts, seconds))
    return Manifest.read(path)


@pytest.fixture
def task(tmp_path):
    task = CtcTask(label="text", tokenizer=CharacterTokenizer)
    task.fit(make_manifest(tmp_path, TRAIN), tmp_path)
    return task


def no_padding(predicted):
    return torch.zeros(predicted.shape[:2], dtype=torch.bool)


def logits_that_say(task, texts, num_frames):
    """Frames that spell each text, a blank after each character."""
    predicted = torch.zeros(len(texts), num_frames, len(task.outputs))
    predicted[..., task.tokenizer.blank_id] = 5.0
    for b, text in enumerate(texts):
        for i, token in enumerate(task.tokenizer.encode(text)):
            predicted[b, 2 * i, token] = 10.0
    return predicted


def test_tokens_are_characters_in_order_of_appearance(task, tmp_path):
    assert task.outputs == ["<blank>", "<unk>", "B", "A", "D", " ", "C"]
    assert task.tokenizer.encode("DAX C") == [4, 3, 1, 5, 6]
    for text in TRAIN:
        assert task.tokenizer.decode(task.tokenizer.encode(text)) == text
    assert len((tmp_path / "tokens.txt").read_text().splitlines()) >= 7


def test_corpus_without_text_is_refused(tmp_path):
    task = CtcTask(label="text", tokenizer=CharacterTokenizer)
    with pytest.raises(UserError, match="'text'.*empty"):
        task.fit(make_manifest(tmp_path, ["", " "]), tmp_path)


def test_loss_is_that_of_torch(task):
    torch.manual_seed(0)
    rows = make_rows(["BAD", "CAB DAB"])
    predicted = torch.randn(2, 20, len(task.outputs))
    targets = [task.tokenizer.encode(row.labels["text"]) for row in rows]
    expected = torch.nn.functional.ctc_loss(
        predicted.log_softmax(-1).transpose(0, 1),
        torch.tensor(sum(targets, [])),
        torch.tensor([20, 20]),
        torch.tensor([len(target) for target in targets]),
    )
    losses = task.loss(predicted, no_padding(predicted), rows)
    torch.testing.assert_close(losses.mean(), expected)


@pytest.mark.parametrize("text", ["", "BBBB", "CAB DAB"])
def test_difficult_transcripts_leave_loss_and_gradient_finite(task, text):
    torch.manual_seed(0)
    predicted = torch.randn(2, 5, len(task.outputs), requires_grad=True)
    losses = task.loss(predicted, no_padding(predicted), make_rows([text, "D"]))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(predicted.grad).all()
    # Only the empty transcript can be learned from five frames.
    assert bool(predicted.grad[0].any()) == (text == "")
    assert predicted.grad[1].any()


@pytest.mark.parametrize(
    "texts, seconds, expected",
    [
        (TRAIN, 1.0, {}),
        (["BÄD", "XY"], 1.0, {"unknown_tokens": 3}),
        # 0.1 s make 6 frames: "BBB" needs 5 of them, "BBBB" 7.
        (["BBB", "BBBB", ""], 0.1, {"too_short": 1, "empty_texts": 1}),
    ],
)
def test_useless_labels_are_counted(task, tmp_path, texts, seconds, expected):
    manifest = make_manifest(tmp_path, texts, seconds)
    nothing = dict.fromkeys(("unknown_tokens", "too_short", "empty_texts"), 0)
    assert task.inspect("test", manifest) == nothing | expected


def test_useless_labels_are_named(task, tmp_path, caplog):
    manifest = make_manifest(tmp_path, ["BBB", "BBBB", "BÄX", ""], 0.1)
    task.inspect("test", manifest)
    (record,) = caplog.records
    said = record.getMessage()
    assert "test: 3 of 4 labels are bad" in said
    assert "(u1: 6 frames, the text needs 7)" in said
    assert "(u2: Ä X)" in said
    assert "count as errors" in said
    path = tmp_path / "label_problems_test.tsv"
    assert path.read_text("utf-8").splitlines()[1:] == [
        "u1\ttoo_short\t6 frames, the text needs 7\tBBBB",
        "u2\tunknown_tokens\tÄ X\tBÄX",
        "u3\tempty_texts\tempty text\t",
    ]
    task.inspect("test", make_manifest(tmp_path, TRAIN))
    assert not path.exists()


def test_a_long_list_of_labels_is_cut(task, tmp_path, monkeypatch):
    monkeypatch.setattr("summarymixing.training.ctc.MAX_LISTED", 2)
    task.inspect("test", make_manifest(tmp_path, ["X"] * 5))
    lines = (tmp_path / "label_problems_test.tsv").read_text().splitlines()
    assert len(lines) == 4 and lines[-1] == "and 3 more"


def test_training_leaves_out_what_cannot_be_learned(tmp_path, caplog):
    manifest = make_manifest(tmp_path, ["BBB", "BBBB", ""], 0.1)
    task = CtcTask(label="text", tokenizer=CharacterTokenizer)
    task.fit(manifest, tmp_path)
    assert "Training leaves out" in caplog.records[-1].getMessage()
    kept = [row.id for row in manifest if task.keeps(row, "train")]
    assert kept == ["u0"]
    assert all(task.keeps(row, "valid") for row in manifest)
    task = CtcTask(label="text", tokenizer=CharacterTokenizer)
    with pytest.raises(UserError, match="no utterance in .* can be learned"):
        task.fit(make_manifest(tmp_path, ["BBBB", ""], 0.1), tmp_path)


def test_padding_reaches_neither_loss_nor_text(task):
    rows = make_rows(["BAD", "CAB DAB"])
    predicted = logits_that_say(task, ["BAD", "CAB DAB"], 14)
    padding_mask = no_padding(predicted)
    padding_mask[0, 6:] = True
    losses = task.loss(predicted, padding_mask, rows)
    predicted[0, 6:] = torch.randn(8, len(task.outputs)) * 100
    torch.testing.assert_close(task.loss(predicted, padding_mask, rows), losses)
    assert task.decode(predicted, padding_mask) == ["BAD", "CAB DAB"]


@pytest.mark.parametrize(
    "references, hypotheses, wer, cer",
    [
        (["BAD CAB", "DAB"], ["BAD CAB", "DAB"], 0.0, 0.0),
        (["BAD CAB", "DAB"], ["BAD", "DAD"], 200 / 3, 500 / 10),
        (["BAD", ""], ["BAD", "CAB"], 100.0, 100.0),
        (["BAD", ""], ["", ""], 100.0, 100.0),
        ([""], [""], 0.0, 0.0),
        (["BÄD"], ["BAD"], 100.0, 100 / 3),
    ],
)
def test_error_rates(task, tmp_path, references, hypotheses, wer, cer):
    predicted = logits_that_say(task, hypotheses, 14)
    scores = task.score(predicted, no_padding(predicted), make_rows(references))
    numbers = task.summarise(scores)
    num_letters = sum(map(len, hypotheses))
    assert numbers.pop("blank_share") == pytest.approx(
        1 - num_letters / (14 * len(hypotheses))
    )
    assert numbers == pytest.approx({"wer": wer, "cer": cer})
    intervals = task.intervals(scores)
    for name, value in numbers.items():
        low, high = intervals[f"{name}_interval"] or (value, value)
        assert low <= value + 1e-9 and value - 1e-9 <= high
    task.write_report(tmp_path, "test", scores)
    report = (tmp_path / "wer_test.txt").read_text()
    assert f"%WER {wer:.2f}" in report
    assert all(word in report for word in " ".join(references).split())


def test_the_share_of_blanks_is_of_valid_frames(task):
    predicted = logits_that_say(task, ["BAD", "BAD"], 14)
    padding_mask = no_padding(predicted)
    padding_mask[1, 6:] = True
    scores = task.score(predicted, padding_mask, make_rows(["", ""]))
    assert task.summarise(scores)["blank_share"] == 14 / 20


def remarks(task, *validations):
    return [
        task.remark({"blank_share": blank, "cer": cer}, update, warmup=100)
        for update, blank, cer in validations
    ]


def test_a_plateau_of_blanks_is_explained(task):
    usual = 100 + USUAL_PLATEAU_UPDATES
    first, more, late, later, latest, over, again = remarks(
        task,
        (10, 1.0, 100.0),
        (usual, 0.99, 99.0),
        (usual + 10, 1.0, 100.0),
        (usual + 20, 1.0, 100.0),
        (2 * usual + 30, 1.0, 100.0),
        (2 * usual + 40, 0.8, 80.0),
        (2 * usual + 50, 0.99, 100.0),
    )
    assert "usual at the start" in first and f"update {usual}" in first
    assert more is None
    for text in (late, latest):
        assert "longer than usual" in text
        for advice in ("learning rate", "vocabulary", "order of the labels"):
            assert advice in text
    assert later is None
    assert over == f"update {2 * usual + 40}: the first text (CER 80.0 %)."
    assert "blank again" in again


def test_sparse_speech_is_no_plateau(task):
    assert remarks(task, (10, 0.97, 30.0)) == [None]


def test_an_untrained_head_has_not_lost_its_text(task):
    babble, blank = remarks(task, (1, 0.3, 110.0), (10, 1.0, 100.0))
    assert babble is None
    assert "usual at the start" in blank
