"""The depthwise convolution: every form is `nn.Conv1d`, without copies."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from summarymixing.nnet import depthwise
from summarymixing.nnet.depthwise import FORMS, depthwise_convolution
from tests import reference

D_MODEL = 6
FUNCTIONS = {**FORMS, "chosen": depthwise_convolution}
every_form = pytest.mark.parametrize(
    "form", FUNCTIONS.values(), ids=list(FUNCTIONS)
)


def make(device, kernel_size=31, dtype=torch.float64):
    conv = torch.nn.Conv1d(
        D_MODEL,
        D_MODEL,
        kernel_size,
        padding=kernel_size // 2,
        groups=D_MODEL,
    )
    return conv.to(device, dtype)


@every_form
@pytest.mark.parametrize("kernel_size", [1, 31])
@pytest.mark.parametrize("length", [1, 15, 16, 31, 500])
def test_values_and_gradients_are_those_of_conv1d(
    length, kernel_size, form, device, monkeypatch
):
    # Blocks of some frames, so that there are several and a shorter last one.
    monkeypatch.setattr(depthwise, "BLOCK", 2 * D_MODEL * 7)
    conv = make(device, kernel_size)
    x = torch.randn(2, length, D_MODEL, dtype=torch.float64, device=device)
    actual, expected = (
        reference.values_and_gradients(function, x, conv.parameters())
        for function in (
            lambda x: form(x, conv.weight, conv.bias),
            lambda x: conv(x.transpose(1, 2)).transpose(1, 2),
        )
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_form
@pytest.mark.parametrize("length", [1, 2, 16, 40])
def test_float32_agrees_within_its_rounding(length, form, device):
    conv = make(device)
    x = torch.randn(2, length, D_MODEL, dtype=torch.float64, device=device)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    actual = form(x.float(), conv.weight.float(), conv.bias.float())
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


# oneDNN 3.10 never returns from a bfloat16 image: no `channels_last` here.
@pytest.mark.parametrize("form", [depthwise_convolution, FORMS["shifted"]])
def test_bfloat16_agrees_within_its_rounding(form, device):
    conv = make(device)
    x = torch.randn(2, 40, D_MODEL, dtype=torch.float64, device=device)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    half = torch.bfloat16
    actual = form(x.to(half), conv.weight.to(half), conv.bias.to(half))
    assert actual.dtype == half
    torch.testing.assert_close(actual.double(), expected, rtol=0.03, atol=0.03)


class Convolutions(TorchDispatchMode):
    """Records what is given to convolutions, and all that is copied."""

    def __init__(self):
        super().__init__()
        self.images, self.copies = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.images.append(args[0])
        elif "copy" in str(function) or "clone" in str(function):
            self.copies.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["channels_last", "blocked"])
def test_the_frames_are_convolved_where_they_lie(form, device):
    conv = make(device, dtype=torch.float32)
    x = torch.randn(2, 40, D_MODEL, device=device)
    with torch.no_grad(), Convolutions() as seen:
        y = FORMS[form](x, conv.weight, conv.bias)
    (image,) = seen.images
    assert not seen.copies
    assert image.data_ptr() == x.data_ptr()
    # What PyTorch takes as it is; any other layout it would copy.
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous()
