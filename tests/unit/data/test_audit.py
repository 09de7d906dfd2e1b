"""Bad audio is found, each kind by its name, and left out of manifests."""

import csv
from pathlib import Path

import pytest

from summarymixing.data import audit
from summarymixing.data.audit import leave_out, verify, write_quarantine
from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.errors import UserError
from tests.damaged_audio import REASONS, speech, write_corpus


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path)
    return tmp_path


def run(folder: Path, **options) -> audit.Audit:
    manifests = audit.find_manifests([folder])
    return verify(manifests, folder / "verify.jsonl", **options)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_kind_is_named(corpus, monkeypatch, num_workers):
    monkeypatch.setattr(audit, "ROWS_PER_CHUNK", 3)
    found = run(corpus, num_workers=num_workers)
    assert {f.id: f.reason for _, f in found.findings} == REASONS
    assert {path.name for path, _ in found.findings} == {"train.csv"}
    assert (found.num_rows, found.num_known) == (16, 0)
    assert found.rates == {"8000": 1}
    text = found.summary()
    assert "16 rows" in text and "4 are sound" in text and "8000 Hz" in text
    assert all(reason in text for reason in REASONS.values())


def test_speech_that_peaks_at_full_scale_is_sound(tmp_path):
    row = Row("a", "/a.wav", (), 1.0)
    wav = audit.torch.from_numpy(speech(1, peak=1.0))
    assert audit.examine(wav, row) is None


def test_a_second_call_goes_on_and_comes_to_the_same(corpus, monkeypatch):
    monkeypatch.setattr(audit, "ROWS_PER_CHUNK", 4)
    whole = run(corpus)
    report = corpus / "verify.jsonl"
    lines = report.read_text().splitlines(keepends=True)
    # Killed while it wrote the fourth line.
    report.write_text("".join(lines[:3]) + lines[3][:-1])
    examined = []
    examine = audit._examine_chunk

    def counted(number, start, rows):
        examined.append((number, start))
        return examine(number, start, rows)

    monkeypatch.setattr(audit, "_examine_chunk", counted)
    again = run(corpus)
    assert (again.num_known, len(examined)) == (8, len(lines) - 3)
    assert again.findings == whole.findings
    assert report.read_text().splitlines(keepends=True) == lines
    assert run(corpus).num_known == 16


def test_other_manifests_are_verified_anew(corpus):
    run(corpus)
    rows = [*Manifest.read(corpus / "train.csv")]
    write_manifest(corpus / "train.csv", rows[1:])
    assert run(corpus).num_known == 0


@pytest.mark.parametrize("has_numbers", [True, False])
def test_what_is_listed_is_left_out(corpus, has_numbers):
    found = run(corpus)
    path = corpus / "quarantine.csv"
    write_quarantine(found, path)
    if not has_numbers:
        with path.open(newline="") as file:
            kept = [entry[:2] for entry in csv.reader(file)]
        path.write_text("".join(",".join(entry) + "\n" for entry in kept))
    train = Manifest.read(corpus / "train.csv")
    left = leave_out(train, path)
    assert [row.id for row in left] == ["good", "good-8k", "part"]
    assert left.durations.tolist() == [1.0, 1.0, 0.5]
    valid = Manifest.read(corpus / "valid.csv")
    assert leave_out(valid, path) is valid
    assert leave_out(train, None) is train


def test_numbers_of_an_earlier_manifest_mislead_nobody(corpus):
    write_quarantine(run(corpus), corpus / "quarantine.csv")
    rows = [*Manifest.read(corpus / "train.csv")]
    write_manifest(corpus / "train.csv", rows[::-1])
    train = Manifest.read(corpus / "train.csv")
    left = leave_out(train, corpus / "quarantine.csv")
    assert [row.id for row in left] == ["part", "good-8k", "good"]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "manifest,id,row\nx.csv,a\n"])
def test_a_list_that_is_none_is_a_message(corpus, text):
    path = corpus / "list.csv"
    train = Manifest.read(corpus / "train.csv")
    with pytest.raises(UserError, match="--exclude"):
        leave_out(train, path)
    path.write_text(text.replace("x.csv", "valid.csv"))
    if "a,b" in text:
        with pytest.raises(UserError, match="columns manifest, id"):
            leave_out(train, path)
    else:
        assert leave_out(train, path) is train


def test_a_folder_without_manifests_is_a_message(tmp_path):
    (tmp_path / "trials.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="holds no manifest"):
        audit.find_manifests([tmp_path])
