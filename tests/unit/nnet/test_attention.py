"""The attention baselines: blind to padding, and never a matrix of weights."""

import pytest
import torch

from summarymixing.nnet.attention import (
    MultiHeadAttention,
    RelativePositionAttention,
    RotaryAttention,
)
from summarymixing.nnet.masking import padding_mask_from_lengths
from tests import reference

D_MODEL = 8
MIXERS = [MultiHeadAttention, RotaryAttention, RelativePositionAttention]
every_mixer = pytest.mark.parametrize("mixer_class", MIXERS)


def make_mixer(mixer_class, device, **options):
    # SpeechBrain's relative positions exist in float32 alone.
    return mixer_class(D_MODEL, num_heads=2, **options).to(device)


def frames(*shape, device):
    return torch.randn(*shape, D_MODEL, device=device)


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", [1, 2, 63])
def test_multi_head_attention_is_softmax_attention(
    length, padded, num_heads, device
):
    mixer = MultiHeadAttention(D_MODEL, num_heads).double().to(device)
    torch.nn.init.normal_(mixer.project_in.bias)
    mask = None
    if padded:
        lengths = torch.tensor([length, (length + 1) // 2], device=device)
        mask = padding_mask_from_lengths(lengths, length)
    x = frames(2, length, device=device).double()
    actual, expected = (
        reference.values_and_gradients(
            lambda x, f=function: f(x, mask), x, mixer.parameters()
        )
        for function in (
            mixer,
            lambda x, mask: reference.attention(mixer, x, mask),
        )
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@every_mixer
def test_a_mask_without_padding_is_the_same_as_none(mixer_class, device):
    mixer = make_mixer(mixer_class, device)
    x = frames(2, 7, device=device)
    nothing = torch.zeros(2, 7, dtype=torch.bool, device=device)
    torch.testing.assert_close(mixer(x, nothing), mixer(x, None))


@pytest.mark.parametrize("padded", [False, True])
def test_multi_head_attention_keeps_no_matrix_of_weights(padded, device):
    mixer = MultiHeadAttention(D_MODEL, num_heads=2).to(device)
    length = 256
    mask = torch.zeros(1, length, dtype=torch.bool, device=device)
    mask[:, -3:] = True
    x = frames(1, length, device=device).requires_grad_()
    saved = reference.saved_for_backward(
        lambda: mixer(x, mask if padded else None)
    )
    assert max(tensor.numel() for tensor in saved) < length * length


@every_mixer
def test_heads_that_do_not_divide_are_refused(mixer_class):
    with pytest.raises(ValueError, match="must be a multiple of num_heads"):
        mixer_class(10, num_heads=4)


@pytest.mark.parametrize("mixer_class", MIXERS[1:])
def test_relative_positions_do_not_change_with_a_shift(mixer_class, device):
    mixer = make_mixer(mixer_class, device)
    x = frames(1, 9, device=device)
    shifted = torch.cat([torch.zeros_like(x), x], dim=1)
    # The first nine frames are masked as if they were padding.
    mask = (torch.arange(18, device=device) < 9)[None]
    torch.testing.assert_close(
        mixer(shifted, mask)[:, 9:], mixer(x), rtol=1e-4, atol=1e-5
    )
