"""The linear layer and dropout: PyTorch's, by other kernels."""

import pytest
import torch

from summarymixing.nnet.layers import Dropout, LayerNorm, Linear
from tests import reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(2, 5), (1, 1), (1, 7), (3, 1), (4,)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_layer_is_pytorchs(bias, shape, dtype, device):
    expected = torch.nn.Linear(6, 4, bias=bias).to(device, torch.float64)
    layer = Linear(6, 4, bias=bias).to(device, dtype)
    layer.load_state_dict(expected.state_dict())
    x = torch.randn(*shape, 6, dtype=torch.float64, device=device)
    actual = reference.values_and_gradients(
        layer, x.to(dtype), layer.parameters()
    )
    assert actual[0].is_contiguous()
    torch.testing.assert_close(
        tuple(tensor.double() for tensor in actual),
        reference.values_and_gradients(expected, x, expected.parameters()),
        rtol=1e-12 if dtype == torch.float64 else 1e-5,
        atol=1e-12 if dtype == torch.float64 else 1e-5,
    )


def test_frames_that_are_no_block_of_memory_are_multiplied_too(device):
    layer = Linear(6, 4).to(device)
    x = torch.randn(5, 2, 12, device=device).transpose(0, 1)[..., ::2]
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5, 0.99])
def test_values_are_dropped_at_the_rate_and_scaled(p, device):
    x = torch.ones(401, 501, device=device, requires_grad=True)
    y = Dropout(p)(x)
    dropped = y == 0
    assert torch.allclose(y[~dropped], 1 / (1 - y.new_tensor(p)))
    error = dropped.double().mean() - p
    assert error.abs() < 5 * (p * (1 - p) / x.numel()) ** 0.5
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)


def test_neighbours_are_dropped_independently_of_each_other(device):
    # Two values share a draw; a torch that filled half of it would show.
    dropped = Dropout(0.5)(torch.ones(200_000, device=device)) == 0
    for distance in (1, 2):
        both = (dropped[distance:] & dropped[:-distance]).double().mean()
        assert abs(both.item() - 0.25) < 5 * (0.25 * 0.75 / 2e5) ** 0.5


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_rates_at_the_ends_are_pytorchs(p, device):
    x = torch.randn(10, device=device)
    assert torch.equal(Dropout(p)(x), x * (1 - p))


def test_dropout_follows_the_global_seed_and_rests_in_evaluation(device):
    x, layer = torch.randn(3, 7, device=device), Dropout(0.5)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)


def test_under_autocast_the_norm_rounds_once_at_its_end(device):
    layer = LayerNorm(6).to(device)
    x = 100 + torch.randn(2, 5, 6, device=device)
    exact = layer(x)
    assert exact.dtype == torch.float32
    with torch.autocast(device.type, torch.bfloat16):
        rounded = layer(x)
    # The mean of 100 taken from bf16 frames would leave errors of 0.25.
    assert torch.equal(rounded, exact.bfloat16())
