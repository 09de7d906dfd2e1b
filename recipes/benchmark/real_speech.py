"""Real human speech that any Debian or Ubuntu user can get by package name.

`python recipes/benchmark/real_speech.py DEST` needs no root and installs
nothing: it downloads packages, unpacks them under DEST, decodes telephone
prompts from G.722 to FLAC, and writes

- `DEST/audio/VOICE/`: a tree for `recipes/prepare.py folder` (pre-training),
  without the English files that are held out;
- `DEST/LibriSpeech/`: transcribed English prompts in LibriSpeech's layout, for
  `recipes/prepare.py librispeech`; every split is the same woman;
- `DEST/texts/VOICE/`: what each voice says, as its authors wrote it;
- `DEST/licences/` and `DEST/README.txt`: terms, and a table of hours.

A second run does nothing; one that was interrupted continues.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from summarymixing.errors import UserError, exit_on_user_error

# The share of the transcribed English prompts; the rest is for training.
HELD_OUT_SHARES = {"test-clean": 0.15, "dev-clean": 0.10}
TRAIN_SPLIT = "train-clean-100"
# One speaker reads everything, so the chapter keeps the splits' ids apart.
CHAPTERS = {TRAIN_SPLIT: "1-1", "dev-clean": "1-2", "test-clean": "1-3"}

NOT_SPEECH = re.compile(
    r"silence/|beep|(ascending|descending)-2tone|confbridge-(join|leave)\.|"
    r"tt-monkeys\."
)
# A digit by itself is read in one way only; see AMBIGUOUS for the others.
LONE_DIGIT = re.compile(r"(?<![\w.])\d(?!\w|\.\d)")
DIGITS = (
    "zero", "one", "two", "three", "four",
    "five", "six", "seven", "eight", "nine",
)  # fmt: skip
# "at [@]", "IAX (note: ...)", "<beep>": remarks that nobody says.
REMARK = re.compile(r"\[.*?\]|\(.*?\)|<.*?>")
# Larger numbers and signs can be read in several ways, addresses too.
AMBIGUOUS = re.compile(r"[0-9*#@]|www\.")


@dataclass(frozen=True, slots=True)
class Voice:
    """One language of one package.

    Arguments
    ---------
    name : str
        Folder under `DEST/audio` and `DEST/texts`.
    language, speakers, licence : str
        For the table.
    package, root, audio : str
        Debian package, glob pattern of the one folder of it that holds this
        voice, and glob pattern of the audio files below that folder.
    text_package, texts : str
        Debian package that holds the transcripts, and their glob pattern.
    """

    name: str
    language: str
    speakers: str
    licence: str
    package: str
    root: str
    audio: str
    text_package: str
    texts: str


def asterisk_voice(
    code: str, language: str, speaker: str, licence: str
) -> Voice:
    """Describe the telephone prompts of one language (16 kHz G.722)."""
    text_package = f"asterisk-core-sounds-{code}"
    return Voice(
        name=f"asterisk-{code}",
        language=language,
        speakers=speaker,
        licence=licence,
        package=f"{text_package}-g722",
        root=f"usr/share/asterisk/sounds/{code}_*",
        audio="**/*.g722",
        text_package=text_package,
        texts="usr/share/doc/*/core-sounds-*.txt.gz",
    )


def fillets_voice(code: str, language: str, speakers: str) -> Voice:
    """Describe the dialogues of a game in one language (22.05 kHz Ogg)."""
    return Voice(
        name=f"fillets-{code}",
        language=language,
        speakers=speakers,
        licence="GPL-2",
        package=f"fillets-ng-data-{code}",
        root="usr/share/games/fillets-ng/sound",
        audio="**/*.ogg",
        text_package="fillets-ng-data",
        texts=f"usr/share/games/fillets-ng/script/**/dialogs_{code}.lua",
    )


FESTVOX = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
ENGLISH = asterisk_voice("en", "English", "1 woman (A)", "CC-BY-SA-3.0")
VOICES = (
    ENGLISH,
    asterisk_voice("es", "Spanish", "1 woman (A)", "CC-BY-SA-3.0"),
    asterisk_voice("fr", "French", "1 woman", "CC-BY-SA-3.0"),
    asterisk_voice("it", "Italian", "1 man", "see licences"),
    asterisk_voice("ru", "Russian", "1 woman", "CC-BY-3.0"),
    fillets_voice("cs", "Czech", "2 and small roles"),
    fillets_voice("nl", "Dutch", "2 and small roles"),
    Voice(
        name="festvox-ru",
        language="Russian",
        speakers="1 man",
        licence="BSD-like",
        package="festvox-ru",
        root=f"{FESTVOX}/wav",
        audio="*.wav",
        text_package="festvox-ru",
        texts=f"{FESTVOX}/etc/txt.done.data",
    ),
)


def check_tools() -> None:
    """Raise a `UserError` before the download if something is missing."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(
                f"{tool} was not found: this script gets its speech from "
                "Debian packages. Run it on Debian or Ubuntu (a container "
                "will do) and copy DEST."
            )
    if importlib.util.find_spec("av") is None:
        raise UserError(
            "the package av, which decodes G.722, is not installed. "
            "Run: pip install av"
        )


