"""Attention baselines with the interface of `nnet.mixer.Mixer`.

Letters: B utterances, T frames, D width, H heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from summarymixing.nnet.layers import Linear
from summarymixing.nnet.masking import zero_padding
from summarymixing.nnet.summary_mixing import head_width


class MultiHeadAttention(nn.Module):
    """Plain multi-head attention with PyTorch's fused kernels.

    Positions come from the encoder's input (absolute sine positions); this
    is the baseline of 165 M parameters in the paper.

    Arguments
    ---------
    d_model : int
        Width D of input and output.
    num_heads : int
        Must divide d_model (ValueError).
    dropout : float
        Dropout of the attention weights in training.

    Example
    -------
    >>> import torch
    >>> mixer = MultiHeadAttention(d_model=16, num_heads=2)
    >>> mixer(torch.rand(2, 5, 16), None).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int, num_heads: int = 8, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.width = head_width(d_model, num_heads)
        self.dropout = dropout
        self.project_in = Linear(d_model, 3 * d_model)
        self.project_out = Linear(d_model, d_model)
        nn.init.zeros_(self.project_in.bias)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attend over the valid frames of each utterance, see `Mixer`."""
        batch, length, d_model = x.shape
        # Padded values must be finite: 0 x NaN in the weighted sum is NaN.
        x = zero_padding(x, padding_mask)
        q, k, v = (
            self.project_in(x)
            .view(batch, length, 3, self.num_heads, self.width)
            .permute(2, 0, 3, 1, 4)  # (3, B, H, T, width)
        )
        # The flash kernel takes no mask; with one, the memory-efficient
        # kernel is used.
        keep = None if padding_mask is None else ~padding_mask[:, None, None]
        mixed = F.scaled_dot_product_attention(
            q, k, v, keep, dropout_p=self.dropout if self.training else 0.0
        )
        mixed = mixed.transpose(1, 2).reshape(batch, length, d_model)
        return zero_padding(self.project_out(mixed), padding_mask)


class RotaryAttention(nn.Module):
    """SpeechBrain's rotary attention (RoPEMHA) as a mixer.

    Arguments and shapes are those of `MultiHeadAttention`.

    Example
    -------
    >>> import torch
    >>> RotaryAttention(d_model=16, num_heads=2)(torch.rand(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int, num_heads: int = 8, dropout: float = 0.0
    ) -> None:
        super().__init__()
        # Here: SpeechBrain takes seconds to import, and other mixers need none.
        from speechbrain.nnet.attention import RoPEMHA

        head_width(d_model, num_heads)
        self.attention = RoPEMHA(d_model, num_heads, dropout=dropout)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attend with rotary positions, see `Mixer`."""
        x = zero_padding(x, padding_mask)
        mixed, _ = self.attention(x, x, x, key_padding_mask=padding_mask)
        return zero_padding(mixed, padding_mask)


class RelativePositionAttention(nn.Module):
    """SpeechBrain's relative-position attention (RelPosMHAXL) as a mixer.

    Arguments and shapes are those of `MultiHeadAttention`.

    Example
    -------
    >>> import torch
    >>> mixer = RelativePositionAttention(d_model=16, num_heads=2)
    >>> mixer(torch.rand(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self, d_model: int, num_heads: int = 8, dropout: float = 0.0
    ) -> None:
        super().__init__()
        from speechbrain.nnet.attention import RelPosEncXL, RelPosMHAXL

        head_width(d_model, num_heads)
        self.attention = RelPosMHAXL(d_model, num_heads, dropout=dropout)
        self.positions = RelPosEncXL(d_model)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attend with relative positions, see `Mixer`."""
        x = zero_padding(x, padding_mask)
        positions = self.positions(x)
        mixed, _ = self.attention(
            x, x, x, key_padding_mask=padding_mask, pos_embs=positions
        )
        return zero_padding(mixed, padding_mask)
