"""What an encoder makes of the items of ABX: errors by layer, codes, purity.

Letters: N items, F frames of all recordings, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from summarymixing.data.audio import END_TOLERANCE_S, audio_info, read_audio
from summarymixing.data.batching import pad_wavs
from summarymixing.data.items import Item, find_recordings, read_items
from summarymixing.data.manifest import Manifest, Row
from summarymixing.data.prepare.common import list_files
from summarymixing.data.prepare.folder import SUFFIXES
from summarymixing.errors import UserError
from summarymixing.lobes.features import FRAMES_PER_SECOND
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder, Wav2Vec2Output
from summarymixing.nnet.abx import (
    AbxErrors,
    ItemFrames,
    ItemLabels,
    abx_errors,
)
from summarymixing.nnet.clusters import ClusterScores, cluster_scores
from summarymixing.nnet.quantiser import GumbelQuantiser

Encode = Callable[[Tensor, Tensor], Wav2Vec2Output]

SECONDS_AT_A_TIME = 30.0  # of audio in a batch, unless one is longer
BYTES_PER_VALUE = 4  # hidden states wait in float32


@dataclass(frozen=True)
class AbxSettings:
    """How items are compared; see `summarymixing.nnet.abx.abx_errors`."""

    pooled: bool = False
    max_size_group: int | None = 10
    max_x_across: int | None = 5
    seed: int = 0


@dataclass(frozen=True)
class ItemSet:
    """Items with at least one frame, and the recordings that they are in."""

    items: Sequence[Item]
    recordings: Sequence[Row]  # from the shortest to the longest
    left_out: int  # items shorter than a frame

    @classmethod
    def read(cls, path: Path, audio: Path) -> ItemSet:
        """Read an item file and find its recordings.

        Arguments
        ---------
        path : Path
            The item file.
        audio : Path
            A folder with the recordings, at any depth, or a manifest of them.

        Raises
        ------
        UserError
            For a wrong line, a recording that is missing or unreadable, and
            items behind the end of theirs.
        """
        every = read_items(path)
        names = {item.file for item in every}
        found = find_recordings(names, _list_audio(audio), audio)
        durations = {
            name: audio_info(file).duration_s for name, file in found.items()
        }
        for item in every:
            if float(item.offset_s) > durations[item.file] + END_TOLERANCE_S:
                raise UserError(
                    f"{path}: '{item.phone}' of {item.file} ends at "
                    f"{item.offset_s} s, but {found[item.file]} at "
                    f"{durations[item.file]:.3f} s; these are not the "
                    "recordings of these items"
                )
        frames = [item.frames(FRAMES_PER_SECOND) for item in every]
        items = [
            item
            for item, (start, stop) in zip(every, frames, strict=True)
            if start < stop
        ]
        if not items:
            raise UserError(
                f"{path}: no item is as long as a frame (20 ms); are its "
                "times in seconds?"
            )
        rows = [
            Row(name, str(file), (), durations[name])
            for name, file in sorted(found.items())
        ]
        rows.sort(key=lambda row: row.duration)
        return cls(items, rows, len(every) - len(items))

    def labels(self) -> ItemLabels:
        """Number the phones, contexts and speakers."""
        return ItemLabels(
            _number([item.phone for item in self.items]),
            _number([f"{item.previous} {item.next}" for item in self.items]),
            _number([item.speaker for item in self.items]),
        )

    def num_frames(self) -> int:
        """Return about how many frames the recordings have."""
        seconds = sum(row.duration for row in self.recordings)
        return int(seconds * FRAMES_PER_SECOND) + len(self.recordings)


def _list_audio(audio: Path) -> Iterator[Path]:
    if audio.is_dir():
        for file in list_files(audio, SUFFIXES):
            yield audio / file.relative
        return
    if not audio.is_file():
        raise UserError(
            f"there is no folder {audio}; give the one with the recordings "
            "that the items name"
        )
    manifest = Manifest.read(audio)
    # A recording may have many rows.
    paths = (manifest[index].path for index in range(len(manifest)))
    yield from map(Path, dict.fromkeys(paths))


def _number(names: Sequence[str]) -> np.ndarray:
    return np.unique(names, return_inverse=True)[1].ravel()


def score_layers(
    encode: Encode,
    items: ItemSet,
    layers: Sequence[int],
    settings: AbxSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    compare_on: torch.device | str = "cpu",
    layers_at_a_time: int | None = None,
    show_progress: bool = False,
) -> Iterator[tuple[int, AbxErrors]]:
    """Yield the ABX errors of hidden states.

    Arguments
    ---------
    encode : callable
        `encode(wavs, wav_lens)` gives hidden states, without gradients and
        in eval mode.
    items : ItemSet
        What is compared.
    layers : sequence of int
        0 is the input of the first layer.
    settings : AbxSettings, optional
        How; by default as ZeroSpeech does.
    device, compare_on : torch.device or str
        Where to encode, and where to compare.
    layers_at_a_time : int, optional
        Layers whose states wait in memory; the audio is encoded again for
        further ones. By default all.
    show_progress : bool
        Show a bar on a terminal.
    """
    labels, settings = items.labels(), settings or AbxSettings()
    size = layers_at_a_time or len(layers)
    for first in range(0, len(layers), size):
        some = layers[first : first + size]
        found = _encode_layers(encode, items, some, device, show_progress)
        for layer in some:
            frames = ItemFrames(*(x.to(compare_on) for x in found.pop(layer)))
            if not frames.frames.isfinite().all():
                raise UserError(
                    f"layer {layer} has NaN or infinite values; encode in "
                    "another precision, or look for the checkpoint where they "
                    "began"
                )
            yield layer, abx_errors(frames, labels, **vars(settings))


def _encode_layers(
    encode: Encode,
    items: ItemSet,
    layers: Sequence[int],
    device: torch.device | str,
    show_progress: bool,
) -> dict[int, ItemFrames]:
    """Encode all recordings; return the frames of some layers."""
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    lengths: dict[str, int] = {}
    for rows, wavs, wav_lens in _batches(items, show_progress):
        out = encode(wavs.to(device), wav_lens.to(device))
        counts = (~out.padding_mask).sum(dim=1).tolist()
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            lengths[row.id] = count
            for layer, kept in states.items():
                kept.append(
                    out.hidden_states[layer][place, :count].float().cpu()
                )
    starts, stops = _frames_of_items(items.items, lengths)
    return {
        layer: ItemFrames(torch.cat(kept), starts, stops - starts)
        for layer, kept in states.items()
    }


def _batches(
    items: ItemSet, show_progress: bool
) -> Iterator[tuple[list[Row], Tensor, Tensor]]:
    """Yield the recordings, padded with others of about their length."""
    bar = tqdm(
        total=len(items.recordings),
        desc="encode",
        unit="recording",
        disable=None if show_progress else True,
    )
    rows: list[Row] = []
    with bar:
        for row in items.recordings:
            if rows and (len(rows) + 1) * row.duration > SECONDS_AT_A_TIME:
                yield rows, *pad_wavs([read_audio(row) for row in rows])
                bar.update(len(rows))
                rows = []
            rows.append(row)
        yield rows, *pad_wavs([read_audio(row) for row in rows])
        bar.update(len(rows))


def _frames_of_items(
    items: Sequence[Item], lengths: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Return where items start and stop in the frames of all recordings."""
    ends = np.cumsum(list(lengths.values()))
    begins = dict(zip(lengths, ends - list(lengths.values()), strict=True))
    frames = []
    for item in items:
        start, stop = item.frames(FRAMES_PER_SECOND)
        # The last one may be missing: encoders cut what fills no window.
        length = lengths[item.file]
        start, stop = min(start, length - 1), min(stop, length)
        frames.append((begins[item.file] + start, begins[item.file] + stop))
    starts, stops = torch.from_numpy(np.array(frames)).T.contiguous()
    return starts, stops


