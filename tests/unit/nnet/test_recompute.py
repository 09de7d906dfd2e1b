"""Recomputation: the same numbers, no product twice, less memory."""

import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from summarymixing import ConformerEncoderLayer
from summarymixing.cost.memory import LiveMemory, kept_for_backward
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.recompute import (
    num_summands,
    recomputed,
    shortest_sums,
)
from tests import reference
from tests.unit.nnet.test_mixers import MIXERS, every_mixer

D_MODEL = 8
SUMS = [1, D_MODEL, D_MODEL + 1, math.inf]
aten = torch.ops.aten


def make_layer(device, mixer=MIXERS["summary"], dropout=0.1):
    return ConformerEncoderLayer(
        D_MODEL, mixer=mixer, d_ffn=16, kernel_size=5, dropout=dropout
    ).to(device)


class Products(TorchDispatchMode):
    """Count the products that are computed, by their number of summands."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[num_summands(operator, args, kwargs or {})] += 1
        return operator(*args, **kwargs or {})


def test_less_is_kept_for_a_smaller_budget():
    previous = []
    for percent in range(101):
        sums = shortest_sums(percent / 100, num_layers=5, d_model=8)
        assert sums == sorted(sums, reverse=True)
        assert all(map(float.__le__, map(float, sums), map(float, previous)))
        previous = sums
    assert shortest_sums(0, 2, 8) == [math.inf, math.inf]
    assert shortest_sums(0.05, 2, 8) == [math.inf, 9]
    assert shortest_sums(0.35, 2, 8) == [8, 1]
    assert shortest_sums(1, 2, 8) == [0, 0]
    with pytest.raises(ValueError, match="share"):
        shortest_sums(1.1, 2, 8)


@every_mixer
@pytest.mark.parametrize("shortest_sum", SUMS)
def test_values_gradients_and_random_numbers_stay(
    shortest_sum, factory, device
):
    layer = make_layer(device, factory)
    if "Relative" not in str(factory):  # SpeechBrain's has float32 positions
        layer.double()
    dtype = layer.norm.weight.dtype
    x = torch.randn(2, 20, D_MODEL, dtype=dtype, device=device)
    mask = torch.arange(20, device=device)[None] >= torch.tensor(
        [[20], [13]], device=device
    )

    def run(x, shortest_sum):
        torch.manual_seed(5)  # of dropout
        layer.shortest_sum = shortest_sum  # of its parts
        return recomputed(layer, x, mask, shortest_sum=shortest_sum)

    def everything(shortest_sum):
        results = reference.values_and_gradients(
            lambda x: run(x, shortest_sum), x, layer.parameters()
        )
        return results, torch.rand(1, device=device)

    torch.testing.assert_close(
        everything(shortest_sum), everything(0), rtol=1e-12, atol=1e-12
    )


@every_mixer
@pytest.mark.parametrize("shortest_sum", SUMS)
def test_what_is_kept_is_not_computed_again(shortest_sum, factory, device):
    layer = make_layer(device, factory, dropout=0.0)
    x = torch.randn(2, 20, D_MODEL, device=device)

    def count(shortest_sum):
        with Products() as products:
            out = recomputed(layer, x, None, shortest_sum=shortest_sum)
            forward = Counter(products.counts)
            out.square().sum().backward()
        return forward, products.counts

    forward, total = count(0)
    total_with_less = count(shortest_sum)[1]
    for summands in set(total) - {0}:
        twice = 0 if summands >= shortest_sum else forward[summands]
        assert total_with_less[summands] == total[summands] + twice, summands
    assert total_with_less[0] > total[0]


def test_each_step_saves_memory(device):
    layer = make_layer(device).double()
    x = torch.randn(2, 500, D_MODEL, dtype=torch.float64, device=device)

    def kept(shortest_sum):
        return kept_for_backward(
            lambda: recomputed(layer, x, None, shortest_sum=shortest_sum)
        )

    # In values of width D a frame: all products, those of D summands or
    # more, those of more, none.
    frame = [kept(shortest_sum) / x.nbytes for shortest_sum in SUMS]
    assert frame == pytest.approx([15, 10, 2, 0], abs=0.2)
    assert kept(0) > 25 * x.nbytes


def test_backward_holds_one_part_of_a_layer_at_a_time(device):
    layer = make_layer(device).double()
    x = torch.randn(2, 500, D_MODEL, dtype=torch.float64, device=device)

    def peak(of_parts):
        layer.shortest_sum = of_parts
        layer.zero_grad()
        with LiveMemory() as memory:
            recomputed(layer, x, None, shortest_sum=1).sum().backward()
        return memory.peak / x.nbytes

    # The width D of the feed-forward modules is small here, so this is
    # less than it would be for a real layer.
    assert peak(1) < peak(0) - 8


@pytest.mark.parametrize("share", [0.6, 0.7, 1])
def test_an_encoder_learns_the_same(share, device):
    torch.manual_seed(1)
    encoder = Wav2Vec2Encoder(
        num_layers=2, d_model=16, d_ffn=32, front_end_channels=8
    )
    encoder.double().to(device)
    wavs = torch.randn(2, 8000, device=device)
    lengths = torch.tensor([1.0, 0.6], device=device)

    def gradients(share):
        torch.manual_seed(5)
        encoder.conformer.recompute_share(share)
        out = encoder(wavs, lengths).hidden_states[-1]
        return torch.autograd.grad(
            out.square().sum(), list(encoder.parameters()), allow_unused=True
        )

    torch.testing.assert_close(
        gradients(share), gradients(0), rtol=1e-10, atol=1e-10
    )


def test_no_gradient_keeps_nothing(device):
    layer = make_layer(device)
    x = torch.randn(2, 20, D_MODEL, device=device, requires_grad=True)
    with torch.no_grad():
        assert not recomputed(layer, x, None, shortest_sum=1).requires_grad


def test_attention_with_dropout_is_computed_again():
    """Kept, it would not draw its random numbers a second time."""
    q = torch.empty(1, 2, 6, 4, device="meta")
    attend = aten._scaled_dot_product_efficient_attention.default
    assert num_summands(attend, (q, q, q, None, True, 0.1), {}) == 0
    assert num_summands(attend, (q, q, q, None, True), {}) == math.inf
    weight = torch.empty(8, 1, 5, device="meta")
    assert num_summands(aten.convolution.default, (q, weight), {}) == 5
    assert num_summands(aten.gelu.default, (q,), {}) == 0
