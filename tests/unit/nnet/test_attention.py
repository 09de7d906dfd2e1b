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
@pytest.mark.parametrize("garbage", [1e3, float("nan"), float("inf")])
@pytest.mark.parametrize("num_padding_frames", [1, 7, 63])
def test_padding_never_changes_frames_or_gradients(
    num_padding_frames, garbage, mixer_class, device
):
    mixer = make_mixer(mixer_class, device)
    x = frames(1, 20, device=device)
    mask = torch.arange(20 + num_padding_frames, device=device)[None] >= 20

    def padded(x):
        noise = x.new_full((1, num_padding_frames, D_MODEL), garbage)
        mixed = mixer(torch.cat([x, noise], dim=1), mask)
        assert (mixed[:, 20:] == 0).all()
        return mixed[:, :20]

    alone = reference.values_and_gradients(mixer, x, mixer.parameters())
    actual = reference.values_and_gradients(padded, x, mixer.parameters())
    torch.testing.assert_close(actual, alone, rtol=1e-5, atol=1e-6)


@every_mixer
def test_an_utterance_of_padding_gives_zeros_and_finite_gradients(
    mixer_class, device
):
    mixer = make_mixer(mixer_class, device)
    mask = torch.tensor([[False] * 5, [True] * 5], device=device)
    value, *gradients = reference.values_and_gradients(
        lambda x: mixer(x, mask),
        frames(2, 5, device=device),
        mixer.parameters(),
    )
    assert (value[1] == 0).all()
    assert (gradients[0][1] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_mixer
def test_a_mask_without_padding_is_the_same_as_none(mixer_class, device):
    mixer = make_mixer(mixer_class, device)
    x = frames(2, 7, device=device)
    nothing = torch.zeros(2, 7, dtype=torch.bool, device=device)
    torch.testing.assert_close(mixer(x, nothing), mixer(x, None))


@every_mixer
@pytest.mark.parametrize("padded", [False, True])
def test_a_mixer_returns_frames_alone(mixer_class, padded, device):
    mask = torch.zeros(2, 7, dtype=torch.bool, device=device)
    mask[1, 5:] = padded
    mixed = make_mixer(mixer_class, device)(frames(2, 7, device=device), mask)
    assert isinstance(mixed, torch.Tensor)
    assert mixed.shape == (2, 7, D_MODEL)


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
def test_dropout_acts_in_training_alone(mixer_class, device):
    mixer = make_mixer(mixer_class, device, dropout=0.5)
    x = frames(1, 20, device=device)
    assert not torch.equal(mixer(x), mixer(x))
    mixer.eval()
    assert torch.equal(mixer(x), mixer(x))


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
