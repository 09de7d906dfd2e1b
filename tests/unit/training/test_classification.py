"""Classification task, and the folds of IEMOCAP."""

import pytest
import torch
import torch.nn.functional as F

from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.errors import UserError
from summarymixing.lobes.heads import UtteranceOutput
from summarymixing.training.classification import (
    ClassificationTask,
    ClassScore,
    LeaveOneSpeakerOut,
)
from summarymixing.training.probe import join_folds


def make_rows(labels, **columns):
    return [
        Row(
            f"u{i}",
            f"/corpus/{i}.wav",
            (),
            1.0,
            {"class": label, **{k: v[i] for k, v in columns.items()}},
        )
        for i, label in enumerate(labels)
    ]


def make_manifest(folder, rows):
    return Manifest.read(write_manifest(folder / "rows.csv", rows))


def fitted(folder, labels, **arguments):
    task = ClassificationTask(label="class", **arguments)
    task.fit(make_manifest(folder, make_rows(labels)), folder)
    return task


def output(logits):
    return UtteranceOutput(torch.zeros(len(logits), 2), torch.tensor(logits))


def test_classes_in_order_of_appearance(tmp_path):
    assert fitted(tmp_path, ["b", "a", "b", "c"]).outputs == ["b", "a", "c"]


def test_loss_is_cross_entropy_and_nothing_for_unseen_labels(tmp_path):
    task = fitted(tmp_path, ["b", "a"])
    logits = [[2.0, 1.0], [0.5, 3.0], [4.0, 0.0]]
    losses = task.loss(
        output(logits), torch.zeros(3, 1) > 0, make_rows(["b", "b", "new"])
    )
    expected = F.cross_entropy(
        torch.tensor(logits), torch.tensor([0, 0, 0]), reduction="none"
    )
    torch.testing.assert_close(losses[:2], expected[:2])
    assert losses[2] == 0


def test_accuracy_counts_unseen_labels_as_errors(tmp_path):
    task = fitted(tmp_path, ["b", "a"])
    rows = make_rows(["b", "b", "a", "new"])
    scores = task.score(
        output([[2.0, 1.0], [0.5, 3.0], [0.0, 1.0], [4.0, 0.0]]),
        torch.zeros(4, 1) > 0,
        rows,
    )
    assert task.summarise(scores) == {"accuracy": 50.0, "error_rate": 50.0}
    manifest = make_manifest(tmp_path, rows)
    assert task.inspect("test", manifest) == {"unseen_labels": 1}
    task.write_report(tmp_path, "test", scores)
    lines = (tmp_path / "predictions_test.csv").read_text().splitlines()
    assert lines[:3] == ["id,label,predicted", "u0,b,b", "u1,b,a"]


def test_one_class_cannot_be_learned(tmp_path):
    with pytest.raises(UserError, match="1 class to train on"):
        fitted(tmp_path, ["a", "a"])


SPEAKERS = [str(speaker) for speaker in range(1, 11)]


@pytest.mark.parametrize("test_speaker", range(1, 11))
def test_each_fold_leaves_a_session_out_of_training(test_speaker, tmp_path):
    fold = LeaveOneSpeakerOut(test_speaker)
    task = ClassificationTask(label="class", fold=fold)
    rows = make_rows(["a", "b"] * 5, speaker=SPEAKERS)
    roles = {
        role: {r.labels["speaker"] for r in rows if task.keeps(r, role)}
        for role in ("train", "valid", "test")
    }
    assert roles["test"] == {str(test_speaker)}
    partner = test_speaker + 1 if test_speaker % 2 else test_speaker - 1
    assert roles["valid"] == {str(partner)}
    assert roles["train"] == set(SPEAKERS) - roles["test"] - roles["valid"]


def test_classes_come_from_the_training_speakers_alone(tmp_path):
    labels = ["only in test", "x", *"ababbaba"]
    manifest = make_manifest(tmp_path, make_rows(labels, speaker=SPEAKERS))
    task = ClassificationTask(label="class", fold=LeaveOneSpeakerOut(1))
    task.fit(manifest, tmp_path)
    assert task.outputs == ["a", "b"]


def test_mp3s_speakers_are_another_column(tmp_path):
    rows = make_rows(["a"], speaker=["5"], mp3s_speaker=["6"])
    right, wrong = (
        LeaveOneSpeakerOut(5),
        LeaveOneSpeakerOut(5, mp3s_speakers=True),
    )
    assert right.role_of(rows[0].labels) == "test"
    assert wrong.role_of(rows[0].labels) == "valid"
    with pytest.raises(UserError, match="no column mp3s_speaker"):
        ClassificationTask(label="class", fold=wrong).fit(
            make_manifest(tmp_path, make_rows(["a"], speaker=["5"])), tmp_path
        )


def test_accuracy_has_an_interval():
    task = ClassificationTask(label="class")
    scores = [ClassScore(str(i), "a", "ab"[i % 4 == 0]) for i in range(400)]
    assert task.summarise(scores)["accuracy"] == 75.0
    intervals = task.intervals(scores)
    low, high = intervals["accuracy_interval"]
    assert (low, high) == pytest.approx((70.8, 79.2), abs=0.7)
    errors = intervals["error_rate_interval"]
    assert errors == pytest.approx([100 - high, 100 - low])


@pytest.mark.parametrize("fold", [0, 11, "every", None])
def test_folds_that_do_not_exist(fold):
    with pytest.raises(ValueError, match="1 to 10 or all"):
        LeaveOneSpeakerOut(fold)


def test_joining_folds():
    folds = [
        {
            "task": "classification",
            "splits": {
                "utterances": {
                    "accuracy": a,
                    "accuracy_interval": [a - 9, a + 9],
                    "utterances": 10,
                }
            },
            "valid": {"loss": a / 10},
            "layer_weights": [w, 1 - w],
        }
        for a, w in ((60.0, 0.5), (70.0, 0.25), (80.0, 0.0))
    ]
    joined = join_folds(folds)
    interval = joined["splits"]["utterances"].pop("accuracy_interval")
    assert interval == pytest.approx([70 - 27**0.5, 70 + 27**0.5])
    assert joined["splits"]["utterances"] == {
        "accuracy": 70.0,
        "accuracy_std": 10.0,
        "utterances": 30,
    }
    assert joined["layer_weights"] == [0.25, 0.75]
    assert joined["valid"]["loss"] == pytest.approx(7.0)
