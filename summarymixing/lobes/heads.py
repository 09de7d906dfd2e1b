"""Heads of the MP3S probes, which read the mixture of hidden states.

Letters: B utterances, T frames (20 ms), D width of the encoder, C outputs,
E width of an embedding.

A head is any module `head(features, padding_mask)`, made by a factory that is
called with (d_model, num_outputs), that is D and C. Heads for frames return
logits (B, T, C), heads for utterances an `UtteranceOutput`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from speechbrain.lobes.models.ContextNet import ContextNet
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.ECAPA_TDNN import Classifier as CosineClassifier
from speechbrain.lobes.models.VanillaNN import VanillaNN
from speechbrain.lobes.models.Xvector import Classifier as XvectorClassifier
from speechbrain.lobes.models.Xvector import Xvector
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.pooling import StatisticsPooling
from speechbrain.nnet.RNN import LSTM
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from summarymixing.errors import UserError
from summarymixing.nnet.masking import masked_mean, padding_mask_from_lengths

HeadFactory = Callable[[int, int], nn.Module]

STD_EPSILON = 1e-5  # added to standard deviations, as in SpeechBrain


class UtteranceOutput(NamedTuple):
    """What a head predicts for each utterance."""

    embeddings: Tensor  # (B, E), what verification compares
    logits: Tensor  # (B, C)


class BiLSTM(nn.Module):
    """Bidirectional LSTM: (B, T, D) to (B, T, 2 `hidden_size`).

    Arguments
    ---------
    input_size, hidden_size, num_layers : int
        Width D of the input, width of one direction, and number of layers.
    dropout : float
        Dropout between layers, not after the last one.
    packed : bool
        Whether the backward direction starts at the end of each utterance.
        MP3S starts it at the end of the longest one in the batch, that is in
        the padding (here zero) of the others.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int,
        dropout: float,
        packed: bool,
    ) -> None:
        super().__init__()
        self.lstm = LSTM(
            hidden_size,
            input_size=input_size,
            num_layers=num_layers,
            dropout=dropout,
            bidirectional=True,
        )
        self.packed = packed

    def forward(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """Run over features (B, T, D) that are zero on padding."""
        if not self.packed:
            return self.lstm(features)[0]
        # SpeechBrain packs by relative lengths and truncates their product
        # with T, so that a rounding error costs the last frame.
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


class LSTMHead(nn.Module):
    """Bidirectional LSTM and a linear layer, for each frame.

    The keywords are those of `BiLSTM`.

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
        self.lstm = BiLSTM(
            d_model,
            hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            packed=packed,
        )
        self.linear = Linear(num_outputs, input_size=2 * hidden_size)

    def forward(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """Map features (B, T, D), zero on padding, to logits (B, T, C)."""
        return self.linear(self.lstm(features, padding_mask))


class ContextNetHead(nn.Module):
    """SpeechBrain's ContextNet at the full frame rate, and a linear layer.

    As in MP3S, its batch norms and squeeze-and-excitation average over padding
    too: batches of similar length matter, and tests run without padding.

    Arguments
    ---------
    d_model, num_outputs : int
        Width D of the features and number C of outputs.
    num_blocks : int
        Number of blocks; SpeechBrain's 21 have 31 M parameters.
    channels : sequence of int, optional
        Channels of each block; by default 256 for the first ten, then 512.
    out_channels : int
        Width of the input of the linear layer.
    dropout : float
        Dropout at the end of each block.

    Example
    -------
    >>> head = ContextNetHead(8, 5, num_blocks=2, channels=[16, 16])
    >>> head(torch.rand(2, 9, 8), torch.zeros(2, 9, dtype=torch.bool)).shape
    torch.Size([2, 9, 5])
    """

    def __init__(
        self,
        d_model: int,
        num_outputs: int,
        *,
        num_blocks: int = 21,
        channels: list[int] | None = None,
        out_channels: int = 640,
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        self.context_net = ContextNet(
            input_shape=(None, None, d_model),
            out_channels=out_channels,
            conv_channels=channels,
            strides=[1] * num_blocks,
            num_blocks=num_blocks,
            dropout=dropout,
        )
        self.linear = Linear(num_outputs, input_size=out_channels)

    def forward(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """Map features (B, T, D), zero on padding, to logits (B, T, C)."""
        return self.linear(self.context_net(features))


class HiddenLayerHead(nn.Module):
    """Hidden layers for each frame; one is "linear" in the tables of MP3S.

    Arguments
    ---------
    d_model, num_outputs, hidden_size, num_layers : int
        Width D, number C of outputs, width and number of hidden layers.
    activation : callable
        Makes the activation module that follows each hidden layer.
    dropout : float
        Dropout after the last hidden layer.

    Example
    -------
    >>> head = HiddenLayerHead(8, 5, hidden_size=4)
    >>> head(torch.rand(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool)).shape
    torch.Size([2, 3, 5])
    """

    def __init__(
        self,
        d_model: int,
        num_outputs: int,
        *,
        hidden_size: int = 1024,
        num_layers: int = 1,
        activation: Callable[[], nn.Module] = nn.Sigmoid,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden = VanillaNN(
            input_shape=(None, None, d_model),
            activation=activation,
            dnn_blocks=num_layers,
            dnn_neurons=hidden_size,
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = Linear(num_outputs, input_size=hidden_size)

    def forward(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """Map features (B, T, D) to logits (B, T, C)."""
        return self.linear(self.dropout(self.hidden(features)))


class PoolingHead(nn.Module):
    """Mean of the valid frames and a linear layer without bias.

    Not SpeechBrain's StatisticsPooling, which adds noise to the mean even in
    tests.

    Example
    -------
    >>> head = PoolingHead(8, 5)
    >>> head(torch.rand(2, 3, 8), torch.zeros(2, 3) > 0).logits.shape
    torch.Size([2, 5])
    """

    def __init__(self, d_model: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = Linear(num_outputs, input_size=d_model, bias=False)

    def forward(
        self, features: Tensor, padding_mask: Tensor
    ) -> UtteranceOutput:
        """Map features (B, T, D) to an output for each utterance."""
        embeddings = masked_mean(features, padding_mask)
        return UtteranceOutput(embeddings, self.linear(embeddings))


class LSTMPoolingHead(nn.Module):
    """Bidirectional LSTM, a linear layer for each frame, `PoolingHead`.

    The keywords are those of `BiLSTM`; `hidden_size` is D by default.

    Example
    -------
    >>> head = LSTMPoolingHead(8, 5)
    >>> head(torch.rand(2, 3, 8), torch.zeros(2, 3) > 0).logits.shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        d_model: int,
        num_outputs: int,
        *,
        hidden_size: int | None = None,
        num_layers: int = 2,
        dropout: float = 0.0,
        packed: bool = False,
    ) -> None:
        super().__init__()
        hidden_size = hidden_size or d_model
        self.lstm = BiLSTM(
            d_model,
            hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            packed=packed,
        )
        self.linear = Linear(d_model, input_size=2 * hidden_size)
        self.pooling = PoolingHead(d_model, num_outputs)

    def forward(
        self, features: Tensor, padding_mask: Tensor
    ) -> UtteranceOutput:
        """Map features (B, T, D), zero on padding, to one output each."""
        frames = self.linear(self.lstm(features, padding_mask))
        return self.pooling(frames, padding_mask)


