"""Kernels and bytes are those of the operators, once each."""

import torch

from summarymixing.cost.stock import AttentionWithWeights
from summarymixing.cost.traffic import (
    count_traffic,
    encoder_traffic,
    kept_per_frame,
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


def test_an_encoder_moves_more_with_frames_but_starts_the_same_kernels():
    encoder = Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=24)
    short, middle, long = (encoder_traffic(encoder, 2, t) for t in (8, 16, 24))
    assert short.kernels == middle.kernels == long.kernels
    per_frame = (long.num_bytes - middle.num_bytes) // 16
    assert middle.num_bytes - short.num_bytes == 16 * per_frame
    # At least the input and output of each product, in bf16.
    assert per_frame > 3 * 2 * (4 * (16 + 24) + 2 * 16 + 2 * 10)


def test_a_layer_keeps_the_same_of_each_frame_unless_it_keeps_weights():
    sizes = {"num_layers": 1, "d_model": 16, "d_ffn": 24}
    ours = Wav2Vec2Encoder(**sizes)
    # And a little for each utterance, its summary.
    kept = [frames * kept_per_frame(ours, frames) for frames in (10, 20, 30)]
    assert kept[2] - kept[1] == kept[1] - kept[0]
    weights = Wav2Vec2Encoder(mixer=AttentionWithWeights, **sizes)
    # At least one weight of bf16 for each frame and head.
    more = kept_per_frame(weights, 20) - kept_per_frame(weights, 10)
    assert more >= 10 * 2 * 8
