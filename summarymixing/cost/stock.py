"""The step that a user of SpeechBrain has without this package.

It is put together from SpeechBrain's own parts as its recipe
recipes/LibriSpeech/self-supervised-learning/wav2vec2 does it, but with the
front end of the paper, so that a comparison is one of steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from speechbrain.lobes.models.wav2vec import (
    EncoderWrapper,
    W2VTargetQuantiser,
    sample_negatives,
)
from speechbrain.nnet.CNN import Conv1d
from speechbrain.nnet.losses import ContrastiveLoss
from speechbrain.processing.features import InputNormalization
from torch import Tensor, nn

from summarymixing.nnet.masking import zero_padding

# The stock table of positions ends at 50 s.
MAX_FRAMES = 200_000


class StockPretraining(nn.Module):
    """wav2vec 2.0 with a Conformer of SpeechBrain, and its losses.

    Arguments
    ---------
    num_layers, d_model, d_ffn, num_heads, kernel_size : int
        Sizes of the Conformer.
    dropout : float
        Dropout of the Conformer and of its input.
    num_mels, front_end_channels, num_codes, target_dim, num_negatives : int
        Sizes of front end, quantiser and loss.
    diversity_weight, logit_temperature : float
        See `Wav2Vec2Pretraining`.
    attention : str
        SpeechBrain's name: "regularMHA" is `torch.nn.MultiheadAttention`,
        called so that it returns its weights.

    Example
    -------
    >>> import torch
    >>> model = StockPretraining(num_layers=1, d_model=16, d_ffn=32)
    >>> mask = torch.zeros(2, 51, dtype=torch.bool)
    >>> mask[:, 5:25] = True
    >>> model(torch.rand(2, 16_000), torch.ones(2), mask).shape
    torch.Size([])
    """

    def __init__(
        self,
        *,
        num_layers: int = 12,
        d_model: int = 768,
        d_ffn: int = 3072,
        num_heads: int = 8,
        kernel_size: int = 31,
        dropout: float = 0.1,
        num_mels: int = 80,
        front_end_channels: int = 512,
        num_codes: int = 320,
        target_dim: int = 256,
        num_negatives: int = 100,
        diversity_weight: float = 0.1,
        logit_temperature: float = 0.1,
        attention: str = "regularMHA",
    ) -> None:
        super().__init__()
        channels = front_end_channels
        self.filterbank = Fbank(n_mels=num_mels)
        self.normalise = InputNormalization(norm_type="sentence")
        self.extractor = ConvolutionFrontEnd(
            (None, None, num_mels),
            num_blocks=2,
            num_layers_per_block=1,
            out_channels=[channels, channels],
            kernel_sizes=[3, 3],
            strides=[2, 1],
            dilations=[1, 1],
            residuals=[False, False],
            conv_module=Conv1d,
            activation=nn.GELU,
            dropout=0.0,
        )
        self.norm = nn.LayerNorm(channels)
        self.encoder = EncoderWrapper(
            channels,
            d_model,
            ConformerEncoder(
                num_layers,
                d_model,
                d_ffn,
                num_heads,
                kernel_size,
                dropout=dropout,
                attention_type=attention,
            ),
            positional_encoding=partial(PositionalEncoding, max_len=MAX_FRAMES),
            dropout_encoder_input=dropout,
        )
        self.quantiser = W2VTargetQuantiser(
            channels, target_dim, num_vars=num_codes
        )
        self.project = nn.Linear(d_model, target_dim)
        self.contrastive_loss = ContrastiveLoss(logit_temperature)
        self.num_negatives = num_negatives
        self.diversity_weight = diversity_weight

    def forward(self, wavs: Tensor, wav_lens: Tensor, mask: Tensor) -> Tensor:
        """Compute the loss of a batch, a sum over masked frames.

        Arguments
        ---------
        wavs, wav_lens : Tensor, (B, S) and (B,)
            Audio of 16 kHz and relative lengths.
        mask : Tensor, bool, (B, T)
            True on masked frames, as many in each utterance.
        """
        features = self.normalise(self.filterbank(wavs), wav_lens)
        latents = self.norm(self.extractor(features))
        encoded = self.encoder(latents, wav_lens=wav_lens, mask=mask)
        context = self.project(encoded["embeddings"][mask])
        batch = len(wavs)
        targets, statistics = self.quantiser(
            latents[mask].view(batch, -1, latents.shape[-1])
        )
        negatives = sample_negatives(targets, self.num_negatives)
        loss, _ = self.contrastive_loss(
            context.view_as(targets), targets, negatives
        )
        diversity = statistics["diversity_loss"] * mask.sum()
        return loss + self.diversity_weight * diversity


class AttentionWithWeights(nn.Module):
    """Attention that returns its (T, T) weights, as a mixer.

    torch's own module asks for no fused kernel then. This is what
    SpeechBrain's Conformer does, and so most likely the paper's baseline.

    Arguments
    ---------
    d_model, num_heads : int
        Width of input and output, and number of heads.
    dropout : float
        Dropout of the attention weights in training.
    """

    def __init__(
        self, d_model: int, num_heads: int = 8, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            d_model, num_heads, dropout=dropout, batch_first=True
        )

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attend over the valid frames, see `nnet.mixer.Mixer`."""
        x = zero_padding(x, padding_mask)
        mixed: Any = self.attention(
            x, x, x, key_padding_mask=padding_mask, need_weights=True
        )[0]
        return zero_padding(mixed, padding_mask)
