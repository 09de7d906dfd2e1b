"""Kernels and bytes are those of the operators, once each."""

import torch
import torch.nn.functional as F

from summarymixing.cost.traffic import (
    as_on_cuda,
    count_traffic,
    encoder_traffic,
)
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder


def test_operators_read_their_inputs_and_write_their_outputs():
    x, w, row = torch.rand(5, 3), torch.rand(3, 7), torch.rand(3)
    assert count_traffic(lambda: x @ w) == (1, 4 * (15 + 21 + 35))
    assert count_traffic(lambda: x.add_(row)) == (1, 4 * (15 + 3 + 15))
    assert count_traffic(lambda: x.copy_(row)) == (1, 4 * (3 + 15))


def test_views_move_nothing():
    x = torch.rand(5, 3)
    assert count_traffic(lambda: x.t().expand(4, 3, 5).detach()) == (0, 0)
    expanded = x.expand(100, 5, 3)
    assert count_traffic(lambda: expanded.sum()) == (1, 4 * (15 + 1))


def test_types_and_kernels_are_those_of_a_gpu():
    x = torch.rand(4, 6, dtype=torch.bfloat16)
    with as_on_cuda():
        assert F.layer_norm(x, (6,)).dtype == torch.float32
        dropped = count_traffic(lambda: F.dropout(x, 0.5, training=True))
        kept = count_traffic(lambda: F.dropout(x, 0.5, training=False))
    assert dropped == (1, 24 * (2 + 2 + 1))  # bf16 twice, and a mask
    assert kept == (0, 0)


def test_an_encoder_moves_more_with_frames_but_starts_the_same_kernels():
    encoder = Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=24)
    short, middle, long = (encoder_traffic(encoder, 2, t) for t in (8, 16, 24))
    assert short.kernels == middle.kernels == long.kernels
    per_frame = (long.num_bytes - middle.num_bytes) // 16
    assert middle.num_bytes - short.num_bytes == 16 * per_frame
    # At least the input and output of each product, in bf16.
    assert per_frame > 3 * 2 * (4 * (16 + 24) + 2 * 16 + 2 * 10)
