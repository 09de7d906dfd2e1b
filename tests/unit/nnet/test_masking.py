"""Padding masks, lengths, and statistics that never see padding."""

import math

import pytest
import torch

from summarymixing.nnet.masking import (
    absolute_lengths,
    masked_mean,
    padding_mask_from_lengths,
    zero_padding,
)
from tests import reference


def test_true_is_padding(device):
    lengths = [0, 1, 4, 7]
    mask = padding_mask_from_lengths(torch.tensor(lengths, device=device), 7)
    for b, length in enumerate(lengths):
        assert mask[b].tolist() == [t >= length for t in range(7)]


@pytest.mark.parametrize("longest", [1, 159, 16_000, 999_983, 16_777_215])
def test_relative_lengths_come_back_as_the_samples_they_were(longest):
    # float32 has 24 bits: exact up to 17 minutes at 16 kHz.
    wanted = torch.randint(1, longest + 1, (200,))
    wanted[0], wanted[1] = 1, max(longest - 1, 1)
    relative = wanted / longest
    assert relative.dtype == torch.float32
    assert torch.equal(absolute_lengths(relative, longest), wanted)


def test_lengths_of_more_than_an_hour_are_exact_in_float64():
    longest = 57_600_001
    wanted = torch.randint(1, longest + 1, (200,))
    relative = wanted.double() / longest
    assert torch.equal(absolute_lengths(relative, longest), wanted)
    whole = torch.ones(1, dtype=torch.float32)
    assert absolute_lengths(whole, longest).tolist() == [longest]


def test_numbers_of_samples_are_refused():
    with pytest.raises(ValueError, match="divide the numbers of samples by 9"):
        absolute_lengths(torch.tensor([9, 4]), 9)


def test_lengths_stay_within_the_batch():
    lengths = absolute_lengths(torch.tensor([0.0, 1e-9, 1.0, 1.0001]), 10_000)
    assert lengths.tolist() == [1, 1, 10_000, 10_000]


@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
@pytest.mark.parametrize("garbage", [1e3, math.nan, math.inf])
def test_padding_becomes_zero_in_values_and_gradients(
    garbage, trailing, device
):
    mask = torch.tensor([[False, True], [False, False]], device=device)
    x = torch.ones(2, 2, *trailing, device=device)
    x[0, 1] = garbage
    value, gradient = reference.values_and_gradients(
        lambda x: zero_padding(x, mask), x
    )
    assert (value[mask] == 0).all() and (value[~mask] == 1).all()
    assert (gradient[mask] == 0).all() and (gradient[~mask] != 0).all()


def test_without_a_mask_nothing_is_copied():
    x = torch.rand(2, 3)
    assert zero_padding(x, None) is x


@pytest.mark.parametrize("garbage", [1e3, math.nan, math.inf])
def test_masked_mean_is_the_mean_of_valid_frames(garbage, device):
    lengths = [9, 1, 0, 4]
    mask = padding_mask_from_lengths(torch.tensor(lengths, device=device), 9)
    x = torch.randn(4, 9, 3, dtype=torch.float64, device=device)
    x[mask] = garbage
    actual, expected = (
        reference.values_and_gradients(lambda x, f=f: f(x, mask), x)
        for f in (masked_mean, reference.masked_mean)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_masked_mean_without_a_mask_counts_every_frame(device):
    x = torch.randn(2, 9, 3, dtype=torch.float64, device=device)
    torch.testing.assert_close(masked_mean(x, None), x.mean(dim=1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_masked_mean_sums_in_float32_at_least(dtype, expected, masked, device):
    # Two neighbours: their mean lies between two numbers of the type, and a
    # float16 sum of so many would be infinite.
    step = 2 * torch.finfo(dtype).eps
    x = torch.tensor([3.0, 3.0 + step], dtype=dtype, device=device)
    x = x.repeat(15_000)[None, :, None]
    mask = None
    if masked:
        mask = torch.zeros(1, 30_000, dtype=torch.bool, device=device)
    mean = masked_mean(x, mask)
    assert mean.dtype == expected
    wanted = 3.0 + step / 2
    assert mean.item() == pytest.approx(wanted, rel=0, abs=max(step / 8, 1e-5))
