"""Probes: a frozen encoder, a learned mixture of its layers, a small head.

Letters: B utterances, S samples at 16 kHz, T frames (20 ms), D width,
L layers, C outputs of a head.

A head is any module `head(features, padding_mask)`, made by a factory that is
called with (d_model, num_outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.RNN import LSTM
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder, Wav2Vec2Output
from summarymixing.nnet.masking import zero_padding

HeadFactory = Callable[[int, int], nn.Module]

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class FrozenEncoder(nn.Module):
    """An encoder without gradients that stays in eval mode.

    A Brain calls `train()` on all of its modules; MP3S thereby switched
    dropout on in encoders that it meant to freeze.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
    precision : str
        Of the computation: a key of `PRECISIONS`.
    train_mode : bool
        Follow `train()`, to reproduce MP3S: dropout and layer drop are then
        on while the head learns.

    Example
    -------
    >>> encoder = Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=32)
    >>> FrozenEncoder(encoder).train().encoder.training
    False
    """

    def __init__(
        self,
        encoder: Wav2Vec2Encoder,
        *,
        precision: str = "fp32",
        train_mode: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.dtype = PRECISIONS[precision]
        self.train_mode = train_mode
        self.train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Keep the encoder in eval mode, unless `train_mode`."""
        super().train(mode)
        self.encoder.train(mode and self.train_mode)
        return self

    @torch.no_grad()
    def forward(self, wavs: Tensor, wav_lens: Tensor) -> Wav2Vec2Output:
        """Encode wavs (B, S) of relative lengths wav_lens (B,)."""
        with torch.autocast(
            wavs.device.type,
            self.dtype,
            enabled=self.dtype != torch.float32,
        ):
            return self.encoder(wavs, wav_lens)


class WeightedSum(nn.Module):
    """Mixture of hidden states with learned weights that sum to one.

    Arguments
    ---------
    num_states : int
        L + 1: the input of the first layer counts. Their weights are equal
        at the start.

    Example
    -------
    >>> mixture = WeightedSum(2)
    >>> mixture([torch.zeros(1, 1, 2), torch.ones(1, 1, 2)])
    tensor([[[0.5000, 0.5000]]], grad_fn=<AddBackward0>)
    """

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_states))

    def weights(self) -> Tensor:
        """Return the weights, (L + 1,)."""
        return self.logits.softmax(dim=0)

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """Mix L + 1 tensors (B, T, D) to one (B, T, D), in float32."""
        # A running sum: stacked, the states would be in memory twice.
        total = torch.zeros((), device=self.logits.device)
        for weight, state in zip(self.weights(), hidden_states, strict=True):
            total = total + weight * state.float()
        return total


class Probe(nn.Module):
    """All that a probe learns, as one module for DDP.

    Arguments
    ---------
    num_states : int
        L + 1.
    head : nn.Module
        `head(features, padding_mask)`; see `LSTMHead`.

    Example
    -------
    >>> probe = Probe(2, LSTMHead(8, 5, hidden_size=4))
    >>> states, padding_mask = [torch.rand(1, 3, 8)] * 2, torch.zeros(1, 3) > 0
    >>> probe(states, padding_mask).shape
    torch.Size([1, 3, 5])
    """

    def __init__(self, num_states: int, head: nn.Module) -> None:
        super().__init__()
        self.weighted_sum = WeightedSum(num_states)
        self.head = head

    def forward(
        self, hidden_states: Sequence[Tensor], padding_mask: Tensor
    ) -> Tensor:
        """Mix the states and apply the head.

        Arguments
        ---------
        hidden_states : sequence of L + 1 Tensors, (B, T, D)
        padding_mask : Tensor, bool, (B, T)
            True on padding.

        Returns
        -------
        Tensor
            What the head makes of it.
        """
        features = self.weighted_sum(hidden_states)
        return self.head(zero_padding(features, padding_mask), padding_mask)


class LSTMHead(nn.Module):
    """Bidirectional LSTM and a linear layer, for each frame.

    Arguments
    ---------
    d_model, num_outputs, hidden_size, num_layers : int
        `hidden_size` is the width of one direction.
    dropout : float
        Between LSTM layers, not after the last one.
    packed : bool
        Start the backward direction at the end of each utterance. MP3S
        starts it at the end of the longest in the batch, that is in the
        (here zero) padding of the others.

    Example
    -------
    >>> head = LSTMHead(8, 5, hidden_size=4)
    >>> head(torch.rand(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool)).shape
    torch.Size([2, 3, 5])
    """

    def __init__(
        self,
        d_model: int,
        num_outputs: int,
        *,
        hidden_size: int = 1024,
        num_layers: int = 2,
        dropout: float = 0.2,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.lstm = LSTM(
            hidden_size,
            input_size=d_model,
            num_layers=num_layers,
            dropout=dropout,
            bidirectional=True,
        )
        self.linear = Linear(num_outputs, input_size=2 * hidden_size)
        self.packed = packed

    def forward(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """Map features (B, T, D), zero on padding, to logits (B, T, C)."""
        if self.packed:
            return self.linear(self._run_packed(features, padding_mask))
        return self.linear(self.lstm(features)[0])

    def _run_packed(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        # SpeechBrain would pack by relative lengths, and truncate their
        # product with T: a rounding error then costs the last frame.
        packed = pack_padded_sequence(
            features,
            (~padding_mask).sum(dim=1).cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        states, _ = pad_packed_sequence(
            self.lstm.rnn(packed)[0],
            batch_first=True,
            total_length=features.shape[1],
        )
        return states
