"""Encoder and head as one module: what learns, what is masked."""

from functools import partial

import pytest
import torch

from summarymixing import MultiHeadAttention, SummaryMixing, Wav2Vec2Encoder
from summarymixing.lobes.features import num_frames
from summarymixing.lobes.finetuning import (
    FineTuned,
    LatentMasks,
    draw_masks,
    with_regularisation,
)
from summarymixing.lobes.heads import HiddenLayerHead
from summarymixing.nnet.span_mask import overlapping_spans

SPANS = partial(overlapping_spans, probability=0.65, length=10)
LENGTHS = [4_000, 2_500]


class KeepFeatures(torch.nn.Module):
    def forward(self, features, padding_mask):
        return features


def make_encoder(**options):
    torch.manual_seed(0)
    return Wav2Vec2Encoder(
        **{
            "mixer": partial(SummaryMixing, num_heads=2),
            "num_layers": 3,
            "d_model": 16,
            "d_ffn": 32,
            "front_end_channels": 8,
            "num_mels": 20,
            "dropout": 0.0,
            "layer_drop": 0.0,
            **options,
        }
    )


def batch():
    wavs = torch.rand(2, LENGTHS[0])
    return wavs, torch.tensor(LENGTHS) / LENGTHS[0]


def masks_of(span, channel):
    frames = num_frames(LENGTHS[0])
    return LatentMasks(
        torch.full((2, frames), span), torch.full((2, 8), channel)
    )


def test_the_head_sees_the_last_hidden_state_without_padding():
    encoder = make_encoder().eval()
    wavs, wav_lens = batch()
    out = encoder(wavs, wav_lens)
    expected = out.hidden_states[-1].masked_fill(
        out.padding_mask.unsqueeze(-1), 0
    )
    model = FineTuned(encoder, KeepFeatures())
    features, padding_mask = model(wavs, wav_lens)
    assert torch.equal(features, expected)
    assert torch.equal(padding_mask, out.padding_mask)
    assert padding_mask.any()


@pytest.mark.parametrize("layer_drop", [0.0, 0.9])
@pytest.mark.parametrize("train_front_end", [False, True])
@pytest.mark.parametrize(
    "layers, expected",
    [
        ([], set()),
        ([2], {"layers.2", "norm"}),
        ([1, 2], {"layers.1", "layers.2", "norm"}),
        ([0], {"input", "layers.0"}),
        ([0, 1, 2], {"input", "layers.0", "layers.1", "layers.2", "norm"}),
    ],
)
def test_what_learns_gets_a_gradient_and_nothing_else(
    layers, expected, train_front_end, layer_drop
):
    """DDP would wait for a gradient that never comes."""
    model = FineTuned(
        make_encoder(layer_drop=layer_drop),
        HiddenLayerHead(16, 4, hidden_size=4),
        train_front_end=train_front_end,
    ).train()
    model.train_layers(range(3))  # and back again
    model.train_layers(layers)
    predicted, _ = model(*batch(), masks_of(False, False), layer_drop_seed=1)
    predicted.square().sum().backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    assert found == {n for n, p in model.named_parameters() if p.requires_grad}

    def part(name):
        if name.startswith("encoder.conformer.layers"):
            return ".".join(name.split(".")[2:4])
        if name.startswith("encoder.conformer.norm"):
            return "norm"
        if name.startswith("head"):
            return "head"
        return "front end" if "front_end" in name else "input"

    front_end = {"front end"} if train_front_end and 0 in layers else set()
    assert {part(name) for name in found} == {"head"} | expected | front_end


def test_nothing_is_remembered_of_what_is_frozen():
    model = FineTuned(make_encoder(), KeepFeatures()).train()
    model.train_layers([])
    predicted, _ = model(*batch(), masks_of(True, False))
    assert predicted.grad_fn is None


@pytest.mark.parametrize("span, channel", [(True, False), (False, True)])
def test_masks_hide_the_audio(span, channel):
    model = FineTuned(make_encoder(), KeepFeatures()).eval()
    (wavs, wav_lens), (others, _) = batch(), batch()
    hidden = masks_of(span, channel)
    torch.testing.assert_close(
        model(wavs, wav_lens, hidden), model(others, wav_lens, hidden)
    )
    shown = masks_of(False, False)
    difference = (
        model(wavs, wav_lens, shown)[0] - model(others, wav_lens, shown)[0]
    )
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("lengths", [[1, 1], [3, 60], [2, 9, 40]])
def test_masks_stay_in_the_utterance_and_depend_on_it_alone(lengths):
    seeds = list(range(len(lengths)))
    drawn = draw_masks(lengths, 8, seeds, frames=SPANS, channels=SPANS)
    assert drawn.span_mask.shape == (len(lengths), max(lengths))
    for b, length in enumerate(lengths):
        assert drawn.span_mask[b, :length].any()
        assert not drawn.span_mask[b, length:].any()
        alone = draw_masks(
            [length], 8, [seeds[b]], frames=SPANS, channels=SPANS
        )
        assert torch.equal(alone.span_mask[0], drawn.span_mask[b, :length])
        assert torch.equal(alone.channel_mask[0], drawn.channel_mask[b])


def test_another_seed_is_another_mask():
    one, other = (
        draw_masks([500], 64, [seed], frames=SPANS, channels=SPANS)
        for seed in (1, 2)
    )
    assert not torch.equal(one.span_mask, other.span_mask)
    assert not torch.equal(one.channel_mask, other.channel_mask)
    assert 0.3 < one.span_mask.float().mean() < 0.65


def test_no_scheme_masks_nothing():
    assert not any(mask.any() for mask in draw_masks([5, 3], 8, [1, 2]))


@pytest.mark.parametrize("mixer", [SummaryMixing, MultiHeadAttention])
def test_regularisation_changes_and_weights_stay(mixer):
    encoder = make_encoder(mixer=partial(mixer, num_heads=2))
    changed = with_regularisation(
        encoder, dropout=0.3, layer_drop=0.2, mixer_dropout=0.1
    )
    assert changed.config == {
        **encoder.config,
        "dropout": 0.3,
        "layer_drop": 0.2,
        "mixer": {**encoder.config["mixer"], "dropout": 0.1},
    }
    layer = changed.conformer.layers[0]
    assert changed.conformer.layer_drop == 0.2
    assert layer.dropout.p == changed.dropout.p == 0.3
    assert getattr(layer.mixer.dropout, "p", layer.mixer.dropout) == 0.1
    for found, expected in zip(
        changed.state_dict().items(), encoder.state_dict().items(), strict=True
    ):
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])


def test_regularisation_stays_where_nothing_is_asked_for():
    encoder = make_encoder(dropout=0.3, layer_drop=0.2)
    assert with_regularisation(encoder).config == encoder.config


def test_network_of_several_layers():
    head = HiddenLayerHead(
        768, 30, num_layers=2, activation=torch.nn.GELU, dropout=0.5
    )
    sizes = 768 * 1024, 1024, 1024 * 1024, 1024, 1024 * 30, 30
    assert sum(p.numel() for p in head.parameters()) == sum(sizes)
    x, padding_mask = torch.randn(1, 2, 768), torch.zeros(1, 2) > 0
    assert not torch.equal(head(x, padding_mask), head(x, padding_mask))
    head.eval()
    first, second = (m for m in head.hidden.modules() if hasattr(m, "w"))
    gelu = torch.nn.functional.gelu
    expected = head.linear(gelu(second(gelu(first(x)))))
    torch.testing.assert_close(head(x, padding_mask), expected)
