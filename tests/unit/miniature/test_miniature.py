"""The miniature corpora: true layouts, reproducible, complete or absent."""

import hashlib
import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile

from summarymixing.data.items import read_items
from summarymixing.errors import UserError
from summarymixing.miniature import (
    build_librilight,
    build_librispeech,
    folder,
    librispeech,
)
from summarymixing.miniature.espeak import (
    ESPEAK_RATE_HZ,
    Voice,
    synthesise,
    synthesise_phonemes,
)
from summarymixing.miniature.speakers import MEN, WOMEN, cast_speakers
from summarymixing.miniature.text import (
    MANY_WORDS,
    make_clause,
    make_story_sentence,
    part_of,
)

UTTERANCES = {
    "train-clean-100": 26,
    "dev-clean": 3,
    "test-clean": 3,
    "test-other": 3,
}
BUILDERS = [build_librilight, build_librispeech]
TINY_HOURS = 0.01


@pytest.fixture(scope="module")
def librilight(tmp_path_factory):
    dest = tmp_path_factory.mktemp("librilight")
    return build_librilight(dest, hours=0.02, seed=1)


@pytest.fixture(scope="module")
def librispeech_root(tmp_path_factory):
    dest = tmp_path_factory.mktemp("librispeech")
    build_librispeech(dest, seed=1, utterances=UTTERANCES)
    return dest / "LibriSpeech"


@pytest.fixture(params=["librilight", "librispeech_root"])
def corpus(request):
    return request.getfixturevalue(request.param)


def chapters_of(librilight):
    """Yield the JSON data, samples and activity mask of each recording."""
    for path in sorted(librilight.rglob("*.json")):
        about = json.loads(path.read_text())
        samples, rate_hz = soundfile.read(path.with_suffix(".flac"))
        active = np.zeros(len(samples), dtype=bool)
        for start, stop in about["voice_activity"]:
            active[round(start * rate_hz) : round(stop * rate_hz)] = True
        yield about, samples, active


def rms_db(samples):
    return 10 * np.log10(np.mean(np.square(samples)))


def pitch_hz(samples):
    """Return where the autocorrelation between 50 and 220 Hz peaks."""
    spectrum = np.fft.rfft(samples, n=2 * len(samples))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)
    shortest, longest = ESPEAK_RATE_HZ // 220, ESPEAK_RATE_HZ // 50
    lag = shortest + np.argmax(correlation[shortest:longest])
    return ESPEAK_RATE_HZ / lag


def transcripts_of(split_root):
    """Map the utterances of a split to their texts."""
    lines = [
        line
        for path in sorted(split_root.rglob("*.trans.txt"))
        for line in path.read_text().splitlines()
    ]
    return dict(line.split(" ", maxsplit=1) for line in lines)


