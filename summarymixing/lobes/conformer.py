"""Conformer with an exchangeable mixer.

Macaron and pre-norm, as in figure 1b of the paper: half a feed-forward
module, the mixer, the convolution module, half a feed-forward module, norm.
Letters: B utterances, T frames, D width, L layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from summarymixing.nnet.depthwise import depthwise_convolution
from summarymixing.nnet.gradients import with_zero_gradients
from summarymixing.nnet.layers import Dropout, LayerNorm, Linear
from summarymixing.nnet.masking import zero_padding
from summarymixing.nnet.mixer import MixerFactory
from summarymixing.nnet.randomness import seeded_generator
from summarymixing.nnet.recompute import recomputed, shortest_sums
from summarymixing.nnet.summary_mixing import SummaryMixing


class FeedForward(nn.Sequential):
    """Norm, two linear layers with GELU between, dropout after both.

    Example
    -------
    >>> FeedForward(8, 32)(torch.rand(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, d_model: int, d_ffn: int, dropout: float = 0.1) -> None:
        super().__init__(
            LayerNorm(d_model),
            Linear(d_model, d_ffn),
            nn.GELU(),
            Dropout(dropout),
            Linear(d_ffn, d_model),
            Dropout(dropout),
        )


class ConvolutionModule(nn.Module):
    """Gated depthwise convolution over time.

    Padding is zeroed before the depthwise convolution, not only after it:
    otherwise what lies in padding leaks into the last valid frames.

    Arguments
    ---------
    d_model : int
        Width D of input and output.
    kernel_size : int
        Frames of the kernel; odd (ValueError), so that frames are not shifted.
    dropout : float
        Dropout of the output in training.

    Example
    -------
    >>> ConvolutionModule(8, kernel_size=3)(torch.rand(2, 5, 8), None).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self, d_model: int, kernel_size: int = 31, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size ({kernel_size}) must be odd, for example "
                f"{kernel_size + 1}: an even kernel would shift the frames."
            )
        self.norm = LayerNorm(d_model)
        self.gated = Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(
            d_model,
            d_model,
            kernel_size,
            padding=kernel_size // 2,
            groups=d_model,
        )
        self.norm_inside = LayerNorm(d_model)
        self.project = Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Map x (B, T, D) to (B, T, D), zero on padding."""
        gated = F.glu(self.gated(self.norm(x)), dim=-1)
        gated = zero_padding(gated, padding_mask)
        mixed = depthwise_convolution(
            gated, self.depthwise.weight, self.depthwise.bias
        )
        mixed = self.project(F.gelu(self.norm_inside(mixed)))
        return zero_padding(self.dropout(mixed), padding_mask)


class ConformerEncoderLayer(nn.Module):
    """One Conformer layer.

    Arguments
    ---------
    d_model, d_ffn, kernel_size : int
        Width D, hidden width of the feed-forward modules, and frames of the
        convolution's kernel.
    mixer : callable
        Called with d_model; returns a `Mixer`, see nnet/mixer.py.
    dropout : float
        Dropout in training after each module and in the feed-forward ones.

    Example
    -------
    >>> layer = ConformerEncoderLayer(16, mixer=SummaryMixing, d_ffn=32)
    >>> layer(torch.rand(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_model: int,
        *,
        mixer: MixerFactory = SummaryMixing,
        d_ffn: int = 3072,
        kernel_size: int = 31,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(d_model, d_ffn, dropout)
        self.norm_mixer = LayerNorm(d_model)
        self.mixer = mixer(d_model)
        self.dropout = Dropout(dropout)
        self.convolution = ConvolutionModule(d_model, kernel_size, dropout)
        self.feed_forward_out = FeedForward(d_model, d_ffn, dropout)
        self.norm = nn.LayerNorm(d_model)
        self.shortest_sum: float = 0  # of `recomputed`, for each part alone

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Map x (B, T, D) to (B, T, D); True in padding_mask is padding."""
        # Backward needs the last part first, so the others wait for their turn.
        part = partial(recomputed, shortest_sum=self.shortest_sum)
        x = self.begin(x)
        x = x + part(self._mix, x, padding_mask)
        x = x + part(self.convolution, x, padding_mask)
        return self.finish(x)

    def begin(self, x: Tensor) -> Tensor:
        """Run what is before the mixer, frame by frame: (B, T, D)."""
        half = recomputed(
            self.feed_forward_in, x, shortest_sum=self.shortest_sum
        )
        return torch.add(x, half, alpha=0.5)

    def finish(self, x: Tensor) -> Tensor:
        """Run what is behind the convolution, frame by frame: (B, T, D)."""
        return self.norm(torch.add(x, self.feed_forward_out(x), alpha=0.5))

    def _mix(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        return self.dropout(self.mixer(self.norm_mixer(x), padding_mask))


class EncoderOutput(NamedTuple):
    """What the stack of layers returns."""

    output: Tensor  # (B, T, D), normalised
    hidden_states: list[Tensor]  # L+1 times (B, T, D), or empty


class ConformerEncoder(nn.Module):
    """A stack of Conformer layers and a final norm.

    Arguments
    ---------
    num_layers, d_model : int
        Number L of layers, and width D.
    layer_drop : float
        Probability in [0, 1) of leaving a layer out in training. A dropped
        layer gets gradients of zero, so DDP neither hangs nor needs
        `find_unused_parameters`.
    layer
        Keywords of every `ConformerEncoderLayer`.

    Example
    -------
    >>> encoder = ConformerEncoder(num_layers=2, d_model=16, d_ffn=32)
    >>> out = encoder(torch.rand(2, 5, 16), all_hidden_states=True)
    >>> out.output.shape, len(out.hidden_states)
    (torch.Size([2, 5, 16]), 3)
    """

    def __init__(
        self,
        *,
        num_layers: int = 12,
        d_model: int = 768,
        layer_drop: float = 0.0,
        **layer: Any,
    ) -> None:
        super().__init__()
        if not 0 <= layer_drop < 1:
            raise ValueError(
                f"layer_drop ({layer_drop}) must be a probability below 1."
            )
        self.layers = nn.ModuleList(
            ConformerEncoderLayer(d_model, **layer) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.layer_drop, self.d_model = layer_drop, d_model
        self.recompute_share(0)

    def recompute_share(self, share: float) -> None:
        """Recompute this share of the activations in backward.

        That saves memory. 0 keeps all; up to 0.6 no matrix product is
        computed twice; 1 keeps the inputs of the layers alone. See
        `nnet.recompute.shortest_sums`, whose budget is 1 - share.
        """
        self.shortest_sums = shortest_sums(
            1 - share, len(self.layers), self.d_model
        )
        layer: Any
        for layer, shortest in zip(
            self.layers, self.shortest_sums, strict=True
        ):
            # A part within a layer computes again what the layer does, too:
            # only where that takes next to no products.
            layer.shortest_sum = shortest if shortest <= self.d_model else 0

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        *,
        all_hidden_states: bool = False,
        layer_drop_seed: int | None = None,
    ) -> EncoderOutput:
        """Encode frames.

        Arguments
        ---------
        x : Tensor, (B, T, D)
            Frames; padding may hold anything.
        padding_mask : Tensor, bool, (B, T), or None
            True on padding.
        all_hidden_states : bool
            Return the input of the first layer and the output of every
            layer; the last one is the normalised output. A dropped layer
            repeats its input, so there are always L+1.
        layer_drop_seed : int, optional
            Decides which layers are dropped in training; without it torch's
            global generator does.
        """
        # Once for all layers: norms and feed-forward modules mask nothing.
        x = zero_padding(x, padding_mask)
        states = [x]
        keep = self._draw_layers(layer_drop_seed)
        for index, layer in enumerate(self.layers):
            if not keep[index]:
                x = with_zero_gradients(x, list(layer.parameters()))
            else:
                x = recomputed(
                    layer,
                    x,
                    padding_mask,
                    shortest_sum=self.shortest_sums[index],
                )
            states.append(x)
        states[-1] = self.norm(x)
        return EncoderOutput(states[-1], states if all_hidden_states else [])

    def _draw_layers(self, seed: int | None) -> list[bool]:
        if not self.training or self.layer_drop == 0:
            return [True] * len(self.layers)
        rng = None if seed is None else seeded_generator(seed)
        draws = torch.rand(len(self.layers), generator=rng, device="cpu")
        return (draws >= self.layer_drop).tolist()
