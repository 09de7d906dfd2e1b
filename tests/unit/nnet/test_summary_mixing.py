"""SummaryMixing: equation 1 to the last digit, and blind to padding."""

import pytest
import torch

from summarymixing import SummaryMixing
from summarymixing.nnet.masking import padding_mask_from_lengths
from tests import reference

D_MODEL = 8


def make_mixer(device, num_heads=2, mode="full"):
    mixer = SummaryMixing(D_MODEL, num_heads, mode).double().to(device)
    # Biases start at zero, where one that is added twice would not show.
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


def frames(*shape, device):
    return torch.randn(*shape, D_MODEL, dtype=torch.float64, device=device)


@pytest.mark.parametrize("mode", ["full", "lite"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("length", "num_heads"), [(1, 4), (2, 1), (2, 8), (63, 2), (100, 1)]
)
def test_values_and_gradients_are_those_of_equation_1(
    length, padded, num_heads, mode, device
):
    mixer = make_mixer(device, num_heads, mode)
    x = frames(2, length, device=device)
    mask = None
    if padded:
        lengths = torch.tensor([length, (length + 1) // 2], device=device)
        mask = padding_mask_from_lengths(lengths, length)
    actual, expected = (
        reference.values_and_gradients(
            lambda x, f=function: f(x, mask), x, mixer.parameters()
        )
        for function in (
            mixer,
            lambda x, mask: reference.summary_mixing(mixer, x, mask),
        )
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def test_order_of_the_other_frames_does_not_matter(device):
    mixer = make_mixer(device)
    x = frames(1, 9, device=device)
    order = torch.randperm(9, device=device)
    torch.testing.assert_close(mixer(x[:, order]), mixer(x)[:, order])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_of_a_long_constant_utterance_is_the_constant(
    dtype, padded, device
):
    # A bf16 sum is rounded to 8 bits, a float16 sum overflows at 65504.
    mixer = make_mixer(device, mode="lite").to(dtype)
    for parameter in mixer.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1)
    frame = torch.rand(1, 1, D_MODEL, device=device).to(dtype)
    length = 30_001
    mask = None
    if padded:
        mask = torch.arange(length, device=device)[None] >= length - 1
    long = mixer(frame.expand(1, length, D_MODEL), mask)
    # Within the rounding of the type: the products are of another shape.
    torch.testing.assert_close(long[:, :1], mixer(frame))


def test_no_copy_of_the_summary_or_of_the_concatenation_is_kept(device):
    mixer = make_mixer(device)
    x = frames(2, 200, device=device)
    mask = torch.zeros(2, 200, dtype=torch.bool, device=device)
    saved = reference.saved_for_backward(lambda: mixer(x, mask))
    # Widest: the hidden layers of both branches together, 2 D for a frame.
    assert max(tensor.numel() for tensor in saved) == 2 * x.numel()
    # For each frame: x, the hidden layer (2) before and after GELU, both
    # outputs before GELU, f after it, c before its GELU. No summary, no [f, s].
    wide = [tensor for tensor in saved if tensor.numel() >= x.numel()]
    assert reference.num_bytes(wide) == 9 * x.nbytes


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_values_and_gradients_are_the_same(backend, device):
    if backend == "inductor" and device.type == "cpu":
        pytest.skip("minutes of C++ compilation; run with --device=cuda")
    mixer = make_mixer(device)
    compiled = torch.compile(
        mixer, dynamic=True, fullgraph=True, backend=backend
    )
    for length in (6, 11):
        x = frames(2, length, device=device)
        lengths = torch.tensor([length, 4], device=device)
        mask = padding_mask_from_lengths(lengths, length)
        actual, expected = (
            reference.values_and_gradients(
                lambda x, f=function, mask=mask: f(x, mask),
                x,
                mixer.parameters(),
            )
            for function in (compiled, mixer)
        )
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("d_model", "num_heads", "widths"),
    [(10, 4, "8 and 12"), (3, 4, "4 and 8"), (768, 7, "763 and 770")],
)
def test_heads_that_do_not_divide_name_the_nearest_widths(
    d_model, num_heads, widths
):
    with pytest.raises(ValueError, match=f"d_model .{d_model}.*are {widths}"):
        SummaryMixing(d_model, num_heads)


@pytest.mark.parametrize("num_heads", [0, -2])
def test_a_number_of_heads_below_one_is_refused(num_heads):
    with pytest.raises(ValueError, match="num_heads"):
        SummaryMixing(8, num_heads)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'full' or 'lite', not 'light'"):
        SummaryMixing(8, 2, "light")


def test_biases_start_at_zero_and_weights_within_their_bounds():
    mixer = SummaryMixing(16, num_heads=4)
    bounds = {
        "hidden.weight": 1 / 2,  # 1 / sqrt(width of a head)
        "summary_out.weight": 1 / 2,
        "local_out.weight": 1 / 2,
        "combine_local.weight": 1 / 32**0.5,  # of the 2 D inputs of c
        "combine_summary.weight": 1 / 32**0.5,
    }
    for name, parameter in mixer.named_parameters():
        largest = parameter.abs().max()
        if name.endswith("bias"):
            assert largest == 0, name
        else:
            assert 0.8 * bounds[name] < largest <= bounds[name], name
