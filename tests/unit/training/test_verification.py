"""Verification task: margin loss, random windows, trials."""

import csv
import pickle
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.data.trials import read_trials
from summarymixing.errors import UserError
from summarymixing.lobes.heads import UtteranceOutput
from summarymixing.training.verification import (
    Embedded,
    TrialTask,
    VerificationTask,
)

TRIALS = "target,enrol,test\n1,a,b\n0,a,c\n0,b,d\n1,c,d\n"


def make_row(name, speaker="s", recording_s="5.0"):
    labels = {"speaker": speaker, "recording_s": recording_s}
    return Row(name, f"/corpus/{name}.wav", ((0.0, 3.0),), 3.0, labels)


def make_manifest(folder, rows):
    return Manifest.read(write_manifest(folder / "rows.csv", rows))


@pytest.fixture
def task(tmp_path):
    (tmp_path / "trials.csv").write_text(TRIALS)
    task = VerificationTask(
        label="speaker",
        trials=tmp_path / "trials.csv",
        margin=0.2,
        scale=30.0,
        crop_s=3.0,
        seed=1,
    )
    rows = [make_row(str(i), speaker=f"s{i % 4}") for i in range(8)]
    task.fit(make_manifest(tmp_path, rows), tmp_path)
    return task


def test_loss_is_speechbrains_margin_loss(task):
    torch.manual_seed(0)
    cosines = torch.rand(6, 4) * 2 - 1
    cosines.requires_grad_()
    rows = [make_row(str(i), speaker=f"s{i % 4}") for i in range(6)]
    output = UtteranceOutput(torch.zeros(6, 2), cosines)
    losses = task.loss(output, torch.zeros(6, 1) > 0, rows)
    reference = LogSoftmaxWrapper(AdditiveAngularMargin(0.2, 30.0))
    expected = reference(
        cosines.unsqueeze(1), (torch.arange(6) % 4).unsqueeze(1)
    )
    torch.testing.assert_close(losses.mean(), expected)
    (gradient,) = torch.autograd.grad(losses.mean(), cosines)
    assert gradient.abs().sum() > 0


def test_without_a_margin_it_is_cross_entropy(task, tmp_path):
    plain = VerificationTask(label="speaker", trials=tmp_path / "trials.csv")
    rows = [make_row("x", speaker="s2"), make_row("y", speaker="s0")]
    plain.fit(make_manifest(tmp_path, rows), tmp_path)
    logits = torch.tensor([[2.0, 1.0], [0.5, 3.0]]).log_softmax(dim=1)
    losses = plain.loss(
        UtteranceOutput(logits, logits), torch.zeros(2, 1) > 0, rows
    )
    expected = F.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(losses, expected)


def test_windows_are_a_function_of_seed_epoch_and_utterance(task):
    row = make_row("u")
    windows = [task.adapt(row, epoch).segments[0] for epoch in range(200)]
    assert windows == [task.adapt(row, e).segments[0] for e in range(200)]
    starts = torch.tensor([start for start, _ in windows])
    assert len(set(windows)) > 190
    assert 0 <= starts.min() < 0.1 and 1.9 < starts.max() <= 2.0
    for start, stop in windows:
        assert stop - start == pytest.approx(3.0)
        samples = start * 16_000  # no sample is cut in two
        assert samples == pytest.approx(round(samples), abs=1e-6)
    other = task.adapt(make_row("v"), 0).segments[0]
    task.seed = 2
    assert len({windows[0], other, task.adapt(row, 0).segments[0]}) == 3


def test_a_short_recording_is_taken_whole(task):
    row = task.adapt(make_row("u", recording_s="2.5"), 3)
    assert row.segments == ((0.0, 2.5),) and row.duration == 2.5


def test_windows_need_the_duration_of_the_recording(task, tmp_path):
    rows = [Row(s, "/u.wav", (), 1.0, {"speaker": s}) for s in "uv"]
    with pytest.raises(UserError, match="recording_s"):
        task.fit(make_manifest(tmp_path, rows), tmp_path)


