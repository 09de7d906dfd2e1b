"""IEMOCAP: four emotions, ten speakers, and the whole release or nothing."""

from collections import Counter

import pytest

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.iemocap import CORPUS, mp3s_speaker
from summarymixing.errors import UserError
from summarymixing.miniature import build_iemocap

LABELS = ("speaker", "mp3s_speaker", "emotion")
TABLE = "Session3/dialog/EmoEvaluation/Ses03M_impro05a.txt"
AUDIO = "Session3/sentences/wav/Ses03M_impro05a"
NUM_USABLE = 70  # of 90; 20 are of other emotions


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_iemocap(tmp_path_factory.mktemp("iemocap") / "c", hours=0.01)


@pytest.fixture
def prepare(corpus, tmp_path):
    def run(source="", expected_utterances=0):
        return CORPUS.plan(
            corpus / source,
            tmp_path / "m",
            expected_utterances=expected_utterances,
        ).run()

    return run


def read_rows(tmp_path):
    return list(Manifest.read(tmp_path / "m" / "utterances.csv", LABELS))


def first_usable(corpus):
    """Return the first line of the table that is of the task, and its name."""
    lines = (corpus / TABLE).read_text().splitlines()
    return next(
        (line, line.split("\t")[1])
        for line in lines
        if line.startswith("[") and line.split("\t")[2] in ("neu", "sad", "exc")
    )


def test_utterances_of_four_emotions_are_kept(corpus, prepare, tmp_path):
    account = prepare(expected_utterances=NUM_USABLE)
    assert not account.problems
    labels = {}
    for table in corpus.glob("Session*/dialog/EmoEvaluation/*.txt"):
        for line in table.read_text().splitlines():
            if line.startswith("["):
                _, name, emotion, _ = line.split("\t")
                labels[name] = emotion
    wanted = {"neu": "neu", "hap": "hap", "exc": "hap", "sad": "sad"}
    wanted["ang"] = "ang"
    rows = read_rows(tmp_path)
    assert {row.id: row.labels["emotion"] for row in rows} == {
        name: wanted[emotion]
        for name, emotion in labels.items()
        if emotion in wanted
    }
    assert account.found.count == len(labels) == 90
    dropped = Counter(labels.values()) & Counter(fru=99, xxx=99)
    assert {r: t.count for r, t in account.dropped.items()} == {
        f"emotion {emotion} is not of the task": count
        for emotion, count in dropped.items()
    }


def test_speakers_are_numbered_by_session_and_sex(prepare, tmp_path):
    prepare()
    rows = read_rows(tmp_path)
    for row in rows:
        woman = row.id.rpartition("_")[2].startswith("F")
        session = int(row.id[3:5])
        assert row.labels["speaker"] == str(2 * session - woman)
    assert {row.labels["speaker"] for row in rows} == set(
        map(str, range(1, 11))
    )
    # The women of dialogues whose name ends in a letter, and nobody else.
    for row in rows:
        differs = row.labels["speaker"] != row.labels["mp3s_speaker"]
        assert differs == ("impro05a_F" in row.id or "1b_F" in row.id)


@pytest.mark.parametrize(
    ("utterance", "speaker"),
    [
        ("Ses01F_impro01_F000", "1"),
        ("Ses01F_impro01_M012", "2"),
        ("Ses04F_script02_2_F041", "7"),
        ("Ses04M_script02_2_M041", "8"),
        ("Ses03M_impro08b_F003", "6"),
        ("Ses05M_script01_1b_F003", "10"),
        ("Ses05M_script01_1b_M003", "10"),
    ],
)
def test_the_speakers_of_mp3s(utterance, speaker):
    assert mp3s_speaker(utterance) == speaker


