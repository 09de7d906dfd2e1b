"""Fine-tuning: an encoder that learns together with the head on top of it.

Letters: B utterances, S samples at 16 kHz, T frames (20 ms), D width,
C channels of the latents.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.masking import zero_padding
from summarymixing.nnet.span_mask import MaskScheme


class LatentMasks(NamedTuple):
    """What fine-tuning hides from the encoder: True on what is replaced."""

    span_mask: Tensor  # (B, T), bool
    channel_mask: Tensor  # (B, C), bool

    def to(self, device: torch.device | str) -> LatentMasks:
        """Copy to a device."""
        return LatentMasks(*(m.to(device, non_blocking=True) for m in self))


def draw_masks(
    num_frames: Sequence[int],
    num_channels: int,
    seeds: Sequence[int],
    *,
    frames: MaskScheme | None = None,
    channels: MaskScheme | None = None,
) -> LatentMasks:
    """Draw what is hidden from the encoder, for each utterance alone.

    The masks are drawn on the CPU, so that no accelerator waits for them.

    Arguments
    ---------
    num_frames : sequence of B int
        Valid frames of each utterance; padding is never masked.
    num_channels : int
        Number C of channels of the latents.
    seeds : sequence of B int
        Seed of each utterance's masks.
    frames, channels : callable, optional
        `scheme(number, rng)` returns the masked ones; None masks nothing.

    Example
    -------
    >>> masks = draw_masks([3, 1], 2, [7, 8], frames=lambda n, rng: [n - 1])
    >>> masks.span_mask
    tensor([[False, False,  True],
            [ True, False, False]])
    """
    span_mask = torch.zeros(len(num_frames), max(num_frames), dtype=torch.bool)
    channel_mask = torch.zeros(len(num_frames), num_channels, dtype=torch.bool)
    for b, (valid, seed) in enumerate(zip(num_frames, seeds, strict=True)):
        rng = np.random.default_rng(seed)
        if frames is not None:
            span_mask[b, frames(valid, rng)] = True
        if channels is not None:
            channel_mask[b, channels(num_channels, rng)] = True
    return LatentMasks(span_mask, channel_mask)


class FineTuned(nn.Module):
    """Encoder and head as one module, so that one reducer serves both.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        The pre-trained encoder.
    head : nn.Module
        `head(features, padding_mask)`, see lobes/heads.py; its features are
        the last hidden state.
    train_front_end : bool
        Whether the front end learns with the first layer, or never.

    Example
    -------
    >>> encoder = Wav2Vec2Encoder(num_layers=2, d_model=16, d_ffn=32)
    >>> model = FineTuned(encoder, lambda features, padding_mask: features)
    >>> predicted, padding_mask = model(torch.rand(1, 4_000), torch.ones(1))
    >>> predicted.shape
    torch.Size([1, 13, 16])
    """

    def __init__(
        self,
        encoder: Wav2Vec2Encoder,
        head: nn.Module,
        *,
        train_front_end: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.train_front_end = train_front_end
        self.train_layers(range(encoder.num_layers))

    def train_layers(self, layers: Collection[int]) -> None:
        """Choose which layers of the encoder learn; the head always does.

        The parts below the first layer learn with it, the final norm learns
        with the last layer. No graph is kept below the lowest part that
        learns. After a change, DDP must wrap the module again.

        Arguments
        ---------
        layers : collection of int
            Indices from 0; if it is empty, only the head learns.
        """
        encoder, stack = self.encoder, self.encoder.conformer
        encoder.requires_grad_(False)
        for index in layers:
            stack.layers[index].requires_grad_(True)
        first = 0 in layers
        encoder.project.requires_grad_(first)
        encoder.mask_embedding.requires_grad_(first)
        encoder.front_end.requires_grad_(first and self.train_front_end)
        stack.norm.requires_grad_(encoder.num_layers - 1 in layers)

    def mixers(self) -> nn.ModuleList:
        """Return the mixers of all layers."""
        layers: Any = self.encoder.conformer.layers
        return nn.ModuleList(layer.mixer for layer in layers)

    def forward(
        self,
        wavs: Tensor,
        wav_lens: Tensor,
        masks: LatentMasks | None = None,
        layer_drop_seed: int | None = None,
    ) -> tuple[Any, Tensor]:
        """Predict from audio.

        Arguments
        ---------
        wavs, wav_lens
            As in `Wav2Vec2Encoder.forward`.
        masks : LatentMasks, optional
            Required in training: the mask embedding must take part in every
            backward pass, even if it replaces nothing.
        layer_drop_seed : int, optional
            Decides which layers are dropped in training.

        Returns
        -------
        Tensor or UtteranceOutput
            What the head predicts from the last hidden state (B, T, D).
        Tensor, bool, (B, T)
            The padding mask, True on padding.
        """
        latents, padding_mask = self.encoder.extract(wavs, wav_lens)
        if masks is not None:
            latents = latents.masked_fill(masks.channel_mask.unsqueeze(1), 0)
        encoded = self.encoder.contextualise(
            latents,
            padding_mask,
            span_mask=None if masks is None else masks.span_mask,
            layer_drop_seed=layer_drop_seed,
        )
        features = zero_padding(encoded.output, padding_mask)
        return self.head(features, padding_mask), padding_mask


def with_regularisation(
    encoder: Wav2Vec2Encoder,
    *,
    dropout: float | None = None,
    layer_drop: float | None = None,
    mixer_dropout: float | None = None,
) -> Wav2Vec2Encoder:
    """Return an encoder with the same weights and other regularisation.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        The encoder, which stays as it is.
    dropout, layer_drop, mixer_dropout : float, optional
        New values; None keeps that of the encoder. TypeError for a mixer
        without dropout, ValueError for a value that is not a probability.

    Example
    -------
    >>> encoder = Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=32)
    >>> with_regularisation(encoder, layer_drop=0.5).conformer.layer_drop
    0.5
    """
    changed = encoder.untrained_twin(
        dropout=dropout, layer_drop=layer_drop, mixer_dropout=mixer_dropout
    )
    changed.load_state_dict(encoder.state_dict())
    return changed
