"""The miniatures of the MP3S corpora: layouts, tables, reproducible bits."""

import csv
import json
import re
from collections import Counter
from functools import partial

import numpy as np
import pytest
import soundfile

from summarymixing.errors import UserError
from summarymixing.miniature import (
    build_commonvoice,
    build_iemocap,
    build_slurp,
    build_voxceleb1,
    slurp,
)

BUILDERS = {
    "commonvoice_cy": partial(build_commonvoice, language="cy"),
    "commonvoice_eu": partial(build_commonvoice, language="eu"),
    "slurp": build_slurp,
    "iemocap": build_iemocap,
    "voxceleb1": build_voxceleb1,
}
HOURS = 0.02


@pytest.fixture(scope="module")
def get_corpus(tmp_path_factory):
    """Return a function that builds a corpus once."""
    root = tmp_path_factory.mktemp("corpora")
    return lambda name: BUILDERS[name](root / name, hours=HOURS, seed=1)


def contents_of(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def rms_db(path):
    samples, _ = soundfile.read(path)
    return 10 * np.log10(np.mean(np.square(samples[:2000])))


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {"commonvoice_eu"}))
def test_same_seed_gives_the_same_bits(name, get_corpus, tmp_path):
    again = BUILDERS[name](tmp_path / "c", hours=HOURS, seed=1)
    assert contents_of(again) == contents_of(get_corpus(name))


@pytest.mark.parametrize("name", BUILDERS)
def test_recordings_are_plausible(name, get_corpus):
    suffixes = {".flac", ".wav", ".mp3"}
    paths = [p for p in get_corpus(name).rglob("*") if p.suffix in suffixes]
    for path in paths:
        samples, rate_hz = soundfile.read(path)
        assert rate_hz == (32_000 if path.suffix == ".mp3" else 16_000)
        assert 0.5 < len(samples) / rate_hz < 20
        assert 0.05 < np.abs(samples).max() < 0.99
    assert len(paths) > 20


@pytest.mark.parametrize("language", ["cy", "eu"])
def test_common_voice_tables_name_their_clips(language, get_corpus):
    root = get_corpus(f"commonvoice_{language}")
    root = root / "cv-corpus-11.0-2022-09-21" / language
    clips, clients, sentences = [], Counter(), []
    for split in ("train", "dev", "test"):
        with open(root / f"{split}.tsv", encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
        assert rows[0][:3] == ["client_id", "path", "sentence"]
        assert {len(row) for row in rows} == {10}
        clips += [row[1] for row in rows[1:]]
        clients.update({row[0] for row in rows[1:]})
        sentences += [row[2] for row in rows[1:]]
    assert sorted(clips) == sorted(p.name for p in (root / "clips").iterdir())
    assert set(clients.values()) == {1}  # no client in two splits
    assert all(re.fullmatch(r"[A-Z].*\.", text) for text in sentences)
    lengths = {len(text.split()) for text in sentences}
    assert min(lengths) < 3 <= max(lengths)  # MP3S drops the short ones


def test_common_voice_in_another_language_is_refused(tmp_path):
    with pytest.raises(UserError, match="'cy', 'eu'"):
        build_commonvoice(tmp_path / "c", language="xx")


def test_slurp_has_all_scenarios_and_both_microphones(get_corpus):
    root = get_corpus("slurp")
    metadata = json.loads((root / "metadata.json").read_text())
    names, speakers = [], Counter()
    for split in ("train", "devel", "test"):
        lines = (root / f"{split}.jsonl").read_text().splitlines()
        prompts = [json.loads(line) for line in lines]
        assert {prompt["scenario"] for prompt in prompts} == set(
            slurp.SCENARIOS
        )
        for prompt in prompts:
            files = [recording["file"] for recording in prompt["recordings"]]
            headset, distant = sorted(files, key=len)[::-1]
            assert headset == distant.replace(".flac", "-headset.flac")
            headset, distant = (
                root / "slurp_real" / name for name in (headset, distant)
            )
            assert (
                soundfile.info(headset).frames == soundfile.info(distant).frames
            )
            names += files
        entries = [metadata[str(prompt["slurp_id"])] for prompt in prompts]
        recordings = [r for e in entries for r in e["recordings"].values()]
        speakers.update({recording["usrid"] for recording in recordings})
    assert len(slurp.SCENARIOS) == 18
    audio = (path.name for path in (root / "slurp_real").iterdir())
    assert sorted(names) == sorted(audio)
    assert set(speakers.values()) == {1}  # no speaker in two splits


def test_slurp_speakers_do_not_tell_the_scenario():
    prompts = {"train": 18 * 30, "devel": 18, "test": 18}
    spoken = {
        reading.speaker.number: {prompt.scenario for prompt in reading.items}
        for reading in slurp.plan_readings(prompts, seed=1)
        if reading.split == "train"
    }
    assert len(spoken) == 30
    assert min(map(len, spoken.values())) > 6


def test_iemocap_labels_name_their_recordings(get_corpus):
    root = get_corpus("iemocap")
    line = re.compile(
        r"\[(\d+\.\d+) - (\d+\.\d+)\]\t(Ses0(\d)[FM]_\w+_([FM])\d{3})"
        r"\t(\w{3})\t\[.+\]"
    )
    emotions, dialogues = {}, set()
    for path in sorted(root.glob("Session*/dialog/EmoEvaluation/*.txt")):
        dialogues.add(path.stem)
        for match in line.finditer(path.read_text()):
            start, stop, name, session, sex, emotion = match.groups()
            wav = (
                root / f"Session{session}/sentences/wav/{path.stem}/{name}.wav"
            )
            seconds = soundfile.info(wav).duration
            assert float(stop) - float(start) == pytest.approx(
                seconds, abs=0.01
            )
            emotions.setdefault(session + sex, set()).add(emotion)
    assert sum(1 for _ in root.rglob("*.wav")) == 90
    assert len(emotions) == 10  # speakers
    for speaker_emotions in emotions.values():
        assert {"neu", "hap", "ang", "sad", "exc"} < speaker_emotions
    assert {"Ses03M_impro05a", "Ses05M_script01_1b"} < dialogues


def test_voxceleb_trials_are_of_test_speakers_and_balanced(get_corpus):
    root = get_corpus("voxceleb1")
    trials = [
        line.split()
        for line in (root / "veri_test2.txt").read_text().splitlines()
    ]
    for label, *names in trials:
        assert all((root / "wav" / name).is_file() for name in names)
        one, other = (name.split("/")[0] for name in names)
        assert label == str(int(one == other))
        assert names[0] != names[1]
    labels = Counter(label for label, *_ in trials)
    assert labels["0"] == labels["1"]
    tested = {name.split("/")[0] for _, *names in trials for name in names}
    speakers = {path.name for path in (root / "wav").iterdir()}
    assert len(tested) >= 4
    assert len(speakers - tested) >= 4