def digest(root):
    """Return a hash of all names and contents under a folder."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(str(path.relative_to(root)).encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def test_recordings_are_plausible_16_khz_mono_flac(corpus):
    paths = list(corpus.rglob("*.flac"))
    for path in paths:
        samples, rate_hz = soundfile.read(path)
        info = soundfile.info(path)
        assert (rate_hz, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert np.abs(samples).max() < 0.99
        assert -45 < rms_db(samples) < -18
    assert len(paths) >= 2


def test_librilight_has_the_layout_and_fields_of_the_real_one(librilight):
    assert [path.name for path in librilight.iterdir() if path.is_dir()] == [
        "small"
    ]
    jsons = sorted(librilight.rglob("*.json"))
    assert len({path.parents[1].name for path in jsons}) > 1  # speakers
    for path in jsons:
        about = json.loads(path.read_text())
        assert about["speaker"] == path.parents[1].name
        assert path.parents[2].name == "small"
        assert isinstance(about["snr"], float)
        assert {
            "id",
            "title",
            "genre",
            "Dramatic Readings",
            "meta_genre",
        } == set(about["book_meta"])


def test_voice_activity_is_where_the_speech_is(librilight):
    for about, samples, active in chapters_of(librilight):
        assert about["voice_activity"][-1][1] < len(samples) / 16_000
        speech_to_noise = rms_db(samples[active]) - rms_db(samples[~active])
        assert speech_to_noise == pytest.approx(about["snr"], abs=2)
        # Outside is noise alone: no half second of it stands out.
        outside = samples[~active]
        blocks = outside[: len(outside) // 8000 * 8000].reshape(-1, 8000)
        assert np.ptp([rms_db(block) for block in blocks]) < 2
        # Every clip is filled to its ends: it was not merely widened.
        for start, stop in about["voice_activity"]:
            for edge in (start, stop - 0.3):
                first = round(edge * 16_000)
                level = rms_db(samples[first : first + 4800])
                assert level > rms_db(outside) + 3


def test_pauses_between_clips_are_longer_than_those_inside(tmp_path):
    build_librilight(tmp_path / "c", hours=0.05, long_clip=False)
    gaps = []
    for about, _, _ in chapters_of(tmp_path):
        spans = about["voice_activity"]
        gaps += [b[0] - a[1] for a, b in zip(spans, spans[1:], strict=False)]
    assert len(gaps) > 10
    assert min(gaps) > 0.48  # six frames of the real detector


@pytest.mark.parametrize("long_clip", [True, False])
def test_clip_over_a_minute_stands_between_others(tmp_path, long_clip):
    build_librilight(tmp_path / "c", hours=0.001, long_clip=long_clip)
    is_long = [
        [stop - start > 60 for start, stop in about["voice_activity"]]
        for about, _, _ in chapters_of(tmp_path)
    ]
    assert sum(map(sum, is_long)) == long_clip
    assert not any(flags[0] or flags[-1] for flags in is_long)


def test_librispeech_has_the_layout_of_the_real_one(librispeech_root):
    for split, num_utterances in UTTERANCES.items():
        texts = transcripts_of(librispeech_root / split)
        audio = {path.stem: path for path in librispeech_root.rglob("*.flac")}
        assert len(texts) == num_utterances
        for name, text in texts.items():
            speaker, chapter, _ = name.split("-")
            parents = audio[name].parents
            assert [path.name for path in parents[:3]] == [
                chapter,
                speaker,
                split,
            ]
            assert re.fullmatch(r"\d+-\d+-\d{4}", name)
            assert re.fullmatch(r"[A-Z]+( [A-Z]+){2,5}", text)
    assert len(audio) == sum(UTTERANCES.values())


def test_splits_share_no_speaker_and_no_sentence(librispeech_root):
    table = (librispeech_root / "SPEAKERS.TXT").read_text().splitlines()[1:]
    rows = [[cell.strip() for cell in row.split("|")] for row in table]
    for column in (0, -1):  # the number; the voice and variant
        assert len({row[column] for row in rows}) == len(rows)
    for number, _, split, _, voice in rows:
        assert (librispeech_root / split / number).is_dir()
        assert part_of(voice) == librispeech.SPLITS[split].part
    for split in UTTERANCES:
        for text in transcripts_of(librispeech_root / split).values():
            clause = text.capitalize()  # the first word is a name
            assert part_of(clause) == librispeech.SPLITS[split].part


def test_test_other_is_noisier(librispeech_root):
    def noise_to_speech_db(split):
        levels = []
        for path in (librispeech_root / split).rglob("*.flac"):
            samples, _ = soundfile.read(path)
            levels.append(rms_db(samples[:2000]) - rms_db(samples))
        return levels

    clean = noise_to_speech_db("test-clean")
    assert min(noise_to_speech_db("test-other")) > max(clean)


@pytest.mark.parametrize(
    "build", [partial(build_librilight, long_clip=False), build_librispeech]
)
def test_same_seed_gives_the_same_bits(build, tmp_path):
    first, again, other = (
        digest(build(tmp_path / name, hours=TINY_HOURS, seed=seed))
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("build", BUILDERS)
def test_hours_are_kept(build, tmp_path):
    build(tmp_path / "c", hours=0.06)
    paths = tmp_path.rglob("*.flac")
    seconds = sum(soundfile.info(path).duration for path in paths)
    assert seconds / 3600 == pytest.approx(0.06, rel=0.2)


def test_second_run_does_nothing(tmp_path, monkeypatch):
    dest = build_librispeech(tmp_path / "c", hours=TINY_HOURS)
    before = digest(dest)
    monkeypatch.setattr(
        folder, "run_jobs", lambda *_: pytest.fail("built again")
    )
    build_librispeech(dest, hours=TINY_HOURS)
    assert digest(dest) == before


def test_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        done = []

        def write_then_fail(path, *arguments):
            if done:
                raise KeyboardInterrupt
            done.append(path)

        patch.setattr(librispeech, "write_audio", write_then_fail)
        with pytest.raises(KeyboardInterrupt):
            build_librispeech(tmp_path / "c", hours=TINY_HOURS)
    assert not list(tmp_path.iterdir())
    assert build_librispeech(tmp_path / "c", hours=TINY_HOURS).is_dir()


@pytest.mark.parametrize("other", [{"seed": 2}, {"hours": 2 * TINY_HOURS}])
def test_folder_with_something_else_is_refused(tmp_path, other):
    dest = build_librispeech(tmp_path / "c", hours=TINY_HOURS, seed=1)
    before = digest(dest)
    with pytest.raises(UserError, match="other arguments"):
        build_librispeech(dest, **{"hours": TINY_HOURS, "seed": 1, **other})
    with pytest.raises(UserError, match="other arguments"):
        build_librilight(dest, hours=TINY_HOURS, seed=1)
    assert digest(dest) == before
    with pytest.raises(UserError, match="not a miniature corpus"):
        build_librispeech(tmp_path, hours=TINY_HOURS)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf")])
def test_size_must_be_a_size(build, tmp_path, hours):
    with pytest.raises(UserError, match="positive"):
        build(tmp_path / "c", hours=hours)


def test_unknown_split_is_named(tmp_path):
    with pytest.raises(UserError, match="train-clean-360"):
        build_librispeech(tmp_path, utterances={"train-clean-360": 4})


def test_missing_synthesiser_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install 'summarymixing\[demo\]'"):
        synthesise(Voice("en"), ["Anna finds boats"])


def test_unknown_voice_is_named():
    with pytest.raises(UserError, match="elvish"):
        synthesise(Voice("elvish"), ["Anna finds boats"])


def test_all_variants_exist():
    # espeak-ng replaces an unknown variant by none, without a word.
    data = Path(espeakng_loader.get_data_path())
    existing = {path.name for path in (data / "voices" / "!v").iterdir()}
    assert {*WOMEN, *MEN} <= existing


@pytest.mark.parametrize("variant", ["", "+f5", "+sandro"])
def test_synthesis_is_reproducible(variant):
    # The variants with roughness or echo use random numbers.
    voice, texts = Voice(f"en{variant}"), ["Anna finds boats"] * 2
    first = synthesise(voice, texts)
    time.sleep(1.0)  # those would be seeded with the second of the day
    for a, b in zip(first, synthesise(voice, texts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_asking_for_phonemes_changes_no_sample():
    voice = Voice("en-us+f2")
    texts = ["Anna finds two red apples today", "Bruno hides lamps"]
    spoken = synthesise_phonemes(voice, texts)
    for plain, (samples, phonemes) in zip(
        synthesise(voice, texts), spoken, strict=True
    ):
        np.testing.assert_array_equal(plain, samples)
        starts = [phoneme.start for phoneme in phonemes]
        assert starts == sorted(starts)
        assert phonemes[-1].stop == len(samples)
    names = " ".join(p.name for p in spoken[1].phonemes if not p.is_pause)
    assert names == "b r u: n oU h aI d z l a m p s"


def test_items_say_where_phonemes_are(librispeech_root):
    """Between its first and its last item an utterance is loud."""
    for split in UTTERANCES:
        items = read_items(librispeech_root.parent / f"abx/{split}.item")
        by_file = {}
        for item in items:
            by_file.setdefault(item.file, []).append(item)
        assert len(by_file) == UTTERANCES[split]
        for name, own in by_file.items():
            (path,) = (librispeech_root / split).rglob(f"{name}.flac")
            assert {item.speaker for item in own} == {path.parts[-3]}
            samples, rate_hz = soundfile.read(path)
            inside = np.zeros(len(samples), dtype=bool)
            for item in own:
                start, stop = (round(float(t) * rate_hz) for t in item[1:3])
                inside[start:stop] = True
            assert rms_db(samples[inside]) > rms_db(samples[~inside]) + 5
            contexts = [(item.previous, item.next) for item in own]
            assert contexts[0][0] == contexts[-1][1] == "SIL"


def test_synthesis_does_not_saturate():
    # The loudest variants; at full volume all of them do.
    for variant in ("Gene", "Storm", "ed", "belinda"):
        voice = Voice(f"en-us+{variant}")
        for speech in synthesise(voice, ["Anna finds two red apples today"]):
            assert 0.1 < np.abs(speech).max() < 0.95


def test_pitch_and_speed_reach_the_synthesiser():
    text = ["Anna finds two red apples today"]
    slow, fast = (
        synthesise(Voice("en", words_per_minute=rate), text)[0]
        for rate in (120, 180)
    )
    assert len(slow) / len(fast) == pytest.approx(1.5, rel=0.15)
    low, high = (
        synthesise(Voice("en", pitch=pitch), ["Anna"])[0] for pitch in (20, 80)
    )
    assert pitch_hz(high) > 1.3 * pitch_hz(low)


@pytest.mark.parametrize("part", ["train", "dev", "test"])
def test_voices_and_clauses_keep_to_their_part(part):
    rng = np.random.default_rng(0)
    speakers = cast_speakers(rng, 16, part=part)
    assert {part_of(speaker.voice.name) for speaker in speakers} == {part}
    assert len({speaker.voice.name for speaker in speakers}) == 16
    clauses = [make_clause(rng, part) for _ in range(50)]
    assert {part_of(clause) for clause in clauses} == {part}


def test_stories_speak_the_words_of_the_probes_and_more():
    rng = np.random.default_rng(0)
    stories = " ".join(make_story_sentence(rng) for _ in range(300))
    spoken = set(re.findall(r"\w+", stories))
    assert {
        word for slot in MANY_WORDS for word in slot.words if " " not in word
    } <= (spoken)
