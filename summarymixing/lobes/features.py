"""Front end FBank-CNN1D: from samples at 16 kHz to 50 frames per second.

Letters: B utterances, S samples, F mel frames (10 ms), T frames (20 ms).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from summarymixing.data.audio import SAMPLE_RATE_HZ
from summarymixing.nnet.masking import (
    masked_mean,
    padding_mask_from_lengths,
    zero_padding,
)

HOP_SAMPLES = 160  # 10 ms
WINDOW_SAMPLES = 400  # 25 ms
FRAMES_PER_SECOND = 50
MIN_ENERGY = 1e-10
DYNAMIC_RANGE_DB = 80.0
# Silence has no variance; this keeps it at zero.
VARIANCE_EPSILON = 1e-5

Count = TypeVar("Count", int, Tensor)


def num_frames(num_samples: Count) -> Count:
    """Return how many frames the front end makes of so many samples.

    The centred filterbank gives floor(S / 160) + 1 frames, the convolution of
    stride 2 half of them, rounded up.

    Example
    -------
    >>> num_frames(16_000), num_frames(1)
    (51, 1)
    """
    return (num_samples // HOP_SAMPLES + 2) // 2


def to_decibels(energies: Tensor) -> Tensor:
    """Logarithm of mel energies (B, F, mels)."""
    return 10 * energies.clamp(min=MIN_ENERGY).log10()


def with_floor(decibels: Tensor) -> Tensor:
    """Raise decibels (B, F, mels) to at most 80 below the loudest.

    The values are SpeechBrain's, but padded frames cannot raise the floor.

    Example
    -------
    >>> energies = torch.tensor([[[1.0], [0.1], [0.0]]])
    >>> with_floor(to_decibels(energies)).flatten()
    tensor([  0., -10., -80.])
    """
    loudest = decibels.amax(dim=(1, 2), keepdim=True)
    return decibels.maximum(loudest - DYNAMIC_RANGE_DB)


def mel_filters(num_mels: int) -> Tensor:
    """Triangular filters over the bins of the spectrum: (201, num_mels).

    Bit for bit those of SpeechBrain's `Filterbank`, which makes its matrix
    anew, and copies it to the device, in every forward; and to import it
    takes longer than to encode a minute of audio. As there, both sides of a
    triangle are as wide as its left one.

    Example
    -------
    >>> mel_filters(40).shape
    torch.Size([201, 40])
    """
    nyquist = SAMPLE_RATE_HZ // 2
    highest_mel = 2595 * math.log10(1 + nyquist / 700)
    hz = 700 * (10 ** (torch.linspace(0, highest_mel, num_mels + 2) / 2595) - 1)
    centre, width = hz[1:-1, None], (hz[1:] - hz[:-1])[:-1, None]
    bins = torch.linspace(0, nyquist, WINDOW_SAMPLES // 2 + 1)
    slope = (bins - centre) / width  # (num_mels, 201)
    return torch.minimum(slope + 1, 1 - slope).clamp(min=0).T


class ConvolutionBlock(nn.Module):
    """Convolution over time, layer norm, GELU; padding stays zero.

    Arguments
    ---------
    in_channels, out_channels, stride : int
        Width of input and output, and input frames per output frame.

    Example
    -------
    >>> block = ConvolutionBlock(4, 8, stride=2)
    >>> block(torch.rand(1, 7, 4)).shape
    torch.Size([1, 4, 8])
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int
    ) -> None:
        super().__init__()
        # Zeros at the edges: a reflected edge would differ between an
        # utterance alone and the same utterance in a batch.
        self.convolution = nn.Conv1d(
            in_channels, out_channels, 3, stride, padding=1
        )
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, F, in_channels), zero on padding, to (B, F', channels)."""
        x = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return F.gelu(self.norm(x))


class MelFilterbank(nn.Module):
    """Log-Mel energies, without anything to learn.

    Arguments
    ---------
    num_mels : int
        Number of mel channels.

    Example
    -------
    >>> mels = MelFilterbank(40).mel_features(
    ...     torch.rand(2, 16_000), torch.tensor([16_000, 8_000])
    ... )
    >>> mels.shape
    torch.Size([2, 101, 40])
    """

    window: Tensor
    mel_matrix: Tensor

    def __init__(self, num_mels: int = 80) -> None:
        super().__init__()
        self._keep("window", torch.hamming_window(WINDOW_SAMPLES))
        self._keep("mel_matrix", mel_filters(num_mels).contiguous())

    def _keep(self, name: str, constant: Tensor) -> None:
        """Keep a constant that follows the device, but not `to(dtype)`.

        The bits are stored, as integers: weights may be rounded to bfloat16,
        the filterbank must not. It is no part of a checkpoint.
        """
        self.register_buffer(name, constant.view(torch.int32), persistent=False)

    def _energies(self, wavs: Tensor, centred: bool = True) -> Tensor:
        """Mel energies (B, F, num_mels) of wavs (B, S), as SpeechBrain's.

        Frames are centred on the samples 0, 160, ..., with zeros around the
        utterance; or else the first one begins with the first sample.
        """
        spectrum = torch.stft(
            wavs,
            WINDOW_SAMPLES,
            HOP_SAMPLES,
            window=self.window.view(torch.float32),
            center=centred,
            pad_mode="constant",
            return_complex=True,
        )  # (B, 201, F)
        power = torch.view_as_real(spectrum).square().sum(dim=-1)
        return power.transpose(1, 2) @ self.mel_matrix.view(torch.float32)

    @torch.no_grad()
    def decibels(
        self, wavs: Tensor, num_samples: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute log-Mel energies without normalisation.

        Arguments
        ---------
        wavs : Tensor, (B, S)
            Audio of 16 kHz; what lies beyond an utterance's end is ignored.
        num_samples : Tensor, int64, (B,)
            Valid samples of each utterance.

        Returns
        -------
        Tensor, float32 even under autocast, (B, F, num_mels)
            Energies in dB, at most 80 dB below the loudest; not zero on
            padding.
        Tensor, bool, (B, F)
            True on padding.
        """
        beyond_end = padding_mask_from_lengths(num_samples, wavs.shape[1])
        with torch.autocast(wavs.device.type, enabled=False):
            energies = self._energies(zero_padding(wavs.float(), beyond_end))
            padding_mask = padding_mask_from_lengths(
                num_samples // HOP_SAMPLES + 1, energies.shape[1]
            )
            mels = to_decibels(zero_padding(energies, padding_mask))
        return with_floor(mels), padding_mask

    @torch.no_grad()
    def stream_decibels(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Compute the decibels of one utterance that comes in blocks.

        Arguments
        ---------
        blocks : iterable of Tensors, (S_i,)
            Audio of 16 kHz, on the device of the filterbank.

        Yields
        ------
        Tensor, float32, (1, F_i, num_mels)
            Joined and raised to their common floor they are what `decibels`
            returns for the utterance as a whole.
        """
        device = self.window.device
        around = torch.zeros(WINDOW_SAMPLES // 2, device=device)
        rest = around
        for block in chain(blocks, [around]):
            rest = torch.cat([rest, block.float()])
            count = (len(rest) - WINDOW_SAMPLES) // HOP_SAMPLES + 1
            if count > 0:
                with torch.autocast(device.type, enabled=False):
                    energies = self._energies(rest[None], centred=False)
                    yield to_decibels(energies)
                rest = rest[count * HOP_SAMPLES :]

    @torch.no_grad()
    def mel_features(self, wavs: Tensor, num_samples: Tensor) -> Tensor:
        """Normalise log-Mel energies to mean 0, deviation 1 by utterance.

        Arguments as of `decibels`; the result, (B, F, num_mels), is float32
        even under autocast, and zero on padding.
        """
        mels, padding_mask = self.decibels(wavs, num_samples)
        with torch.autocast(wavs.device.type, enabled=False):
            mels = mels - masked_mean(mels, padding_mask).unsqueeze(1)
            variance = masked_mean(mels.square(), padding_mask).unsqueeze(1)
            mels = mels * (variance + VARIANCE_EPSILON).rsqrt()
            return zero_padding(mels, padding_mask)


class FbankFrontEnd(MelFilterbank):
    """Log-Mel filterbank, sentence normalisation, two 1-D convolutions.

    Source: section 3.1 of the paper: 80 mel channels, windows of 25 ms every
    10 ms, two convolutions of 512 channels, kernels 3, strides 2 and 1.

    Arguments
    ---------
    num_mels, channels : int
        Number of mel channels, and width of the latents.

    Example
    -------
    >>> latents, padding_mask = FbankFrontEnd(channels=8)(
    ...     torch.rand(2, 16_000), torch.tensor([16_000, 8_000])
    ... )
    >>> latents.shape, (~padding_mask).sum(1)
    (torch.Size([2, 51, 8]), tensor([51, 26]))
    """

    def __init__(self, num_mels: int = 80, channels: int = 512) -> None:
        super().__init__(num_mels)
        self.convolutions = nn.ModuleList(
            [
                ConvolutionBlock(num_mels, channels, stride=2),
                ConvolutionBlock(channels, channels, stride=1),
            ]
        )
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, wavs: Tensor, num_samples: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Turn audio into latent frames; the arguments are those of `decibels`.

        Returns
        -------
        Tensor, (B, T, channels)
            Latents, zero on padding.
        Tensor, bool, (B, T)
            True on padding.
        """
        mels = self.mel_features(wavs, num_samples)
        padding_mask = padding_mask_from_lengths(
            num_frames(num_samples), (mels.shape[1] + 1) // 2
        )
        return self.convolve(mels, padding_mask), padding_mask

    def convolve(self, mels: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Map normalised mels (B, F, num_mels) to latents (B, T, channels)."""
        x = self.convolutions[0](mels.to(self.norm.weight.dtype))
        x = zero_padding(x, padding_mask)
        x = self.norm(self.convolutions[1](x))
        return zero_padding(x, padding_mask)
