"""Frozen encoder, weighted sum and heads of the probes."""

import pytest
import torch

from summarymixing import Wav2Vec2Encoder
from summarymixing.lobes.encoders import FrozenEncoder, LogMelEncoder
from summarymixing.lobes.heads import LSTMHead
from summarymixing.lobes.probes import Probe, WeightedSum
from summarymixing.lobes.wav2vec2 import Wav2Vec2Output


def make_encoder():
    torch.manual_seed(0)
    return Wav2Vec2Encoder(
        num_layers=2, d_model=16, d_ffn=32, front_end_channels=8, num_mels=20
    )


@pytest.mark.parametrize("train_mode", [False, True])
def test_encoder_is_frozen_whatever_the_brain_does(train_mode):
    frozen = FrozenEncoder(make_encoder(), train_mode=train_mode)
    modules = torch.nn.ModuleDict({"encoder": frozen}).train()
    assert frozen.inner.training == train_mode
    assert frozen.inner.conformer.layers[0].dropout.training == train_mode
    states = frozen(torch.rand(1, 4000), torch.ones(1)).hidden_states
    assert not any(state.requires_grad for state in states)
    assert not any(p.requires_grad for p in frozen.parameters())
    modules.eval()
    assert not frozen.inner.training


def test_precision_is_that_of_the_computation():
    wavs, wav_lens = torch.rand(1, 4000), torch.ones(1)
    exact = FrozenEncoder(make_encoder())(wavs, wav_lens).hidden_states
    rounded = FrozenEncoder(make_encoder(), precision="bf16")(wavs, wav_lens)
    difference = (exact[-1] - rounded.hidden_states[-1]).abs().max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [list, torch.stack])
def test_weighted_sum_equals_its_definition(dtype, form):
    torch.manual_seed(0)
    states = [torch.randn(2, 5, 3).to(dtype) for _ in range(4)]
    direction = torch.randn(2, 5, 3)
    mixture = WeightedSum(4)
    torch.testing.assert_close(
        mixture(form(states)), torch.stack(states).float().mean(dim=0)
    )
    with torch.no_grad():
        mixture.logits.copy_(torch.randn(4))
    reference_logits = mixture.logits.detach().clone().requires_grad_()
    reference = torch.einsum(
        "l,lbtd->btd",
        torch.softmax(reference_logits, 0),
        torch.stack(states).float(),
    )
    output = mixture(form(states))
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, reference)
    (output * direction).sum().backward()
    (reference * direction).sum().backward()
    torch.testing.assert_close(mixture.logits.grad, reference_logits.grad)


def test_weighted_sum_wants_every_state():
    with pytest.raises(ValueError):
        WeightedSum(3)([torch.rand(1, 1, 1)] * 2)


def test_lstm_of_the_paper_has_39_88_million_parameters():
    head = LSTMHead(768, 30)
    assert sum(p.numel() for p in head.lstm.parameters()) == 39_878_656
    assert head.linear.w.weight.shape == (30, 2048)


def predict(head, states, lengths):
    padding_mask = torch.arange(states[0].shape[1]) >= torch.tensor(
        lengths
    ).unsqueeze(1)
    return Probe(len(states), head).eval()(states, padding_mask)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("garbage", [1e3, float("nan")])
def test_content_of_padding_does_not_matter(packed, garbage):
    torch.manual_seed(0)
    head = LSTMHead(4, 3, hidden_size=5, packed=packed)
    states = [torch.randn(2, 7, 4) for _ in range(3)]
    expected = predict(head, states, [7, 4])
    for state in states:
        state[1, 4:] = garbage
    found = predict(head, states, [7, 4])
    torch.testing.assert_close(found[1, :4], expected[1, :4])


@pytest.mark.parametrize("length", [1, 2, 36, 37])
def test_packed_head_does_not_see_the_batch(length):
    torch.manual_seed(0)
    head = LSTMHead(4, 3, hidden_size=5, packed=True)
    states = [torch.randn(2, 49, 4) for _ in range(2)]
    batch = predict(head, states, [length, 49])
    alone = predict(head, [s[:1, :length] for s in states], [length])
    torch.testing.assert_close(batch[:1, :length], alone)


def test_hidden_states_are_zero_on_padding():
    class Untidy(torch.nn.Module):
        def forward(self, wavs, wav_lens):
            padding_mask = torch.arange(4) >= (wav_lens * 4).unsqueeze(1)
            states = [torch.full((2, 4, 3), float("nan")) for _ in range(2)]
            return Wav2Vec2Output(states, padding_mask)

    out = FrozenEncoder(Untidy())(torch.rand(2, 8), torch.tensor([1.0, 0.5]))
    for state in out.hidden_states:
        assert state[0].isnan().all() and state[1, :2].isnan().all()
        assert (state[1, 2:] == 0).all()


def test_log_mel_encoder_pairs_the_filterbank_frames():
    wavs, wav_lens = torch.rand(2, 4000), torch.tensor([1.0, 0.5])
    encoder = LogMelEncoder()
    out = encoder(wavs, wav_lens)
    (frames,) = out.hidden_states
    ours = Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=32)
    _, padding_mask = ours.extract(wavs, wav_lens)
    assert torch.equal(out.padding_mask, padding_mask)
    mels, _ = encoder.decibels(wavs, torch.tensor([4000, 2000]))
    expected = (mels[0] - mels[0].mean()) / 20
    torch.testing.assert_close(frames[0, 3], expected[6:8].flatten())
    assert (frames[1, (~padding_mask[1]).sum() :] == 0).all()


def test_log_mel_features_do_not_depend_on_gain_but_keep_the_spectrum():
    torch.manual_seed(0)
    wavs, wav_lens = torch.randn(1, 4000), torch.ones(1)
    (loud,) = LogMelEncoder()(wavs, wav_lens).hidden_states
    (soft,) = LogMelEncoder()(0.1 * wavs, wav_lens).hidden_states
    torch.testing.assert_close(loud, soft, atol=1e-4, rtol=0)
    assert loud.mean(dim=1).std() > 0.05
