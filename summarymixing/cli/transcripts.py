"""Transcripts of recordings: how they are made, and how they are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from summarymixing.cli.feature_folder import counted, list_recordings
from summarymixing.cli.values import choose_device, find_mixer, read_memory
from summarymixing.data.audio import AudioBlocks, AudioError
from summarymixing.data.manifest import Row
from summarymixing.errors import DATA_ERROR_STATUS, UserError
from summarymixing.files import open_atomically, write_json
from summarymixing.lobes.encoders import FrozenEncoder, digest
from summarymixing.lobes.long_audio import Workspace, windowed_blocks
from summarymixing.training.ctc import BeamSearch
from summarymixing.training.recogniser import (
    Word,
    beam_words,
    frame_scores,
    greedy_words,
    load_recogniser,
)

SETTINGS_NAME = "transcripts.json"
SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "ctm": ".ctm"}
CONTEXT_SECONDS = 2.0  # that a window of --window_seconds hears on each side
# A subtitle ends at a pause, or when it is as long as two lines of a screen.
PAUSE_SECONDS, SUBTITLE_SECONDS, SUBTITLE_LETTERS = 0.6, 6.0, 84


def transcribe_all(options: Any) -> int:
    """Transcribe the recordings that `summarymixing transcribe` names.

    Arguments
    ---------
    options : Options
        Those of cli/transcribe.py, which imports this module.

    Returns
    -------
    int
        The exit status: 0, or `DATA_ERROR_STATUS` if some cannot be read.
    """
    # Checked before the model is loaded.
    memory = read_memory(options.memory)
    device = choose_device(options.device, options.precision)
    rows, unreadable = list_recordings(options.audio)
    is_one = options.audio.is_file() and options.audio.suffix != ".csv"
    output = Output(options.out, options.format, is_one)
    recogniser = Recogniser(
        options.model,
        mixer=find_mixer(options.mixer),
        kenlm=options.kenlm,
        device=device,
        precision=options.precision,
        window_seconds=options.window_seconds,
    )
    missing = output.open(rows, recogniser.settings)
    total = round(sum(row.duration for row in missing))
    with tqdm(
        total=total, unit="s", desc="seconds of audio", disable=None
    ) as progress:
        for row in missing:
            workspace = Workspace(memory, block_seconds=options.block_seconds)
            try:
                words = recogniser.words(row, workspace, progress)
            except AudioError as error:
                unreadable.append((row.path, str(error)))
                continue
            with progress.external_write_mode(sys.stdout):
                output.write(row, words)
    for path, reason in unreadable:
        print(f"left out {path}: {reason}", file=sys.stderr)
    return DATA_ERROR_STATUS if unreadable else 0


class Recogniser:
    """A fine-tuned encoder and its head, for recordings of any length.

    Arguments
    ---------
    folder : Path
        The output folder of a fine-tuning; UserError for another one.
    mixer, kenlm, device, precision, window_seconds
        As the options of `summarymixing transcribe`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mixer: Any,
        kenlm: Path | None,
        device: torch.device,
        precision: str,
        window_seconds: float | None,
    ) -> None:
        if window_seconds is not None and window_seconds < 1:
            raise UserError(
                f"--window_seconds={window_seconds:g} must be at least 1"
            )
        self.window_seconds = window_seconds
        # It may be refused; the rest takes longer to load.
        self.search = None if kenlm is None else BeamSearch(kenlm)
        encoder, head, self.tokenizer = load_recogniser(folder, mixer)
        self.encoder = FrozenEncoder(encoder, precision=precision).to(device)
        self.head = head.to(device)
        # What makes the words: the same for all files of a folder.
        self.settings = {
            "encoder_digest": digest(self.encoder),
            "head_digest": digest(self.head),
            "kenlm": kenlm and str(kenlm.absolute()),
            "precision": precision,
            "window_seconds": window_seconds,
        }

    def words(
        self, row: Row, workspace: Workspace, progress: Any
    ) -> list[Word]:
        """Return the words of a recording; AudioError if it has no audio."""
        scores = self._scores(row, workspace, progress)
        if self.search is not None:
            return beam_words(
                torch.cat(list(scores)), self.tokenizer, self.search
            )
        ids = [block.argmax(dim=-1) for block in scores]
        return greedy_words(torch.cat(ids).tolist(), self.tokenizer)

    def _scores(
        self, row: Row, workspace: Workspace, progress: Any
    ) -> Iterator[torch.Tensor]:
        encoder = self.encoder.inner
        device = next(self.head.parameters()).device
        top = encoder.num_layers
        with self.encoder.autocast(device.type):
            wavs = AudioBlocks(row)
            if self.window_seconds is None:
                blocks = encoder.state_blocks(wavs, workspace, top)
            else:
                blocks = windowed_blocks(
                    wavs, encoder, self.window_seconds, CONTEXT_SECONDS
                )
            last = (
                block.states
                for block in counted(blocks, top, progress)
                if block.layer == top
            )
            yield from frame_scores(self.head, last)


