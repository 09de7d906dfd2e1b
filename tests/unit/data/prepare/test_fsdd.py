"""Spoken digits: labels from names, and the same files by speaker."""

import csv
from itertools import product

import pytest

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.fsdd import CORPUS
from summarymixing.errors import UserError

SPEAKERS = ("george", "jackson", "theo", "yweweler")
INDICES = (0, 4, 5, 9, 10, 49)


@pytest.fixture
def corpus(tmp_path, write_recording):
    for digit, speaker, index in product("07", SPEAKERS, INDICES):
        path = tmp_path / "fsdd" / f"{digit}_{speaker}_{index}.wav"
        write_recording(path, 0.3125 + index / 1000, rate=8000)
    return tmp_path / "fsdd"


@pytest.fixture
def prepare(corpus, tmp_path):
    def run(num_workers=1, overwrite=False, **options):
        plan = CORPUS.plan(corpus, tmp_path / "m", **options)
        return plan.run(num_workers=num_workers, overwrite=overwrite)

    return run


def read_rows(tmp_path, name, labels):
    return list(Manifest.read(tmp_path / "m" / f"{name}.csv", labels))


def read_trials(tmp_path):
    with open(tmp_path / "m" / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_digits_are_split_by_index(corpus, prepare, tmp_path):
    account = prepare()
    assert not account.problems and account.found.count == 48
    for split, indices in (
        ("train", (10, 49)),
        ("valid", (5, 9)),
        ("test", (0, 4)),
    ):
        rows = read_rows(tmp_path, split, ("digit", "speaker"))
        assert {row.id for row in rows} == {
            f"{digit}_{speaker}_{index}"
            for digit, speaker, index in product("07", SPEAKERS, indices)
        }
        for row in rows:
            digit, speaker, index = row.id.split("_")
            assert row.path == str(corpus / f"{row.id}.wav")
            assert row.labels == {"digit": digit, "speaker": speaker}
            assert row.duration == 0.3125 + int(index) / 1000


def test_speakers_are_split_by_name(prepare, tmp_path):
    account = prepare(test_speakers=["theo", "george"])
    expected = {
        "speakers_train": (("jackson", "yweweler"), (10, 49)),
        "speakers_valid": (("jackson", "yweweler"), (0, 4, 5, 9)),
        "speakers_test": (("theo", "george"), INDICES),
    }
    for name, (speakers, indices) in expected.items():
        rows = read_rows(tmp_path, name, ("speaker", "recording_s"))
        assert {row.id for row in rows} == {
            f"{digit}_{speaker}_{index}"
            for digit, speaker, index in product("07", speakers, indices)
        }
        assert len(rows) == account.other_files[f"{name}.csv"]
        for row in rows:
            assert row.labels["speaker"] == row.id.split("_")[1]
            assert float(row.labels["recording_s"]) == row.duration


def test_trials_are_balanced_and_of_test_speakers(prepare, tmp_path):
    prepare()
    trials = read_trials(tmp_path)
    known = read_rows(tmp_path, "speakers_test", ("speaker",))
    speaker_of = {row.id: row.labels["speaker"] for row in known}
    for trial in trials:
        one, other = trial["enrol"], trial["test"]
        assert one != other
        same = speaker_of[one] == speaker_of[other]
        assert trial["target"] == str(int(same))
    targets = [trial["target"] for trial in trials]
    assert targets.count("1") == targets.count("0") == 2 * 66
    pairs = {frozenset((t["enrol"], t["test"])) for t in trials}
    assert len(pairs) == len(trials)


def test_the_drawn_trials_stay_few_and_the_same(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "summarymixing.data.prepare.by_speaker.TRIALS_OF_EACH_KIND", 9
    )
    prepare()
    before = read_trials(tmp_path)
    assert len(before) == 18
    prepare(overwrite=True, test_speakers=["yweweler", "theo"], num_workers=2)
    assert read_trials(tmp_path) == before


def test_other_names_and_damaged_files_are_listed(
    corpus, prepare, write_recording, damage
):
    for name in ("noise.wav", "x_theo_1.wav", "1_theo.wav", "12_theo_1.wav"):
        write_recording(corpus / name, 0.5)
    reason = damage(corpus / "0_theo_0.wav")
    problems = prepare().problems
    missing = "missing" in reason  # then nothing says that it should be there
    assert problems.pop(reason, []) == ([] if missing else ["0_theo_0.wav"])
    ((reason, names),) = problems.items()
    assert reason.startswith("name is not like DIGIT_SPEAKER_INDEX.wav")
    assert names == ["12_theo_1.wav", "1_theo.wav", "noise.wav", "x_theo_1.wav"]


def test_a_recording_counts_once(corpus, prepare, write_recording):
    write_recording(corpus / "copies" / "0_theo_0.wav", 0.5)
    assert prepare().problems == {
        "listed twice (the first counts)": ["copies/0_theo_0.wav"]
    }


@pytest.mark.parametrize("lost", ["trials.csv", "speakers_valid.csv"])
def test_a_lost_file_is_made_again(prepare, tmp_path, lost):
    prepare()
    content = (tmp_path / "m" / lost).read_bytes()
    (tmp_path / "m" / lost).unlink()
    assert not prepare().reused
    assert (tmp_path / "m" / lost).read_bytes() == content
    assert prepare().reused


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_split_leaves_no_manifest(corpus, prepare, tmp_path, split):
    prepare()
    of_split = {"train": (10, 49), "valid": (5, 9), "test": (0, 4)}[split]
    for path in corpus.glob("*.wav"):
        if int(path.stem.split("_")[2]) in of_split:
            path.unlink()
    with pytest.raises(UserError, match=f"Nothing usable in {split}"):
        prepare()
    assert not list((tmp_path / "m").glob("*.csv"))


@pytest.mark.parametrize(
    "names", [["theo"], ["theo", "theo"], ["theo", "nobody"], list(SPEAKERS)]
)
def test_test_speakers_must_be_some_of_the_speakers(prepare, names):
    with pytest.raises(UserError, match="at least two of the speakers") as e:
        prepare(test_speakers=names)
    assert "george jackson theo yweweler" in str(e.value)


def test_speakers_without_usable_audio_are_explained(corpus, prepare):
    for path in corpus.glob("*_theo_*.wav"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="same speaker .* two speakers"):
        prepare()


def test_the_wrong_folder_is_explained(corpus, tmp_path, write_recording):
    write_recording(tmp_path / "other" / "a.wav", 1)
    (tmp_path / "empty").mkdir()
    for name in ("other", "empty"):
        with pytest.raises(UserError, match="No file in .* is named DIGIT"):
            CORPUS.plan(tmp_path / name, tmp_path / "m")
