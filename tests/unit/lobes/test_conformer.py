"""The Conformer: states, dropped layers, recomputation, padding."""

from functools import partial

import pytest
import torch

from summarymixing import (
    ConformerEncoder,
    ConformerEncoderLayer,
    MultiHeadAttention,
    SummaryMixing,
)
from summarymixing.lobes.conformer import ConvolutionModule
from tests import reference

D_MODEL, NUM_LAYERS = 8, 3
MIXERS = {
    "summary": partial(SummaryMixing, num_heads=2),
    "lite": partial(SummaryMixing, num_heads=2, mode="lite"),
    "attention": partial(MultiHeadAttention, num_heads=2),
}
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def make_encoder(device, mixer=MIXERS["summary"], **options):
    options = {"dropout": 0.0, "num_layers": NUM_LAYERS, **options}
    encoder = ConformerEncoder(
        d_model=D_MODEL, mixer=mixer, d_ffn=16, kernel_size=5, **options
    )
    return encoder.double().to(device)


def frames(*shape, device):
    return torch.randn(*shape, D_MODEL, dtype=torch.float64, device=device)


@every_mixer
@pytest.mark.parametrize("garbage", [1e3, float("nan"), float("inf")])
def test_padding_never_reaches_frames_or_gradients(garbage, mixer, device):
    encoder = make_encoder(device, mixer)
    x = frames(1, 12, device=device)
    mask = torch.arange(21, device=device)[None] >= 12

    def states(encoded):
        return torch.stack(encoded.hidden_states)[:, :, :12]

    def padded(x):
        noise = x.new_full((1, 9, D_MODEL), garbage)
        return states(
            encoder(torch.cat([x, noise], dim=1), mask, all_hidden_states=True)
        )

    def alone(x):
        return states(encoder(x, all_hidden_states=True))

    torch.testing.assert_close(
        reference.values_and_gradients(padded, x, encoder.parameters()),
        reference.values_and_gradients(alone, x, encoder.parameters()),
        rtol=1e-9,
        atol=1e-9,
    )


@every_mixer
@pytest.mark.parametrize("num_padding_frames", [1, 2, 40])
def test_a_layer_alone_is_blind_to_padding(num_padding_frames, mixer, device):
    layer = ConformerEncoderLayer(
        D_MODEL, mixer=mixer, d_ffn=16, kernel_size=5, dropout=0.0
    )
    layer = layer.double().to(device)
    x = frames(1, 12, device=device)
    mask = torch.arange(12 + num_padding_frames, device=device)[None] >= 12

    def padded(x):
        noise = x.new_full((1, num_padding_frames, D_MODEL), 1e3)
        return layer(torch.cat([x, noise], dim=1), mask)[:, :12]

    torch.testing.assert_close(
        reference.values_and_gradients(padded, x, layer.parameters()),
        reference.values_and_gradients(layer, x, layer.parameters()),
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_convolution_sees_both_sides_and_no_more(device):
    module = ConvolutionModule(D_MODEL, kernel_size=5, dropout=0.0)
    module = module.double().to(device)
    x = frames(1, 15, device=device).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x, None)[0, 7].sum(), x)
    seen = gradient[0].abs().sum(dim=1) > 0
    assert seen.nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


def test_the_layer_is_figure_1b(device):
    layer = ConformerEncoderLayer(
        D_MODEL, mixer=MIXERS["summary"], d_ffn=16, kernel_size=5, dropout=0.0
    )
    layer = layer.double().to(device)
    x = y = frames(2, 6, device=device)
    y = y + layer.feed_forward_in(y) / 2
    y = y + layer.mixer(layer.norm_mixer(y), None)
    y = y + layer.convolution(y, None)
    y = layer.norm(y + layer.feed_forward_out(y) / 2)
    torch.testing.assert_close(layer(x), y)


def test_states_are_the_input_and_the_output_of_every_layer(device):
    encoder = make_encoder(device)
    x = frames(2, 6, device=device)
    out = encoder(x, all_hidden_states=True)
    expected = [x]
    for layer in encoder.layers:
        expected.append(layer(expected[-1]))
    expected[-1] = encoder.norm(expected[-1])
    torch.testing.assert_close(out.hidden_states, expected)
    assert out.output is out.hidden_states[-1]
    assert encoder(x).hidden_states == []


