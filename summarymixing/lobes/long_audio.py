"""Recordings of any length through an encoder, in a fixed amount of memory.

An encoder whose mixers are `BlockwiseMixer`s is run layer by layer, in blocks:
nothing is cut, and the states are those of one forward pass to rounding. What
else is global is found before the first layer: the loudest value, under which
the floor of the filterbank lies, and the statistics of the sentence
normalisation. Other encoders are run in windows that overlap, which is an
approximation. Letters: S samples, T frames (20 ms), D width, L layers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from summarymixing.data.audio import AudioBlocks, audio_info
from summarymixing.data.manifest import Row
from summarymixing.lobes.conformer import ConformerEncoder
from summarymixing.lobes.features import (
    DYNAMIC_RANGE_DB,
    FRAMES_PER_SECOND,
    HOP_SAMPLES,
    VARIANCE_EPSILON,
    FbankFrontEnd,
    num_frames,
)
from summarymixing.nnet.mixer import BlockwiseMixer

FRAME_SAMPLES = 2 * HOP_SAMPLES
# More would not be faster: the products are large enough, and what they make
# leaves the cache all the same.
MAX_BLOCK_FRAMES = 60 * FRAMES_PER_SECOND
# The convolutions of the front end see one frame before and one behind, in
# twos, and a frame at the edge of what they are given is wrong in itself.
FRONT_END_REACH = 2

# Of a window: what is kept, and what it hears before and behind it.
WINDOW_SECONDS, CONTEXT_SECONDS = 50, 5


class StateBlock(NamedTuple):
    """Some frames of one hidden state of a recording."""

    layer: int  # 0: the input of the first layer; L: the output of the last
    start: int  # its first frame
    num_frames: int  # T, of the recording
    states: Tensor  # (n, D)


class Piece(NamedTuple):
    """Some frames of all hidden states that were asked for."""

    start_seconds: float
    hidden_states: list[Tensor]  # one (n, D) for each layer, in their order


class FrameStore:
    """Frames (T, D), in memory or in a file without a name.

    A file is read and written, not mapped: mapped pages would count as memory
    of the process. It is gone when the process ends, however it ends.

    Arguments
    ---------
    total, width : int
        T and D.
    like : Tensor
        Gives their type, and the device where they are computed, and kept if
        `folder` is None.
    folder : Path or None
        The folder of the file.

    Example
    -------
    >>> store = FrameStore(3, 2, torch.ones(1), getfixture("tmp_path"))
    >>> store.write(1, torch.ones(2, 2))
    >>> store.read(1, 3)
    tensor([[1., 1.],
            [1., 1.]])
    """

    def __init__(
        self,
        total: int,
        width: int,
        like: Tensor,
        folder: Path | None = None,
    ) -> None:
        self._width, self._like = width, like.new_empty(0)
        self._file: Any = None
        if folder is None:
            self._frames = like.new_empty(total, width)
        else:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def read(self, start: int, stop: int) -> Tensor:
        """Return the frames [start, stop), perhaps a view: (n, D)."""
        if self._file is None:
            return self._frames[start:stop]
        row = self._width * self._like.element_size()
        content = torch.empty((stop - start) * row, dtype=torch.uint8)
        self._file.seek(start * row)
        self._file.readinto(content.numpy())
        frames = content.view(self._like.dtype).view(-1, self._width)
        return frames.to(self._like.device)

    def write(self, start: int, frames: Tensor) -> None:
        """Put frames (n, D) where `start` is the first of them."""
        if self._file is None:
            self._frames[start : start + len(frames)] = frames
            return
        frames = frames.to("cpu", self._like.dtype).contiguous()
        self._file.seek(start * self._width * self._like.element_size())
        self._file.write(frames.view(-1).view(torch.uint8).numpy())


class Workspace:
    """The memory that encoding may take, and what it is spent on.

    Half is for frames of the whole recording; what does not fit lies in
    files. The rest is for the blocks that are computed.

    Arguments
    ---------
    memory : float
        Bytes beyond what the encoder takes itself, on its device.
    folder : Path, optional
        Where the files are; the system's temporary folder by default.
    block_seconds : float, optional
        The length of a block, where the memory is not to decide.
    """

    def __init__(
        self,
        memory: float,
        folder: Path | None = None,
        block_seconds: float | None = None,
    ) -> None:
        self.memory, self.block_seconds = memory, block_seconds
        self.folder = folder or Path(tempfile.gettempdir())
        self._left = memory / 2

    def store(self, total: int, width: int, like: Tensor) -> FrameStore:
        """Return room for frames (total, width), see `FrameStore`."""
        size = total * width * like.element_size()
        fits = size <= self._left
        if fits:
            self._left -= size
        return FrameStore(total, width, like, None if fits else self.folder)

    def block_frames(self, bytes_per_frame: int) -> int:
        """Return how many frames are computed at a time."""
        if self.block_seconds is not None:
            return max(1, round(self.block_seconds * FRAMES_PER_SECOND))
        frames = int(self.memory / 4 / bytes_per_frame)
        return min(max(frames, FRAMES_PER_SECOND), MAX_BLOCK_FRAMES)


def is_blockwise(conformer: ConformerEncoder) -> bool:
    """Return whether all layers can be run in blocks without a difference."""
    layers: Any = conformer.layers
    return all(isinstance(layer.mixer, BlockwiseMixer) for layer in layers)


def bytes_per_frame(conformer: ConformerEncoder) -> int:
    """Return what a layer holds at a time for each frame, about.

    Three tensors as wide as the hidden layer of a feed-forward module, and
    eight as wide as the frames, in float32.
    """
    layer: Any = conformer.layers[0]
    return 4 * (3 * layer.feed_forward_in[1].out_features) + 32 * (
        conformer.d_model
    )


@torch.no_grad()
def exact_blocks(
    wavs: Iterable[Tensor],
    front_end: FbankFrontEnd,
    embed: Callable[[Tensor, int], Tensor],
    conformer: ConformerEncoder,
    *,
    workspace: Workspace,
    num_layers: int,
    block_frames: int,
) -> Iterator[StateBlock]:
    """Encode a recording layer by layer, in blocks.

    Arguments
    ---------
    wavs : iterable of Tensors, (S_i,)
        Audio of 16 kHz, in blocks of any length; it is read twice.
    front_end, embed, conformer
        The parts of the encoder, in eval mode; embed(latents, start) returns
        the input of the first layer, `start` the number of its first frame.
    workspace : Workspace
        Takes the frames that are between two layers.
    num_layers : int
        How many layers to run.
    block_frames : int
        Frames of a block.

    Yields
    ------
    StateBlock
        Layer after layer, from 0, and of each all blocks from first to last.
    """
    layers: Any = list(conformer.layers[:num_layers])
    num_samples = sum(len(wav) for wav in wavs)
    total = num_frames(num_samples)
    latents = _latents(wavs, num_samples, front_end, workspace, block_frames)
    blocks: Iterator[tuple[int, Tensor]]
    blocks = ((start, embed(x, start)) for start, x in latents)
    states = workspace.store(total, conformer.d_model, conformer.norm.weight)
    for index in range(num_layers + 1):
        # Each block of this state goes at once through what the next layer
        # does before its mixer, so that a pass reads and writes frames once.
        following = layers[index] if index < num_layers else None
        sums: Any = 0
        for start, x in blocks:
            is_last = index == len(conformer.layers)
            shown = conformer.norm(x) if is_last else x
            yield StateBlock(index, start, total, shown[0])
            if following is not None:
                x = following.begin(x)
                states.write(start, x[0])
                part = following.mixer.summarise(following.norm_mixer(x), None)
                sums = sums + part.cpu().double()  # an hour has 180,000 frames
        if following is not None:
            summary = (sums / total).to(conformer.norm.weight)
            blocks = _from_mixer_on(
                following, states, summary, total, block_frames
            )


def _from_mixer_on(
    layer: Any,
    states: FrameStore,
    summary: Tensor,
    total: int,
    block_frames: int,
) -> Iterator[tuple[int, Tensor]]:
    """Run a layer from its mixer on: yields (start, frames (1, n, D)).

    Frames are read so far ahead that their places can be written to as soon
    as they were yielded.
    """
    reach = layer.convolution.depthwise.kernel_size[0] // 2
    mixed = states.read(0, 0)[None]  # the frames [first, read), mixed
    first = read = 0
    for start in range(0, total, block_frames):
        stop = min(start + block_frames, total)
        ahead = min(stop + reach, total)
        if ahead > read:
            x = states.read(read, ahead)[None]
            x = x + layer.mixer.combine(layer.norm_mixer(x), summary, None)
            mixed, read = torch.cat([mixed, x], dim=1), ahead
        x = mixed + layer.convolution(mixed, None)
        yield start, layer.finish(x[:, start - first : stop - first])
        behind = max(stop - reach, 0)
        mixed, first = mixed[:, behind - first :], behind


def _latents(
    wavs: Iterable[Tensor],
    num_samples: int,
    front_end: FbankFrontEnd,
    workspace: Workspace,
    block_frames: int,
) -> Iterator[tuple[int, Tensor]]:
    """Run the front end: yields (start, latents (1, n, channels))."""
    device, num_mels = front_end.window.device, num_samples // HOP_SAMPLES + 1
    samples = (
        part.to(device)
        for wav in wavs
        for part in wav.split(block_frames * FRAME_SAMPLES)
    )
    loudest, read = torch.tensor(-math.inf, device=device), 0
    mels: Any = None
    for decibels in front_end.stream_decibels(samples):
        if mels is None:
            mels = workspace.store(num_mels, decibels.shape[-1], decibels)
        loudest = torch.maximum(loudest, decibels.amax())
        mels.write(read, decibels[0])
        read += decibels.shape[1]
    floor, size = loudest - DYNAMIC_RANGE_DB, 2 * block_frames
    sums: Any = 0
    squares: Any = 0
    for first in range(0, num_mels, size):
        decibels = mels.read(first, min(first + size, num_mels)).maximum(floor)
        decibels = decibels.cpu().double()
        sums = sums + decibels.sum(0)
        squares = squares + decibels.square().sum(0)
    mean = sums / num_mels
    variance = (squares / num_mels - mean.square()).clamp(min=0)
    mean = mean.to(device, torch.float32)
    scale = (variance + VARIANCE_EPSILON).rsqrt().to(device, torch.float32)
    for start in range(0, num_frames(num_samples), block_frames):
        first = max(start - FRONT_END_REACH, 0)
        last = 2 * (start + block_frames + FRONT_END_REACH)
        decibels = mels.read(2 * first, min(last, num_mels)).maximum(floor)
        latents = front_end.convolve(((decibels - mean) * scale)[None], None)
        yield start, latents[:, start - first :][:, :block_frames]


@torch.no_grad()
def windowed_blocks(
    wavs: Iterable[Tensor],
    encoder: Any,
    window_seconds: float | None = None,
    context_seconds: float | None = None,
) -> Iterator[StateBlock]:
    """Encode a recording in windows that overlap: an approximation.

    Arguments
    ---------
    wavs : iterable of Tensors, (S_i,)
        Audio of 16 kHz, in blocks of any length; it is read twice.
    encoder : LongAudioEncoder
        Called as encoder(wavs, wav_lens), in eval mode.
    window_seconds, context_seconds : float, optional
        What is kept of a window, and what it hears before and behind it;
        `WINDOW_SECONDS` and `CONTEXT_SECONDS` by default.

    Yields
    ------
    StateBlock
        Window after window, and of each all layers, from 0.
    """
    num_samples = sum(len(wav) for wav in wavs)
    if window_seconds is None or context_seconds is None:
        window_seconds, context_seconds = WINDOW_SECONDS, CONTEXT_SECONDS
    kept, context = (
        round(seconds * FRAMES_PER_SECOND)
        for seconds in (window_seconds, context_seconds)
    )
    total = encoder.count_frames(num_samples)
    device = _device_of(encoder)
    rest, first = torch.zeros(0), 0  # samples from the frame `first` on
    source = iter(wavs)
    for start in range(0, total, kept):
        # What is left for the last window may be too short for one.
        stop = start + kept
        begin = max(start - context, 0)
        rest, first = rest[(begin - first) * FRAME_SAMPLES :], begin
        length = (stop + context - begin) * FRAME_SAMPLES
        while len(rest) < length and (block := next(source, None)) is not None:
            rest = torch.cat([rest, block])
        window = rest[:length].to(device)[None]
        states = encoder(window, torch.ones(1, device=device)).hidden_states
        for layer, x in enumerate(states):
            x = x[0, start - begin : min(stop, total) - begin]
            yield StateBlock(layer, start, total, x)


def averaged(
    blocks: Iterable[StateBlock], num_states: int, workspace: Workspace
) -> Iterator[StateBlock]:
    """Average all hidden states: blocks of the one mean, numbered layer 0."""
    mean: Any = None
    for layer, start, total, x in blocks:
        if mean is None:
            mean = workspace.store(total, x.shape[-1], x)
        if layer:
            x = x + mean.read(start, start + len(x))
        if layer < num_states - 1:
            mean.write(start, x)
        else:
            yield StateBlock(0, start, total, x / num_states)


def as_pieces(
    blocks: Iterable[StateBlock], layers: Sequence[int], workspace: Workspace
) -> Iterator[Piece]:
    """Gather the layers that are asked for, stretch by stretch.

    What comes before the last of these layers is kept in the workspace.
    """
    kept: dict[int, FrameStore] = {}
    last = max(layers)
    for layer, start, total, x in blocks:
        if layer not in layers:
            continue
        if layer < last:
            if layer not in kept:
                kept[layer] = workspace.store(total, x.shape[-1], x)
            kept[layer].write(start, x)
            continue
        states = [
            x
            if asked == last
            else kept[asked].read(start, start + len(x)).clone()
            for asked in layers
        ]
        yield Piece(start / FRAMES_PER_SECOND, states)


class LongAudioEncoder(nn.Module):
    """What an encoder needs for recordings of any length.

    By default they are cut into windows that overlap.
    """

    num_layers: int

    @property
    def is_exact(self) -> bool:
        """Whether `encode_long` returns what one forward pass would."""
        return False

    def count_frames(self, num_samples: int) -> int:
        """Return how many frames so many samples at 16 kHz become."""
        return num_frames(num_samples)

    def seconds_at_once(self, memory: float) -> float:
        """Return how long a batch, or a recording, may be for one forward."""
        return float(WINDOW_SECONDS + 2 * CONTEXT_SECONDS)

    def state_blocks(
        self,
        wavs: Iterable[Tensor],
        workspace: Workspace,
        num_layers: int | None = None,
    ) -> Iterator[StateBlock]:
        """Encode a recording, each block of each hidden state once.

        Of one stretch of time the layers come in their order.

        Arguments
        ---------
        wavs : iterable of Tensors, (S_i,)
            Audio of 16 kHz, in blocks of any length; it is read twice.
        workspace : Workspace
            The memory that may be taken.
        num_layers : int, optional
            How many layers are needed; all of them by default.
        """
        return windowed_blocks(wavs, self)

    def encode_long(
        self,
        audio: str | Path | Tensor,
        layers: Sequence[int] | None = None,
        *,
        memory: float = 2e9,
        block_seconds: float | None = None,
    ) -> Iterator[Piece]:
        """Encode a recording of any length in a fixed amount of memory.

        Arguments
        ---------
        audio : str, Path or Tensor, (S,)
            An audio file, of any rate and number of channels, or samples at
            16 kHz. AudioError if it cannot be read.
        layers : sequence of int, optional
            The hidden states to return, as numbered by `forward`: 0 is the
            input of the first layer, L the normalised output of the last.
            All of them by default.
        memory : float
            Bytes to take, beyond those of the encoder. What does not fit
            goes to the system's temporary folder.
        block_seconds : float, optional
            Length of a piece, where `memory` is not to decide.

        Yields
        ------
        Piece
            `start_seconds`, and `hidden_states`, one (n, D) for each of the
            layers. Joined, they are the states of one forward pass to
            rounding if `is_exact`, and near to them if not.
        """
        if self.training:
            raise ValueError("encode_long is for eval mode: call eval() first.")
        asked = range(self.num_layers + 1) if layers is None else layers
        if not asked or not set(asked) <= set(range(self.num_layers + 1)):
            raise ValueError(
                f"layers must be some of 0 to {self.num_layers}, not {layers}"
            )
        workspace = Workspace(memory, block_seconds=block_seconds)
        if isinstance(audio, Tensor):
            wavs: Iterable[Tensor] = [audio]
        else:
            length = audio_info(Path(audio)).duration_s
            wavs = AudioBlocks(Row(str(audio), str(audio), (), length))
        blocks = self.state_blocks(wavs, workspace, max(asked))
        return as_pieces(blocks, asked, workspace)


def _device_of(module: nn.Module) -> torch.device:
    tensors = chain(module.parameters(), module.buffers())
    return next(tensors).device