def test_damaged_recordings_are_listed(corpus, prepare, tmp_path, damage):
    name = first_usable(corpus)[1]
    reason = damage(corpus / AUDIO / f"{name}.wav")
    assert prepare().problems == {reason: [f"{AUDIO}/{name}.wav"]}
    assert len(read_rows(tmp_path)) == NUM_USABLE - 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1.0 - 2.0]\tSes03M_impro05a_F900\tneu", "malformed line"),
        ("[1.0]\tSes03M_impro05a_F900\tneu\t[1, 2, 3]", "malformed line"),
        ("[1.0 - 2.0]\tSes03M_impro05a_X900\tneu\t[1, 2, 3]", "malformed line"),
        ("[1.0 - 2.0]\tSes03M_impro05a_F900\t\t[1, 2, 3]", "malformed line"),
        ("C-E1:\tOther;\t(\udce9)", "line is not UTF-8 text"),
        ("C-E1:\tOther;\t()", None),
    ],
)
def test_bad_lines_are_listed(corpus, prepare, tmp_path, line, reason):
    num_lines = (corpus / TABLE).read_bytes().count(b"\n")
    with open(corpus / TABLE, "ab") as file:
        file.write(line.encode("utf-8", "surrogateescape") + b"\n")
    place = f"{TABLE}:{num_lines + 1}"
    assert prepare().problems == ({reason: [place]} if reason else {})
    assert len(read_rows(tmp_path)) == NUM_USABLE


def test_an_utterance_counts_once(corpus, prepare, tmp_path):
    line, name = first_usable(corpus)
    with open(corpus / TABLE, "a") as file:
        file.write(line.replace("neu", "sad") + "\n")
    (reason,) = prepare().problems
    assert reason == "listed twice (the first counts)"
    assert len(read_rows(tmp_path)) == NUM_USABLE


def test_a_recording_without_a_label_is_listed(corpus, prepare, tmp_path):
    table = corpus / TABLE
    line, name = first_usable(corpus)
    table.write_text(table.read_text().replace(line, ""))
    assert prepare().problems == {
        "recording without a label": [f"{AUDIO}/{name}.wav"]
    }
    assert len(read_rows(tmp_path)) == NUM_USABLE - 1


def test_hidden_files_and_those_of_raters_are_left_alone(corpus, prepare):
    table = corpus / TABLE
    (table.parent / f"._{table.name}").write_bytes(b"\xff[")
    (table.parent / "Attribute").mkdir()
    votes = table.parent / "Attribute" / table.name
    votes.write_text("[malformed\n")
    assert not prepare().problems


@pytest.mark.parametrize("expected", [5531, NUM_USABLE + 1])
def test_another_number_of_utterances_is_refused(
    corpus, prepare, tmp_path, expected
):
    prepare()
    name = first_usable(corpus)[1]
    (corpus / AUDIO / f"{name}.wav").unlink()
    with pytest.raises(UserError) as caught:
        prepare(expected_utterances=expected)
    message = str(caught.value)
    assert f"69 utterances are usable, expected {expected:,}: " in message
    assert "of 1,103 in the release" in message
    assert "--expected_utterances=0" in message
    assert f"{AUDIO}/{name}.wav" in message  # what is missing
    assert not list((tmp_path / "m").glob("*.csv"))
    prepare()
    assert len(read_rows(tmp_path)) == NUM_USABLE - 1


def test_a_session_may_be_missing_and_is_listed(corpus, prepare, tmp_path):
    (corpus / "Session2").rename(corpus / "elsewhere")
    assert prepare().problems == {"session is missing": ["Session2"]}
    speakers = {row.labels["speaker"] for row in read_rows(tmp_path)}
    assert speakers == set("125678") | {"9", "10"}


def test_the_release_is_found_below_source(corpus, prepare):
    assert prepare("..").source == str(corpus)


def test_the_wrong_folder_is_explained(prepare):
    with pytest.raises(UserError, match="holds no sessions") as caught:
        prepare("Session1")
    assert "IEMOCAP_full_release" in str(caught.value)


def test_a_session_without_labels_is_explained(corpus, prepare):
    folder = corpus / "Session1" / "dialog" / "EmoEvaluation"
    folder.rename(corpus / "elsewhere")
    with pytest.raises(UserError, match="Session1 has no dialog/EmoEval"):
        prepare()