def dropped_layers(encoder, states):
    """Layers that repeat their input, the last one before its norm."""
    before_norm = [*states[:-1], None]
    return [
        torch.equal(encoder.norm(states[i]), states[-1])
        if before_norm[i + 1] is None
        else torch.equal(states[i], before_norm[i + 1])
        for i in range(len(encoder.layers))
    ]


@pytest.mark.parametrize("recomputed", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_dropped_layers_repeat_their_input_and_get_gradients_of_zero(
    seed, recomputed, device
):
    encoder = make_encoder(device, layer_drop=0.5)
    encoder.recompute_share(recomputed)
    out = encoder(
        frames(2, 6, device=device),
        all_hidden_states=True,
        layer_drop_seed=seed,
    )
    assert len(out.hidden_states) == NUM_LAYERS + 1
    # A plain sum of normalised outputs has no gradient.
    (
        out.output * torch.linspace(-1, 2, D_MODEL, device=device)
    ).sum().backward()
    dropped = dropped_layers(encoder, out.hidden_states)
    for layer, is_dropped in zip(encoder.layers, dropped, strict=True):
        gradients = [parameter.grad for parameter in layer.parameters()]
        assert all(gradient is not None for gradient in gradients)
        assert any(g.any() for g in gradients) is not is_dropped


def test_layers_are_dropped_at_their_rate_and_as_the_seed_says(device):
    encoder = make_encoder(device, layer_drop=0.3, num_layers=4)
    x = frames(1, 2, device=device)

    def dropped(seed):
        out = encoder(x, all_hidden_states=True, layer_drop_seed=seed)
        return dropped_layers(encoder, out.hidden_states)

    patterns = [dropped(seed) for seed in range(60)]
    assert patterns == [dropped(seed) for seed in range(60)]
    share = torch.tensor(patterns).double().mean().item()
    assert share == pytest.approx(0.3, abs=0.1)
    encoder.eval()
    assert not any(any(dropped(seed)) for seed in range(20))


def test_a_layer_drop_seed_leaves_the_global_stream_alone(device):
    encoder = make_encoder(device, layer_drop=0.5)
    x = frames(1, 2, device=device)
    before = torch.random.get_rng_state()
    encoder(x, layer_drop_seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    encoder(x)
    assert not torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("share", [0, 0.5, 0.65, 0.8, 1])
def test_recomputation_gives_the_same_gradients(share, device):
    encoder = make_encoder(device, num_layers=4, dropout=0.1, layer_drop=0.3)
    x = frames(2, 20, device=device)
    mask = torch.arange(20, device=device)[None] >= torch.tensor(
        [[20], [13]], device=device
    )

    def run(x):
        torch.manual_seed(5)  # of dropout
        return encoder(x, mask, layer_drop_seed=1).output

    expected = reference.values_and_gradients(run, x, encoder.parameters())
    encoder.recompute_share(share)
    actual = reference.values_and_gradients(run, x, encoder.parameters())
    torch.testing.assert_close(actual, expected)


def test_recomputation_keeps_only_what_enters_a_layer(device):
    encoder = make_encoder(device)
    x = frames(2, 50, device=device).requires_grad_()
    everything = reference.saved_for_backward(lambda: encoder(x))
    encoder.recompute_share(1)
    little = reference.saved_for_backward(lambda: encoder(x))
    wide = [tensor for tensor in little if tensor.numel() >= x.numel()]
    # The input of each layer, and of the final norm.
    assert reference.num_bytes(wide) == (NUM_LAYERS + 1) * x.nbytes
    assert reference.num_bytes(everything) > 10 * reference.num_bytes(little)


def test_memory_grows_linearly_with_length(device):
    encoder = make_encoder(device)
    kept = [
        reference.num_bytes(
            reference.saved_for_backward(
                lambda n=n: encoder(frames(1, n, device=device))
            )
        )
        for n in (400, 800, 1600)
    ]
    assert kept[2] - kept[1] == 2 * (kept[1] - kept[0])


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="must be odd, for example 5"):
        ConvolutionModule(8, kernel_size=4)


@pytest.mark.parametrize("layer_drop", [-0.1, 1.0])
def test_a_layer_drop_that_is_no_probability_is_refused(layer_drop):
    with pytest.raises(ValueError, match="layer_drop"):
        ConformerEncoder(num_layers=1, d_model=8, layer_drop=layer_drop)
