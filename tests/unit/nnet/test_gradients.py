"""Changes of the backward pass: values stay, gradients do what they say."""

import pytest
import torch

from summarymixing.nnet.gradients import scale_gradient, with_zero_gradients


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0, -2.0])
def test_the_gradient_alone_is_scaled(factor, device):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    y = scale_gradient(x.square(), factor)
    assert torch.equal(y, x.square())
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * factor * x.detach())


def test_parameters_get_zeros_and_the_input_its_own_gradient(device):
    x = torch.randn(3, device=device, requires_grad=True)
    unused = [torch.nn.Parameter(torch.randn(2, 2, device=device))]
    y = with_zero_gradients(x, unused)
    assert torch.equal(y, x)
    (y * torch.arange(3, device=device)).sum().backward()
    assert x.grad.tolist() == [0, 1, 2]
    assert torch.equal(unused[0].grad, torch.zeros(2, 2, device=device))


def test_zeros_leave_a_gradient_of_another_use_alone(device):
    shared = torch.nn.Parameter(torch.ones(2, device=device))
    x = torch.ones(2, device=device, requires_grad=True)
    (with_zero_gradients(x, [shared]) * shared).sum().backward()
    assert shared.grad.tolist() == [1, 1]


def test_zeros_arrive_even_where_the_input_needs_no_gradient(device):
    unused = torch.nn.Parameter(torch.ones(2, device=device))
    with_zero_gradients(torch.ones(2, device=device), [unused]).sum().backward()
    assert unused.grad.tolist() == [0, 0]


def test_frozen_parameters_stay_without_gradient(device):
    frozen = torch.nn.Parameter(torch.ones(2, device=device), False)
    x = torch.ones(2, device=device, requires_grad=True)
    assert with_zero_gradients(x, [frozen]) is x
    assert with_zero_gradients(x, []) is x


def test_without_gradients_the_input_is_returned(device):
    unused = torch.nn.Parameter(torch.ones(2, device=device))
    x = torch.ones(2, device=device)
    with torch.no_grad():
        assert with_zero_gradients(x, [unused]) is x