def embed(task, vectors):
    rows = [make_row(name) for name in vectors]
    output = UtteranceOutput(torch.tensor(list(vectors.values())), None)
    return task.for_test().score(output, None, rows)


def test_trials_are_scored_by_cosine(task, tmp_path):
    scores = embed(
        task,
        {"d": [0.0, 1.0], "a": [1.0, 0.0], "b": [5.0, 5.0], "c": [0.0, 2.0]},
    )
    # a-b 0.71 and c-d 1 are targets; a-c 0 and b-d 0.71 are not. Half-way
    # between accepting c-d alone and both at 0.71 too, a quarter is wrong.
    metrics = task.for_test().summarise(scores)
    assert metrics["eer"] == 25.0
    assert (metrics["trials"], metrics["target_trials"]) == (4, 2)
    task.for_test().write_report(tmp_path, "test", scores)
    with (tmp_path / "scores_test.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["score"] for line in lines] == [
        "0.707107",
        "0.000000",
        "0.707107",
        "1.000000",
    ]


def test_embeddings_travel_alone(task):
    """Not with the storage of their batch."""
    scores = embed(task, {name: [0.0] * 1000 for name in "abcd"})
    assert len(pickle.dumps(scores[0])) < 5000


def test_utterances_of_the_trials_must_be_there(task, tmp_path):
    manifest = make_manifest(tmp_path, [make_row(name) for name in "abcde"])
    assert task.for_test().inspect("test", manifest) == {
        "utterances_without_trial": 1
    }
    manifest = make_manifest(tmp_path, [make_row(name) for name in "abc"])
    with pytest.raises(UserError, match="1 of 4 utterances.*for example d"):
        task.for_test().inspect("test", manifest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "does not begin with"),
        ("1,a,b\n", "does not begin with"),
        ("target,enrol,test\n", "one speaker and of two"),
        ("target,enrol,test\n1,a,b\n", "one speaker and of two"),
        ("target,enrol,test\n1,a,b\n2,a,b\n", "line 3"),
        ("target,enrol,test\n1,a\n", "line 2"),
    ],
)
def test_malformed_trials(text, message, tmp_path):
    path = tmp_path / "trials.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_trials(path)


def test_intervals_draw_speakers_where_there_are_enough(tmp_path):
    generator = torch.Generator().manual_seed(0)
    speakers = torch.randn(12, 8, generator=generator)
    scores, lines = [], ["target,enrol,test"]
    for number, speaker in enumerate(speakers):
        for take in range(3):
            embedding = speaker + torch.randn(8, generator=generator)
            name = f"{number:02d}_{take}"
            scores.append(Embedded(name, str(number), embedding))
    for left, right in combinations(scores, 2):
        same = int(left.speaker == right.speaker)
        lines.append(f"{same},{left.id},{right.id}")
    (tmp_path / "trials.csv").write_text("\n".join(lines) + "\n")
    task = TrialTask(label="speaker", trials=tmp_path / "trials.csv")
    eer = task.summarise(scores)["eer"]
    low, high = task.intervals(scores)["eer_interval"]
    assert low < eer < high
    assert task.summarise(scores)["speakers"] == 12
    # As if all were of five speakers: then utterances are drawn.
    few = [s._replace(speaker=str(int(s.speaker) % 5)) for s in scores]
    low_few, high_few = task.intervals(few)["eer_interval"]
    own = [s._replace(speaker=s.id) for s in scores]
    assert (low_few, high_few) == tuple(task.intervals(own)["eer_interval"])
    assert (low_few, high_few) != (low, high)
    # Speakers without a trial are no part of the test.
    idle = [Embedded(f"00_idle{i}", f"0{i}", speakers[0]) for i in range(9)]
    assert task.intervals([*scores, *idle]) == task.intervals(scores)