def run_tool(package: str, folder: Path, *command: str) -> None:
    """Run a packaging command in a folder, or explain how it failed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(
            f"the package {package} cannot be had: `{' '.join(command)}` "
            f"said: {done.stderr.strip()}\nRun `sudo apt-get update` (on "
            "Ubuntu, `sudo add-apt-repository universe` before), then this "
            "command again; it continues where it stopped."
        )


def fetch_package(package: str, cache: Path) -> Path:
    """Download and unpack a Debian package unless that is done already."""
    unpacked = cache / package
    if unpacked.exists():
        return unpacked
    print(f"downloading {package}", flush=True)
    partial = cache / f"{package}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    run_tool(package, partial, "apt-get", "download", package)
    archive = next(partial.glob("*.deb"))
    run_tool(package, partial, "dpkg", "-x", archive.name, ".")
    return partial.rename(unpacked)


def decode_g722(source: Path) -> np.ndarray:
    """Return the samples of a raw G.722 file: int16, (S,), 16 kHz, mono."""
    import av  # optional: only this script reads G.722

    with av.open(str(source), format="g722") as container:
        frames = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
    return np.concatenate(frames)


def place_file(source: Path, target: Path) -> None:
    """Put a file into the result: G.722 as FLAC, anything else as it is."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: what has its final name is never written again.
    partial = target.with_name(f".{target.name}.part")
    partial.unlink(missing_ok=True)
    if source.suffix == ".g722":
        soundfile.write(partial, decode_g722(source), 16_000, format="FLAC")
    else:
        try:
            os.link(source, partial)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(source, partial)
    partial.replace(target)


def has_samples(source: Path) -> bool:
    """Tell whether a file holds any audio; three of the 6,800 do not."""
    if source.suffix == ".g722":
        return source.stat().st_size > 0
    return soundfile.info(source).frames > 0


