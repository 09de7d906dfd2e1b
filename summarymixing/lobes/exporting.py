"""An encoder as one graph, for programs that know neither PyTorch nor us.

The graph takes audio and returns hidden states, for any number and length of
utterances. Letters: B utterances, S samples at 16 kHz, F mel frames (10 ms),
T frames (20 ms), D width, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from summarymixing.lobes.features import (
    HOP_SAMPLES,
    WINDOW_SAMPLES,
    FbankFrontEnd,
)
from summarymixing.lobes.wav2vec2 import (
    Wav2Vec2Encoder,
    sine_positions,
    sine_rates,
)
from summarymixing.nnet.masking import zero_padding

# Of a batch: PyTorch's compiler takes a dimension of one for a constant.
MIN_SAMPLES = 2 * HOP_SAMPLES


def fourier_kernels(window: Tensor) -> Tensor:
    """Make kernels whose convolution is a spectrum: (N + 2, 1, N).

    The first half of the channels are the real parts, the second half the
    imaginary ones.

    Arguments
    ---------
    window : Tensor, (N,)
        Of as many samples as a frame has, an even number.

    Example
    -------
    >>> fourier_kernels(torch.hamming_window(400)).shape
    torch.Size([402, 1, 400])
    """
    size = len(window)
    sample = torch.arange(size)
    # Reduced to one turn as integers: sine and cosine are then exact.
    turns = (torch.arange(size // 2 + 1)[:, None] * sample) % size
    angle = turns.double() * (2 * math.pi / size)
    kernels = torch.cat([angle.cos(), -angle.sin()]) * window.double()
    return kernels.float().unsqueeze(1)


class ConvolvingFrontEnd(FbankFrontEnd):
    """The front end with convolutions in place of the Fourier transform.

    Runtimes have no fast transform of 400 samples, or none at all. Both of
    its products have the constant on the left, so that they stay float32
    where products with weights are quantised.

    Arguments
    ---------
    front_end : FbankFrontEnd
        Gives the weights.
    """

    kernels: Tensor
    mel_rows: Tensor

    def __init__(self, front_end: FbankFrontEnd) -> None:
        window = front_end.window.view(torch.float32)
        mel_matrix = front_end.mel_matrix.view(torch.float32)
        channels = front_end.norm.normalized_shape[0]
        super().__init__(mel_matrix.shape[1], channels)
        self.load_state_dict(front_end.state_dict())
        self.register_buffer("kernels", fourier_kernels(window.cpu()))
        self.register_buffer("mel_rows", mel_matrix.cpu().T.contiguous())

    def _energies(self, wavs: Tensor, centred: bool = True) -> Tensor:
        """Mel energies (B, F, num_mels) of wavs (B, S), frames centred."""
        reach = WINDOW_SAMPLES // 2
        wavs = F.pad(wavs, (reach, reach)).unsqueeze(1)
        spectrum = F.conv1d(wavs, self.kernels, stride=HOP_SAMPLES)
        real, imaginary = spectrum.square().chunk(2, dim=1)
        energies = self.mel_rows @ (real + imaginary)
        return energies.transpose(1, 2).contiguous()


class EncoderGraph(nn.Module):
    """An encoder without anything that PyTorch alone can do.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        On the CPU, in eval mode; it stays as it is.
    layers : list of int, optional
        Hidden states to return; None for the average of all.

    Example
    -------
    >>> encoder = Wav2Vec2Encoder(num_layers=2, d_model=16, d_ffn=32).eval()
    >>> graph = EncoderGraph(encoder, [2])
    >>> states, frames = graph(torch.rand(2, 800), torch.tensor([800, 400]))
    >>> states.shape, frames
    (torch.Size([2, 3, 16]), tensor([3, 2]))
    """

    sine_rates: Tensor

    def __init__(
        self, encoder: Wav2Vec2Encoder, layers: Sequence[int] | None
    ) -> None:
        super().__init__()
        self.front_end = ConvolvingFrontEnd(encoder.front_end)
        self.project = encoder.project
        self.conformer = encoder.conformer
        # Stored: the last bit of an exponential, which another runtime rounds
        # in another way, turns into thousands of them at frame 1,000.
        self.register_buffer("sine_rates", sine_rates(encoder.d_model))
        self.d_model, self.layers = encoder.d_model, layers

    def forward(self, wavs: Tensor, num_samples: Tensor) -> tuple[Tensor, ...]:
        """Encode audio.

        Arguments
        ---------
        wavs : Tensor, float32, (B, S)
            16 kHz mono; what lies beyond the end of an utterance is ignored.
        num_samples : Tensor, int64, (B,)
            Samples of each utterance, from 1 to S.

        Returns
        -------
        tuple of Tensors
            The hidden states, (B, T, D), zero on padding; and the number of
            frames of each utterance, int64, (B,).
        """
        latents, padding_mask = self.front_end(wavs, num_samples)
        x = self.project(latents)
        x = x + sine_positions(x.shape[1], self.d_model, rates=self.sine_rates)
        states = self.conformer(
            x, padding_mask, all_hidden_states=True
        ).hidden_states
        if self.layers is None:
            states = [torch.stack(states).mean(0)]
        else:
            states = [states[layer] for layer in self.layers]
        states = [zero_padding(state, padding_mask) for state in states]
        return (*states, (~padding_mask).sum(1))


@torch.no_grad()
def export_encoder(
    encoder: Wav2Vec2Encoder, layers: Sequence[int] | None
) -> ExportedProgram:
    """Turn an encoder into a graph of `torch.export`.

    Arguments
    ---------
    encoder, layers
        As of `EncoderGraph`.

    Returns
    -------
    torch.export.ExportedProgram
        Takes `wavs` of at least `MIN_SAMPLES` and `num_samples`, see
        `EncoderGraph.forward`.
    """
    graph = EncoderGraph(encoder, layers).eval()
    wavs = torch.rand(2, 50 * MIN_SAMPLES) - 0.5
    example = (wavs, torch.tensor([wavs.shape[1], wavs.shape[1] // 2]))
    batch, samples = Dim("batch"), Dim("samples", min=MIN_SAMPLES)
    shapes: Any = ({0: batch, 1: samples}, {0: batch})
    return torch.export.export(
        graph, example, dynamic_shapes=shapes, strict=False
    )