class EmbeddingHead(nn.Module):
    """SpeechBrain's network for embeddings, and its classifier.

    Arguments
    ---------
    network : nn.Module
        Maps features (B, T, D) and relative lengths (B,) to (B, 1, E).
    classifier : nn.Module
        Maps embeddings (B, 1, E) to logits (B, 1, C).
    """

    def __init__(self, network: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.network, self.classifier = network, classifier

    def forward(
        self, features: Tensor, padding_mask: Tensor
    ) -> UtteranceOutput:
        """Map features (B, T, D), zero on padding, to one output each.

        UserError in training for a single utterance.
        """
        if self.training and len(features) < 2:
            raise UserError(
                "this head has batch norms over embeddings, which cannot be "
                "trained on a batch of one utterance; raise --batch_size or "
                "--max_batch_seconds, and give --smallest_batch=2"
            )
        embeddings = self.network(features, relative_lengths(padding_mask))
        logits = self.classifier(embeddings)
        return UtteranceOutput(embeddings.squeeze(1), logits.squeeze(1))


class EcapaHead(EmbeddingHead):
    """ECAPA-TDNN and a cosine classifier (logits in [-1, 1]).

    Arguments
    ---------
    d_model, num_outputs, embedding_size : int
        Width D, number C of outputs, and width E of the embeddings.
    channels, kernel_sizes, dilations : list of int
        Sizes of the five blocks; the last one joins the others.
    attention_channels : int
        Width of the attention that pools the frames.

    Example
    -------
    >>> head = EcapaHead(8, 5, channels=[16, 16, 16, 16, 48]).eval()
    >>> head(torch.rand(2, 9, 8), torch.zeros(2, 9) > 0).embeddings.shape
    torch.Size([2, 96])
    """

    def __init__(
        self,
        d_model: int,
        num_outputs: int,
        *,
        embedding_size: int = 96,
        channels: list[int] | None = None,
        kernel_sizes: list[int] | None = None,
        dilations: list[int] | None = None,
        attention_channels: int = 64,
    ) -> None:
        network = ECAPA_TDNN(
            input_size=d_model,
            lin_neurons=embedding_size,
            channels=channels or [512, 512, 512, 512, 1536],
            kernel_sizes=kernel_sizes or [5, 3, 3, 3, 1],
            dilations=dilations or [1, 2, 3, 4, 1],
            attention_channels=attention_channels,
        )
        super().__init__(
            network, CosineClassifier(embedding_size, out_neurons=num_outputs)
        )


class XvectorHead(EmbeddingHead):
    """X-vector and its classifier of one hidden layer.

    The logits are log-probabilities already; a softmax over them changes
    nothing.

    Arguments
    ---------
    d_model, num_outputs, embedding_size : int
        Width D, number C of outputs, and width E of the embeddings.
    channels, kernel_sizes, dilations : list of int
        Sizes of the five convolutions.

    Example
    -------
    >>> head = XvectorHead(8, 5, channels=[16, 16, 16, 16, 48]).eval()
    >>> head(torch.rand(2, 9, 8), torch.zeros(2, 9) > 0).embeddings.shape
    torch.Size([2, 512])
    """

    def __init__(
        self,
        d_model: int,
        num_outputs: int,
        *,
        embedding_size: int = 512,
        channels: list[int] | None = None,
        kernel_sizes: list[int] | None = None,
        dilations: list[int] | None = None,
    ) -> None:
        network = Xvector(
            in_channels=d_model,
            tdnn_channels=channels or [512, 512, 512, 512, 1500],
            tdnn_kernel_sizes=kernel_sizes or [5, 3, 3, 1, 1],
            tdnn_dilations=dilations or [1, 2, 3, 1, 1],
            lin_neurons=embedding_size,
        )
        for index, block in enumerate(network.blocks):
            if isinstance(block, StatisticsPooling):
                network.blocks[index] = MeanAndDeviation()
        classifier = XvectorClassifier(
            input_shape=(None, None, embedding_size),
            lin_neurons=embedding_size,
            out_neurons=num_outputs,
        )
        super().__init__(network, classifier)


class MeanAndDeviation(nn.Module):
    """Mean and standard deviation of the valid frames, side by side.

    Replaces SpeechBrain's StatisticsPooling, which adds noise to the mean
    even in tests and gives NaN for a single frame.

    Example
    -------
    >>> MeanAndDeviation()(torch.tensor([[[1.0], [3.0]]]))
    tensor([[[2.0000, 1.4142]]])
    """

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map x (B, T, D) with relative lengths (B,) to (B, 1, 2 D)."""
        valid_mask = torch.ones_like(x[:, :, :1], dtype=torch.bool)
        if lengths is not None:
            frames = (lengths * x.shape[1]).round().long()
            padding_mask = padding_mask_from_lengths(frames, x.shape[1])
            valid_mask = ~padding_mask.unsqueeze(-1)
        count = valid_mask.sum(dim=1, keepdim=True)
        mean = (x * valid_mask).sum(dim=1, keepdim=True) / count
        squares = ((x - mean) * valid_mask).square().sum(dim=1, keepdim=True)
        variance = squares / (count - 1).clamp(min=1)
        # The square root has no gradient at zero, where all frames are equal.
        deviation = variance.clamp(min=STD_EPSILON**2).sqrt() + STD_EPSILON
        return torch.cat([mean, deviation], dim=-1)


def relative_lengths(padding_mask: Tensor) -> Tensor:
    """Return the valid share of each utterance, as SpeechBrain expects it.

    A quarter of a frame is subtracted: SpeechBrain takes all frames below the
    product of share and T, so that a rounding error could add a padded frame.

    Example
    -------
    >>> mask = torch.tensor([[False, True], [False, False]])
    >>> relative_lengths(mask) * 2
    tensor([0.7500, 1.7500])
    """
    num_frames = (~padding_mask).sum(dim=1)
    return (num_frames - 0.25) / padding_mask.shape[1]