def audio_files(voice: Voice, cache: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name (path below the root) and file of each utterance."""
    root = next((cache / voice.package).glob(voice.root))
    for source in sorted(root.glob(voice.audio)):
        name = source.relative_to(root).as_posix()
        if has_samples(source) and not NOT_SPEECH.match(name):
            yield name, source


def clean_transcript(text: str) -> str | None:
    """Spell a prompt as LibriSpeech does; None if that is not certain.

    Example
    -------
    >>> clean_transcript("Press 1, or re-enter your party's extension...")
    "PRESS ONE OR RE ENTER YOUR PARTY'S EXTENSION"
    >>> clean_transcript("[ascending tones]"), clean_transcript("Dial 600.")
    (None, None)
    """
    text = LONE_DIGIT.sub(lambda m: DIGITS[int(m[0])], REMARK.sub(" ", text))
    if AMBIGUOUS.search(text):
        return None
    words = re.sub(r"[^A-Z']", " ", text.upper()).split()
    return " ".join(filter(None, (word.strip("'") for word in words))) or None


def read_transcripts(lines: Iterable[str]) -> dict[str, str]:
    """Map the names of prompts to transcripts, where those are certain."""
    transcripts = {}
    for line in lines:
        name, colon, text = line.partition(":")
        transcript = clean_transcript(text)
        if colon and transcript and not name.startswith(";"):
            transcripts[name] = transcript
    return transcripts


def split_of(transcript: str) -> str:
    """Choose a split by a hash of the words.

    Several files say the same words; so these cannot be both in training and
    in test. A new release of the package moves no prompt.
    """
    digest = hashlib.sha256(transcript.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in HELD_OUT_SHARES.items():
        if position < share:
            return split
        position -= share
    return TRAIN_SPLIT


def english_transcripts(cache: Path) -> dict[str, str]:
    """Return the transcript of each English file name that has one."""
    (texts,) = (cache / ENGLISH.text_package).glob(ENGLISH.texts)
    with gzip.open(texts, "rt", encoding="utf-8") as lines:
        transcripts = read_transcripts(lines)
    return {f"{name}.g722": text for name, text in transcripts.items()}


def write_librispeech(cache: Path, dest: Path) -> None:
    """Write the transcribed English prompts in LibriSpeech's layout."""
    transcripts = english_transcripts(cache)
    prompts = [
        (transcripts[name], source)
        for name, source in audio_files(ENGLISH, cache)
        if name in transcripts
    ]
    for split, chapter in CHAPTERS.items():
        folder = dest / "LibriSpeech" / split / chapter.replace("-", "/")
        lines: list[str] = []
        for transcript, source in prompts:
            if split_of(transcript) == split:
                utterance = f"{chapter}-{len(lines):04d}"
                place_file(source, folder / f"{utterance}.flac")
                lines.append(f"{utterance} {transcript}\n")
        (folder / f"{chapter}.trans.txt").write_text("".join(lines))


def write_voice(voice: Voice, cache: Path, dest: Path) -> None:
    """Write the audio for pre-training, the texts and the licence."""
    transcripts = english_transcripts(cache) if voice is ENGLISH else {}
    for name, source in audio_files(voice, cache):
        transcript = transcripts.get(name)
        if transcript and split_of(transcript) != TRAIN_SPLIT:
            continue
        target = dest / "audio" / voice.name / name
        flac = source.suffix == ".g722"
        place_file(source, target.with_suffix(".flac") if flac else target)
    text_package = cache / voice.text_package
    for source in sorted(text_package.glob(voice.texts)):
        name = source.relative_to(text_package / "usr/share").as_posix()
        place_file(source, dest / "texts" / voice.name / name)
    terms = cache / voice.package / "usr/share/doc" / voice.package
    place_file(terms / "copyright", dest / "licences" / f"{voice.name}.txt")


def describe_folder(folder: Path) -> str:
    """Count the audio files of a folder and their hours."""
    suffixes = (".flac", ".ogg", ".wav")
    files = [p for p in folder.rglob("*") if p.suffix in suffixes]
    hours = sum(soundfile.info(p).duration for p in files) / 3600
    return f"{len(files):6d} {hours:6.2f}"


def summarise(dest: Path, packages: Iterable[Path]) -> str:
    """Return the text of README.txt."""
    columns = "{:<16} {:<9} {:<18} {:<13} {}\n"
    text = "Real speech from Debian packages.\n\n" + columns.format(
        "audio", "language", "speakers", "licence", " files  hours"
    )
    for voice in VOICES:
        row = (voice.name, voice.language, voice.speakers, voice.licence)
        text += columns.format(*row, describe_folder(dest / "audio" / row[0]))
    text += "\nLibriSpeech\n"
    for split in CHAPTERS:
        counts = describe_folder(dest / "LibriSpeech" / split)
        text += columns.format(split, "English", "woman A", "as above", counts)
    text += (
        "\nThe test speaker is heard in training, and most prompts are a few"
        "\nwords long: error rates say that code works, not how well it hears."
        "\nFull terms: licences/. Packages:\n"
    )
    return text + "".join(f"  {p.name}\n" for p in packages)


def build(dest: Path, cache: Path) -> str:
    """Download, convert and describe everything; return the description."""
    check_tools()
    for voice in VOICES:
        for package in (voice.package, voice.text_package):
            fetch_package(package, cache)
    for voice in VOICES:
        print(f"writing {voice.name}", flush=True)
        write_voice(voice, cache, dest)
    write_librispeech(cache, dest)
    return summarise(dest, sorted(cache.glob("*/*.deb")))


def main() -> None:
    """Read the command line and do the work that is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dest", type=Path, metavar="DEST")
    parser.add_argument("--keep_packages", action="store_true")
    arguments = parser.parse_args()
    cache = arguments.dest / "packages"
    readme = arguments.dest / "README.txt"
    if not readme.exists():
        partial = cache.with_name(".README.part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(build(arguments.dest, cache))
        partial.replace(readme)  # last of all: it says that all is there
    if not arguments.keep_packages:
        shutil.rmtree(cache, ignore_errors=True)
    print(readme.read_text())


if __name__ == "__main__":
    exit_on_user_error(main)
