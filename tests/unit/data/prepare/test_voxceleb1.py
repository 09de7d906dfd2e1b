"""VoxCeleb1: chunks to train on, trials of speakers nobody trained on."""

import csv
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import soundfile

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare import voxceleb1
from summarymixing.data.prepare.voxceleb1 import CORPUS
from summarymixing.errors import UserError
from summarymixing.miniature import build_voxceleb1

LABELS = ("speaker", "recording_s")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_voxceleb1(tmp_path_factory.mktemp("vox") / "c", hours=0.01)


@pytest.fixture
def prepare(corpus, tmp_path):
    def run(source="", num_workers=1, **options):
        plan = CORPUS.plan(corpus / source, tmp_path / "m", **options)
        return plan.run(num_workers=num_workers)

    return run


def read_rows(tmp_path, name):
    return list(Manifest.read(tmp_path / "m" / f"{name}.csv", LABELS))


def read_trials(tmp_path):
    with open(tmp_path / "m" / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_list(corpus):
    lines = (corpus / "veri_test2.txt").read_text().splitlines()
    return [line.replace(".wav", "").split() for line in lines]


def utterance_of(row):
    return row.id.partition("@")[0]


def dev_utterances(corpus):
    """Return the length in seconds of the utterances of other speakers."""
    tested = {
        name.split("/")[0] for _, *names in read_list(corpus) for name in names
    }
    return {
        str(path.relative_to(corpus / "wav").with_suffix("")): soundfile.info(
            path
        ).duration
        for path in (corpus / "wav").rglob("*.wav")
        if path.parts[-3] not in tested
    }


def test_an_utterance_has_a_row_for_each_full_chunk(corpus, prepare, tmp_path):
    account = prepare()
    assert not account.problems
    rows = read_rows(tmp_path, "train") + read_rows(tmp_path, "valid")
    lengths = dev_utterances(corpus)
    assert Counter(map(utterance_of, rows)) == {
        name: int(seconds // 3) for name, seconds in lengths.items()
    }
    for row in rows:
        name, start_s = row.id.split("@")
        assert row.path == str(corpus / "wav" / f"{name}.wav")
        assert row.segments == ((float(start_s), float(start_s) + 3),)
        assert row.duration == 3
        assert row.labels["speaker"] == name.split("/")[0]
        assert float(row.labels["recording_s"]) == lengths[name]
    dropped = sum(total.hours for total in account.dropped.values())
    assert account.kept.hours + dropped == pytest.approx(account.found.hours)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_every_speaker_trains_and_no_utterance_does_both(
    corpus, prepare, tmp_path, fraction
):
    prepare(valid_fraction=fraction)
    utterances = {}
    for part in ("train", "valid"):
        utterances[part] = defaultdict(set)
        for row in read_rows(tmp_path, part):
            name = utterance_of(row)
            utterances[part][name.split("/")[0]].add(name)
    assert utterances["train"].keys() == utterances["valid"].keys()
    for speaker, valid in utterances["valid"].items():
        train = utterances["train"][speaker]
        assert not train & valid
        assert len(valid) == min(round(fraction * 6), 5)
        assert len(train | valid) == 6


def test_the_choice_hangs_on_names_alone(corpus, prepare, tmp_path):
    prepare()
    before = [row.id for row in read_rows(tmp_path, "valid")]
    speakers = defaultdict(list)
    for name in sorted(dev_utterances(corpus)):
        speakers[name.split("/")[0]].append(name)
    for index in (0, -1):  # neither the first nor the last of each
        assert {name.partition("@")[0] for name in before} != {
            names[index] for names in speakers.values()
        }
    first = sorted((corpus / "wav").iterdir())[0]
    shutil.copytree(first, corpus / "wav" / "id00001")  # comes first of all
    prepare(num_workers=2)
    after = [row.id for row in read_rows(tmp_path, "valid")]
    assert [name for name in after if "id00001" not in name] == before


@pytest.mark.parametrize("count", range(1, 60))
def test_small_speakers_train_and_validate(count):
    names = {f"id1/x/{index:05d}": 9.0 for index in range(count)}
    groups = {**names, "id2/x/1": 9.0, "id2/x/2": 9.0, "test": 9.0}
    manifests = voxceleb1._split_utterances(groups, valid_fraction=0.1)
    valid = [name for name in names if manifests[name] == "valid.csv"]
    if count >= 10:  # speakers of the real corpus have 45 and more
        assert len(valid) == round(0.1 * count)
    else:
        assert len(valid) == (count > 1)


def test_speakers_of_one_utterance_cannot_validate(corpus, prepare, tmp_path):
    speakers = defaultdict(list)
    for name in sorted(dev_utterances(corpus)):
        speakers[name.split("/")[0]].append(name)
    for _, *others in speakers.values():
        for name in others:
            (corpus / "wav" / f"{name}.wav").unlink()
    with pytest.raises(UserError, match="--valid_fraction=0"):
        prepare()
    prepare(valid_fraction=0)
    names = {utterance_of(row) for row in read_rows(tmp_path, "train")}
    assert names == {names[0] for names in speakers.values()}


def test_no_validation_set_can_be_asked_for(corpus, prepare, tmp_path):
    prepare()
    prepare(valid_fraction=0)
    assert not (tmp_path / "m" / "valid.csv").exists()
    names = {utterance_of(row) for row in read_rows(tmp_path, "train")}
    assert names == dev_utterances(corpus).keys()


def test_trials_name_rows_of_the_test_set(corpus, prepare, tmp_path):
    account = prepare()
    rows = read_rows(tmp_path, "test")
    trials = [list(trial.values()) for trial in read_trials(tmp_path)]
    assert trials == read_list(corpus)
    assert list(read_trials(tmp_path)[0]) == ["target", "enrol", "test"]
    ids = [row.id for row in rows]
    assert ids == sorted({name for _, *names in trials for name in names})
    for row in rows:
        assert row.path == str(corpus / "wav" / f"{row.id}.wav")
        assert row.segments == ()
        assert float(row.labels["recording_s"]) == pytest.approx(
            row.duration, abs=1e-6
        )
    train = {row.labels["speaker"] for row in read_rows(tmp_path, "train")}
    assert not train & {row.labels["speaker"] for row in rows}
    assert account.other_files == {"trials.csv": len(trials)}
    assert "192 lines: trials.csv" in account.summary()


@pytest.mark.parametrize("place", ["meta", "elsewhere"])
def test_the_list_may_stand_elsewhere_and_without_endings(
    corpus, prepare, tmp_path, place
):
    expected = read_list(corpus)
    (corpus / "veri_test2.txt").unlink()
    path = corpus / place / "veri_test2.txt"
    path.parent.mkdir()
    path.write_text("".join(" ".join(trial) + "\n" for trial in expected))
    prepare(trials=None if place == "meta" else path)
    assert [list(t.values()) for t in read_trials(tmp_path)] == expected


def test_what_is_not_in_the_trials_of_a_test_speaker_is_not_trained_on(
    corpus, prepare, tmp_path
):
    trials = read_list(corpus)
    enrolled = trials[0][1]
    others = [trial for trial in trials if enrolled not in trial]
    text = "".join(" ".join(trial) + "\n" for trial in others)
    (corpus / "veri_test2.txt").write_text(text)
    account = prepare()
    reason = "of a speaker of the trials, but not in them"
    assert account.dropped[reason].count == 1
    parts = ("train", "valid", "test")
    rows = [row for part in parts for row in read_rows(tmp_path, part)]
    assert enrolled not in set(map(utterance_of, rows))


def test_damaged_test_audio_costs_its_trials(corpus, prepare, tmp_path, damage):
    trials = read_list(corpus)
    name = trials[0][1]
    reason = damage(corpus / "wav" / f"{name}.wav")
    lost = [trial for trial in trials if name in trial]
    account = prepare()
    assert account.problems == {
        reason: [f"wav/{name}.wav"],
        "trial without its recordings": [f"{a} {b}" for _, a, b in lost],
    }
    kept = [list(trial.values()) for trial in read_trials(tmp_path)]
    assert kept == [trial for trial in trials if trial not in lost]


def test_damaged_training_audio_is_listed(corpus, prepare, tmp_path, damage):
    lengths = dev_utterances(corpus)
    name = min(lengths)
    if (reason := damage(corpus / "wav" / f"{name}.wav")).endswith("missing"):
        assert not prepare().problems  # no list says that it should be there
    else:
        assert prepare().problems == {reason: [f"wav/{name}.wav"]}
    rows = read_rows(tmp_path, "train") + read_rows(tmp_path, "valid")
    assert set(map(utterance_of, rows)) == lengths.keys() - {name}


def test_short_utterances_are_counted(corpus, prepare, tmp_path):
    lengths = dev_utterances(corpus)
    chunk_seconds = sorted(lengths.values())[len(lengths) // 3] + 0.01
    account = prepare(chunk_seconds=chunk_seconds)
    short = [s for s in lengths.values() if s < chunk_seconds]
    total = account.dropped[f"utterance shorter than {chunk_seconds:g} s"]
    assert total.count == len(short) > 0
    assert 3600 * total.hours == pytest.approx(sum(short))
    dropped = sum(total.hours for total in account.dropped.values())
    assert account.kept.hours + dropped == pytest.approx(account.found.hours)


@pytest.mark.parametrize(
    ("seconds", "chunk_seconds", "count"),
    [(6, 3, 2), (5.9999, 3, 1), (3, 3, 1), (0.7, 0.1, 7)],  # 0.7 / 0.1 < 7
)
def test_a_last_chunk_must_be_full(
    corpus, prepare, tmp_path, write_recording, seconds, chunk_seconds, count
):
    write_recording(corpus / "wav" / "id10001" / "x" / "00001.wav", seconds)
    prepare(chunk_seconds=chunk_seconds)
    rows = read_rows(tmp_path, "train") + read_rows(tmp_path, "valid")
    assert [utterance_of(r) for r in rows].count("id10001/x/00001") == count


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 id10270/a/1.wav", "malformed line"),
        ("1 id10270/a/1.wav id10270/a/2.wav 7", "malformed line"),
        ("1 a/1.wav a/2.wav", "malformed line"),
        ("1", "malformed line"),
        ("2 id10270/a/1.wav id10270/a/2.wav", "label is neither 0 nor 1"),
        ("\udcff id10270/a/1.wav id10270/a/2.wav", "line is not UTF-8 text"),
    ],
)
def test_bad_trials_are_listed(corpus, prepare, tmp_path, line, reason):
    num_trials = len(read_list(corpus))
    with open(corpus / "veri_test2.txt", "ab") as file:
        file.write(line.encode("utf-8", "surrogateescape") + b"\n")
    place = f"veri_test2.txt:{num_trials + 1}"
    assert prepare().problems == {reason: [place]}
    assert len(read_trials(tmp_path)) == num_trials


def test_files_at_another_depth_are_listed(corpus, prepare, write_recording):
    write_recording(corpus / "wav" / "id10001" / "00001.wav", 4)
    ((reason, names),) = prepare().problems.items()
    assert reason.startswith("not in the layout")
    assert names == ["wav/id10001/00001.wav"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "There is no trial in"),
        ("hello\n", "There is no trial in"),
        ("1 id9/a/1.wav id9/a/2.wav\n", "None of the utterances of the trials"),
    ],
)
def test_a_useless_list_is_explained(corpus, prepare, tmp_path, text, expected):
    (corpus / "veri_test2.txt").write_text(text)
    with pytest.raises(UserError, match=expected):
        prepare()
    assert not list((tmp_path / "m").glob("*.csv"))


