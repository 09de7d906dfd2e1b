"""The baselines compute what they stand for."""

import pytest
import torch

from summarymixing.cost.stock import AttentionWithWeights, StockPretraining
from summarymixing.nnet.attention import MultiHeadAttention


def test_the_stock_step_trains_all_of_its_weights():
    torch.manual_seed(1)
    model = StockPretraining(
        num_layers=1, d_model=16, d_ffn=32, num_heads=2, num_codes=5
    )
    mask = torch.zeros(2, 51, dtype=torch.bool)
    mask[0, 5:25] = mask[1, 20:40] = True
    loss = model(torch.randn(2, 16_000), torch.ones(2), mask)
    # At the start about log(1 + negatives) for each of 40 masked frames.
    assert 40 * 2 < loss.item() < 40 * 10
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == ["quantiser.quantiser.max_ent"]  # a constant


def test_the_stock_step_takes_a_minute_of_audio():
    model = StockPretraining(num_layers=1, d_model=8, d_ffn=8, num_heads=1)
    mask = torch.zeros(1, 3001, dtype=torch.bool)
    mask[0, 5:25] = True
    assert model(torch.randn(1, 960_000), torch.ones(1), mask).isfinite()


@pytest.mark.parametrize("lengths", [[6, 6], [6, 2]])
def test_attention_with_weights_is_attention(lengths):
    """The same weights give what the fused kernel gives."""
    torch.manual_seed(1)
    ours = MultiHeadAttention(8, num_heads=2).double()
    other = AttentionWithWeights(8, num_heads=2).double()
    other.attention.in_proj_weight.data = ours.project_in.weight.data
    other.attention.in_proj_bias.data = ours.project_in.bias.data
    other.attention.out_proj.weight.data = ours.project_out.weight.data
    other.attention.out_proj.bias.data = ours.project_out.bias.data
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    padding = torch.arange(6) >= torch.tensor(lengths)[:, None]
    torch.testing.assert_close(other(x, padding), ours(x, padding))