class Output:
    """Where transcripts go: the screen, a file, or a folder of files.

    Arguments
    ---------
    path : Path or None
        The file or folder; None for the screen.
    format : str or None
        A key of `SUFFIXES`; None for what the ending of `path` says.
    is_one : bool
        Whether there is one recording, so that `path` is a file.
    """

    def __init__(
        self, path: Path | None, format: str | None, is_one: bool
    ) -> None:
        self.path, self.is_one = path, is_one
        of_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
        if format is None and path is not None and is_one:
            format = of_suffix.get(path.suffix.lower())
        self.format = format or "text"
        if path is not None and is_one and path.is_dir():
            raise UserError(
                f"--out={path} is a folder; give a file for one recording, as "
                f"in {path / 'transcript'}{SUFFIXES[self.format]}"
            )
        if path is not None and not is_one and path.is_file():
            raise UserError(
                f"--out={path} is a file; give a folder for several recordings"
            )
        if self.format == "srt" and path is None and not is_one:
            raise UserError(
                "subtitles of several recordings are several files; give "
                "--out=FOLDER"
            )

    def open(self, rows: Sequence[Row], settings: dict[str, Any]) -> list[Row]:
        """Make the folder, or go on with it: returns what is missing.

        UserError where it holds transcripts of another model.
        """
        if self.path is None or self.is_one:
            return list(rows)
        settings = {**settings, "format": self.format}
        about = self.path / SETTINGS_NAME
        if about.exists():
            try:
                earlier = json.loads(about.read_text("utf-8"))
            except ValueError:
                earlier = None
            if earlier != settings:
                raise UserError(
                    f"{self.path} holds transcripts of another model, or with "
                    f"other options ({about} names them). Choose another "
                    "folder --out, or remove this one"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(about, settings)
        missing = [row for row in rows if not self._file_of(row).exists()]
        print(
            f"{len(missing):,} of {len(rows):,} recordings to transcribe, to "
            f"{self.path}",
            file=sys.stderr,
        )
        return missing

    def _file_of(self, row: Row) -> Path:
        assert self.path is not None
        if self.is_one:
            return self.path
        path = self.path / f"{row.id}{SUFFIXES[self.format]}"
        if self.path.resolve() not in path.resolve().parents:
            raise UserError(
                f"the id {row.id!r} of {row.path} would put its transcript "
                f"outside of {self.path}; give it another one in the manifest"
            )
        return path

    def write(self, row: Row, words: Sequence[Word]) -> None:
        """Show the words of a recording, or write its file as a whole."""
        content = describe(row, words, self.format)
        if self.path is None:
            if self.format == "text" and not self.is_one:
                content = f"{row.id}\t{content}"
            print(content, end="", flush=True)
            return
        path = self._file_of(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path) as file:
            file.write(content)


def describe(row: Row, words: Sequence[Word], format: str) -> str:
    """Return the content of a file of transcripts.

    Arguments
    ---------
    row : Row
        The recording.
    words : sequence of Word
        What is said in it.
    format : str
        A key of `SUFFIXES`.

    Example
    -------
    >>> words = [Word("hello", 0.5, 0.9), Word("world", 2.0, 2.4)]
    >>> print(describe(Row("a", "a.wav", (), 3.0), words, "ctm"), end="")
    a 1 0.50 0.40 hello
    a 1 2.00 0.40 world
    """
    if format == "json":
        return _to_json(row, words)
    if format == "srt":
        return "\n".join(
            f"{number}\n{_clock(line[0].start_s)} --> {_clock(line[-1].stop_s)}"
            f"\n{' '.join(word.text for word in line)}\n"
            for number, line in enumerate(subtitles(words), 1)
        )
    if format == "ctm":
        name = row.id.replace(" ", "_")  # spaces separate the columns
        return "".join(
            f"{name} 1 {word.start_s:.2f} {word.stop_s - word.start_s:.2f} "
            f"{word.text}\n"
            for word in words
        )
    return " ".join(word.text for word in words) + "\n"


def _to_json(row: Row, words: Sequence[Word]) -> str:
    content = {
        "id": row.id,
        "path": row.path,
        "seconds": row.duration,
        "text": " ".join(word.text for word in words),
        "words": [
            {
                "word": word.text,
                "start": round(word.start_s, 2),
                "stop": round(word.stop_s, 2),
            }
            for word in words
        ],
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def subtitles(words: Sequence[Word]) -> list[list[Word]]:
    """Divide words into subtitles.

    Example
    -------
    >>> words = [Word("a", 0, 1), Word("b", 1.1, 2), Word("c", 4, 5)]
    >>> [[word.text for word in line] for line in subtitles(words)]
    [['a', 'b'], ['c']]
    """
    lines: list[list[Word]] = []
    for word in words:
        line = lines[-1] if lines else []
        if (
            not line
            or word.start_s - line[-1].stop_s > PAUSE_SECONDS
            or word.stop_s - line[0].start_s > SUBTITLE_SECONDS
            or sum(len(w.text) + 1 for w in (*line, word)) > SUBTITLE_LETTERS
        ):
            lines.append([word])
        else:
            line.append(word)
    return lines


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d},{milliseconds:03d}"