def test_trials_of_one_kind_are_refused_and_do_not_look_finished(
    corpus, prepare, tmp_path
):
    path = corpus / "veri_test2.txt"
    whole = path.read_text()
    targets = [t for t in whole.splitlines(True) if t.startswith("1")]
    path.write_text("".join(targets))
    for _ in range(2):
        with pytest.raises(UserError, match="need trials of the same speaker"):
            prepare()
    path.write_text(whole)
    assert not prepare().reused
    assert prepare().reused


def test_archives_may_lie_side_by_side(corpus, prepare, tmp_path):
    prepare()
    names = ("train", "valid", "test")
    before = {name: [r.id for r in read_rows(tmp_path, name)] for name in names}
    speakers = sorted((corpus / "wav").iterdir())
    for number, speaker in enumerate(speakers):
        part = corpus / ("a part", "test")[number % 2] / "wav"
        part.mkdir(parents=True, exist_ok=True)
        speaker.rename(part / speaker.name)
    (corpus / "wav").rmdir()
    assert not prepare().problems
    for name in names:
        rows = read_rows(tmp_path, name)
        assert [row.id for row in rows] == before[name]
        assert all(Path(row.path).is_file() for row in rows)


def test_an_utterance_in_two_archives_counts_once(corpus, prepare):
    kept = prepare().kept.count
    (corpus / "wav").rename(corpus / "wavs")
    (corpus / "dev").mkdir()
    (corpus / "wavs").rename(corpus / "dev" / "wav")
    first = sorted((corpus / "dev" / "wav").rglob("*.wav"))[0]
    copy = corpus / "test" / first.relative_to(corpus / "dev")
    copy.parent.mkdir(parents=True)
    shutil.copy(first, copy)
    account = prepare()
    assert account.kept.count == kept
    path = str(copy.relative_to(corpus))
    assert account.problems == {"utterance found twice": [path]}


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("wav", {}, "has no wav"),
        ("", {"trials": "nowhere.txt"}, "no list of trials .*nowhere.txt"),
        ("", {"chunk_seconds": 0}, "chunk_seconds"),
        ("", {"chunk_seconds": 60}, "nothing to train on"),
        ("", {"valid_fraction": 1.0}, "valid_fraction"),
    ],
)
def test_a_wrong_command_is_explained(
    corpus, prepare, source, options, expected
):
    with pytest.raises(UserError, match=expected):
        prepare(source, **options)


def test_the_corpus_is_found_below_source(corpus, prepare):
    assert prepare("..").source == str(corpus)


def test_a_corpus_without_the_list_is_explained(corpus, prepare):
    (corpus / "veri_test2.txt").unlink()
    with pytest.raises(UserError, match="--trials=FILE"):
        prepare()


def test_a_corpus_of_test_speakers_alone_is_explained(corpus, prepare):
    for name in dev_utterances(corpus):
        (corpus / "wav" / f"{name}.wav").unlink()
    with pytest.raises(UserError, match="Copy the development speakers"):
        prepare()
