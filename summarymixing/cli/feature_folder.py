"""A folder of features: what is in it, what is missing, and how it is made."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from summarymixing import __version__
from summarymixing.cli.values import (
    MEAN,
    choose_device,
    find_mixer,
    read_layers,
    read_memory,
)
from summarymixing.data.audio import (
    SAMPLE_RATE_HZ,
    AudioBlocks,
    AudioError,
    audio_info,
)
from summarymixing.data.batching import (
    BatchPlan,
    UtteranceDataset,
    pad_wavs,
    start_worker,
)
from summarymixing.data.feature_files import (
    DTYPES,
    FeatureFile,
    open_features,
)
from summarymixing.data.manifest import Manifest, Row, format_segments
from summarymixing.data.prepare.common import list_files
from summarymixing.data.prepare.folder import SUFFIXES
from summarymixing.errors import DATA_ERROR_STATUS, UserError
from summarymixing.files import open_atomically, write_json
from summarymixing.lobes.encoders import FrozenEncoder, digest, open_encoder
from summarymixing.lobes.features import FRAMES_PER_SECOND
from summarymixing.lobes.long_audio import (
    CONTEXT_SECONDS,
    WINDOW_SECONDS,
    Workspace,
    averaged,
)

SETTINGS_NAME = "features.json"
RECORDINGS_NAME = "recordings.jsonl"
UNREADABLE_NAME = "unreadable.txt"
FORMAT = "summarymixing.features"
ONE_WINDOW_SECONDS = float(WINDOW_SECONDS + 2 * CONTEXT_SECONDS)


def encode_all(options: Any) -> int:
    """Encode the recordings that `summarymixing encode` names.

    Arguments
    ---------
    options : Options
        Those of cli/encode.py, which imports this module.

    Returns
    -------
    int
        The exit status: 0, or `DATA_ERROR_STATUS` if some cannot be read.
    """
    memory = read_memory(options.memory)
    device = choose_device(options.device, options.precision)
    rows, unreadable = list_recordings(options.audio)
    found = len(rows) + len(unreadable)
    encoder = FrozenEncoder(
        open_encoder(options.encoder, mixer=find_mixer(options.mixer)),
        precision=options.precision,
    ).to(device)
    layers = read_layers(options.layers, encoder.inner.num_layers)
    folder = FeatureFolder(options, layers, encoder)
    missing = folder.open(rows)
    work = Encoding(
        folder,
        encoder,
        layers,
        memory,
        device,
        block_seconds=options.block_seconds,
    )
    work.tell(len(rows), missing)
    try:
        unreadable += work.run(missing, options.num_workers)
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        raise
    folder.close(unreadable)
    print(
        f"{folder.path} holds the features of {found - len(unreadable):,} "
        f"recordings; {SETTINGS_NAME} in it explains them",
        file=sys.stderr,
    )
    if unreadable:
        print(
            f"{len(unreadable)} of {found} recordings could not be read; "
            f"{folder.path / UNREADABLE_NAME} lists them",
            file=sys.stderr,
        )
        return DATA_ERROR_STATUS
    return 0


def list_recordings(audio: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """List what is to be encoded.

    Arguments
    ---------
    audio : Path
        An audio file, a folder or a manifest.

    Returns
    -------
    list of Row
        The recordings; their ids are the names of the files of features.
    list of (str, str)
        Files that cannot be read, and why.
    """
    if audio.suffix == ".csv":
        manifest = Manifest.read(audio)
        manifest.check_audio()
        return list(manifest), []
    if audio.is_dir():
        files = [file.relative for file in list_files(audio, SUFFIXES)]
        if not files:
            raise UserError(
                f"There is no audio ({', '.join(SUFFIXES)}) in {audio}. Give "
                "the folder that holds the files, or a manifest (.csv)."
            )
        root = audio.absolute()
    elif audio.exists():
        files, root = [audio.name], audio.parent.absolute()
    else:
        raise UserError(
            f"There is no {audio}. Give an audio file, a folder or a manifest."
        )
    # Without the suffix, unless two files would get one name.
    names = Counter(_stem(file) for file in files)
    rows, unreadable = [], []
    for file in files:
        path = str(root / file)
        name = _stem(file) if names[_stem(file)] == 1 else file
        try:
            seconds = audio_info(Path(path)).duration_s
        except AudioError as error:
            unreadable.append((path, str(error)))
        else:
            rows.append(Row(name, path, (), seconds))
    return rows, unreadable


def _stem(file: str) -> str:
    return str(Path(file).with_suffix(""))


class FeatureFolder:
    """The folder OUT: settings, files of features, and a list of them.

    Several commands may fill one folder at a time: a file appears when it is
    whole.

    Arguments
    ---------
    options : Options
        The command.
    layers : list of int or None
        What to store of each recording; None for the mean.
    encoder : FrozenEncoder
        Named in features.json by the digest of its weights.
    """

    def __init__(
        self, options: Any, layers: list[int] | None, encoder: FrozenEncoder
    ) -> None:
        self.path = options.out
        self.dtype, self.format = options.dtype, options.format
        self.names = [f"layer_{n}" for n in layers] if layers else [MEAN]
        exact = encoder.inner.is_exact
        # What makes the numbers: the same in all files of the folder.
        self.settings = {
            "format": FORMAT,
            "version": 1,
            "encoder_digest": digest(encoder),
            "tensors": self.names,
            "dtype": self.dtype,
            "file_format": self.format,
            "precision": options.precision,
            "long_recordings": "exact"
            if exact
            else f"approximate: above {ONE_WINDOW_SECONDS:g} s in windows of "
            f"{WINDOW_SECONDS} s with {CONTEXT_SECONDS} s more on each side",
            "frames_per_second": FRAMES_PER_SECOND,
            "width": encoder.inner.d_model,
        }
        self.facts = {
            "encoder": options.encoder,
            "num_layers": encoder.inner.num_layers,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "versions": {
                "summarymixing": __version__,
                "torch": torch.__version__,
            },
        }

    def open(self, rows: list[Row]) -> list[Row]:
        """Make the folder, or go on with it: returns what is missing.

        UserError where it holds features of other settings.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        settings = self.path / SETTINGS_NAME
        if settings.exists():
            self._compare(settings)
        else:
            write_json(settings, {**self.settings, **self.facts})
        done = dict(self._read_list())
        return [row for row in rows if not self._has(row, done)]

    def _compare(self, path: Path) -> None:
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            different = [
                f"{key}: {earlier.get(key)!r} there, {value!r} here"
                for key, value in self.settings.items()
                if earlier.get(key) != value
            ]
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); choose another folder OUT, or "
                "remove this one"
            ) from error
        if different:
            raise UserError(
                f"{self.path} holds features of other settings "
                f"({'; '.join(different)}). Choose another folder OUT, remove "
                "this one, or give its settings"
            )

    def _read_list(self) -> Iterator[tuple[str, dict[str, Any]]]:
        path = self.path / RECORDINGS_NAME
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                yield entry["id"], entry
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed command

    def _has(self, row: Row, done: dict[str, dict[str, Any]]) -> bool:
        entry = done.get(row.id, {})
        asked = _describe(row)
        return (
            all(entry.get(key) == value for key, value in asked.items())
            and self.file_of(row).is_file()
        )

    def file_of(self, row: Row) -> Path:
        """Return the file of a recording; UserError if it lies outside."""
        path = self.path / f"{row.id}.{self.format}"
        if self.path.resolve() not in path.resolve().parents:
            raise UserError(
                f"the id {row.id!r} of {row.path} would put its features "
                f"outside of {self.path}; give it another one in the manifest"
            )
        return path

    @contextmanager
    def writing(
        self, row: Row, total: int, width: int, *, durable: bool, exact: bool
    ) -> Iterator[FeatureFile]:
        """Open the file of a recording, and list it when it is written."""
        path = self.file_of(row)
        with open_features(
            path,
            self.names,
            total,
            width,
            dtype=self.dtype,
            format=self.format,
            durable=durable,
        ) as file:
            yield file
        entry = {
            **_describe(row),
            "file": f"{row.id}.{self.format}",
            "frames": total,
            "exact": exact,
        }
        with open(self.path / RECORDINGS_NAME, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def close(self, unreadable: list[tuple[str, str]]) -> None:
        """List what could not be read, or remove the list of earlier."""
        path = self.path / UNREADABLE_NAME
        if not unreadable:
            path.unlink(missing_ok=True)
            return
        with open_atomically(path) as file:
            for recording, reason in unreadable:
                file.write(f"{recording}\t{reason}\n")


def _describe(row: Row) -> dict[str, Any]:
    """Return what tells a recording from another of the same id."""
    return {
        "id": row.id,
        "path": row.path,
        "segments": format_segments(row.segments),
        "seconds": round(row.duration, 6),
    }


class Encoding:
    """Encodes recordings into a folder: short ones in batches.

    Arguments
    ---------
    folder : FeatureFolder
        Takes the features.
    encoder : FrozenEncoder
        On its device.
    layers : list of int or None
        As of `FeatureFolder`.
    memory : float
        Bytes to take.
    device : torch.device
        The device of the encoder.
    block_seconds : float, optional
        Of long recordings, where the memory is not to decide.
    """

    def __init__(
        self,
        folder: FeatureFolder,
        encoder: FrozenEncoder,
        layers: list[int] | None,
        memory: float,
        device: torch.device,
        block_seconds: float | None = None,
    ) -> None:
        self.folder, self.encoder, self.layers = folder, encoder, layers
        self.memory, self.device = memory, device
        self.block_seconds = block_seconds
        self.batch_seconds = encoder.inner.seconds_at_once(memory / 2)

    def tell(self, num_rows: int, missing: list[Row]) -> None:
        """Say what is to be done, and refuse what the disk cannot take."""
        seconds = sum(row.duration for row in missing)
        size = seconds * FRAMES_PER_SECOND * self.encoder.inner.d_model
        size *= len(self.folder.names) * DTYPES[self.folder.dtype][0].itemsize
        free = shutil.disk_usage(self.folder.path).free
        print(
            f"{len(missing):,} recordings, {seconds / 3600:.2f} h, to "
            f"{self.folder.path}: {size / 1e9:.2f} GB of {free / 1e9:.1f} GB "
            f"free"
            + (
                f"; {num_rows - len(missing):,} are there already"
                if num_rows > len(missing)
                else ""
            ),
            file=sys.stderr,
        )
        if size > free:
            raise UserError(
                f"the features take {size / 1e9:.1f} GB, and "
                f"{self.folder.path} has {free / 1e9:.1f} GB free; store fewer "
                "--layers, give --dtype=fp16, or choose another folder OUT"
            )

    def run(self, rows: list[Row], num_workers: int) -> list[tuple[str, str]]:
        """Encode recordings; returns those that cannot be read, and why."""
        unreadable: list[tuple[str, str]] = []
        short = [row for row in rows if row.duration <= self.batch_seconds]
        long = [row for row in rows if row.duration > self.batch_seconds]
        with tqdm(
            total=round(sum(row.duration for row in rows)),
            unit="s",
            desc="seconds of audio",
            disable=None,
        ) as self.progress:
            try:
                self._run_short(short, num_workers, unreadable)
                for row in long:
                    try:
                        self._encode_long(row)
                    except AudioError as error:
                        unreadable.append((row.path, str(error)))
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"the memory of {self.device} is too small for "
                    f"--memory={self.memory / 1e9:g}GB beside what it holds; "
                    "give less. The same command then goes on from here"
                ) from error
        return unreadable

    def _run_short(
        self,
        rows: list[Row],
        num_workers: int,
        unreadable: list[tuple[str, str]],
    ) -> None:
        if not rows:
            return
        dataset: Any = rows  # of which a dataset needs no more than a row
        plan = BatchPlan(
            [row.duration for row in rows],
            seed=0,
            max_batch_seconds=self.batch_seconds,
            order="ascending",
        )
        loader = DataLoader(
            UtteranceDataset(dataset, tolerate_errors=True),
            batch_sampler=plan.batches(0),  # type: ignore[arg-type]
            collate_fn=list,
            num_workers=num_workers,
            worker_init_fn=start_worker,
        )
        for utterances in loader:
            read = [u for u in utterances if not u.error]
            unreadable += [(u.row.path, u.error) for u in utterances if u.error]
            if read:
                wavs, wav_lens = pad_wavs([u.wav for u in read])
                states, padding_mask = self.encoder(
                    wavs.to(self.device), wav_lens.to(self.device)
                )
                for index, utterance in enumerate(read):
                    valid = ~padding_mask[index]
                    own = [state[index][valid] for state in states]
                    self._write_whole(utterance.row, own)
            self.progress.update(round(sum(u.row.duration for u in utterances)))

    def _write_whole(self, row: Row, states: list[Tensor]) -> None:
        """Write the states (T, D) of a recording that was encoded at once."""
        if self.layers is None:
            shown = [torch.stack(states).mean(0)]
        else:
            shown = [states[layer] for layer in self.layers]
        # One power cut may cost some; to wait for the disk for each of a
        # million files would cost more.
        with self.folder.writing(
            row, *shown[0].shape, durable=False, exact=True
        ) as file:
            for index, frames in enumerate(shown):
                file.write(index, 0, frames)

    def _encode_long(self, row: Row) -> None:
        encoder = self.encoder.inner
        workspace = Workspace(self.memory, self.folder.path, self.block_seconds)
        top = encoder.num_layers if self.layers is None else max(self.layers)
        blocks: Iterable[Any]
        blocks = encoder.state_blocks(AudioBlocks(row), workspace, top)
        blocks = counted(blocks, top, self.progress)
        places = {layer: i for i, layer in enumerate(self.layers or [0])}
        if self.layers is None:
            blocks = averaged(blocks, top + 1, workspace)
        with self.encoder.autocast(self.device.type):
            blocks = iter(blocks)
            first = next(blocks)
            with self.folder.writing(
                row,
                first.num_frames,
                first.states.shape[-1],
                durable=True,
                exact=encoder.is_exact,
            ) as file:
                for block in _chain(first, blocks):
                    if block.layer in places:
                        place = places[block.layer]
                        file.write(place, block.start, block.states)


def counted(blocks: Iterable[Any], top: int, progress: Any) -> Iterator[Any]:
    """Count a block of each of the layers 0 to `top` as its share of time."""
    done = 0.0
    for block in blocks:
        yield block
        done += len(block.states) / FRAMES_PER_SECOND / (top + 1)
        progress.update(int(done))
        done -= int(done)


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