class CodeScores(NamedTuple):
    """How the codes of a quantiser agree with the phones of frames."""

    codes: ClusterScores  # of the combinations of all groups
    groups: list[ClusterScores]


@torch.no_grad()
def score_codes(
    encoder: Wav2Vec2Encoder,
    quantiser: GumbelQuantiser,
    items: ItemSet,
    *,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> CodeScores:
    """Compare the codes of frames with the phones of the items they are in.

    Arguments
    ---------
    encoder, quantiser
        Of one pre-trained model, in eval mode, on the device.
    items : ItemSet
        Phones; UserError where they overlap, as triphones do.
    device : torch.device or str
        Where to encode.
    show_progress : bool
        Show a bar on a terminal.
    """
    codes: list[Tensor] = []
    lengths: dict[str, int] = {}
    for rows, wavs, wav_lens in _batches(items, show_progress):
        latents, padding_mask = encoder.extract(
            wavs.to(device), wav_lens.to(device)
        )
        # Row by row, so that the frames of a recording follow each other.
        codes.append(quantiser(latents[~padding_mask]).code_ids.cpu())
        counts = (~padding_mask).sum(dim=1).tolist()
        lengths.update(zip((row.id for row in rows), counts, strict=True))
    starts, stops = (x.numpy() for x in _frames_of_items(items.items, lengths))
    _check_overlap(items.items)
    # A frame whose middle is on a border belongs to the item that begins.
    order = np.argsort(starts, kind="stable")
    stops[order[:-1]] = np.minimum(stops[order[:-1]], starts[order[1:]])
    sizes = stops - starts
    phones = np.repeat(items.labels().phones, sizes)
    steps = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    ids = torch.cat(codes).numpy()[np.repeat(starts, sizes) + steps]
    num_codes = quantiser.num_codes
    groups = [
        cluster_scores(phones, ids // num_codes**group % num_codes)
        for group in range(quantiser.num_groups)
    ]
    return CodeScores(cluster_scores(phones, ids), groups)


def _check_overlap(items: Sequence[Item]) -> None:
    in_order = sorted(items)
    for item, following in zip(in_order, in_order[1:], strict=False):
        if item.file == following.file and following.onset_s < item.offset_s:
            raise UserError(
                f"the items overlap ({item.file} at {following.onset_s} s), so "
                "that frames have no one phone; give items of single phones, "
                "as in phoneme-dev-clean.item, to compare codes with"
            )
