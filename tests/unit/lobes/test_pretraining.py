"""Pre-training: every loss is a sum over utterances that do not interact."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from summarymixing import SummaryMixing, Wav2Vec2Encoder
from summarymixing.lobes.features import num_frames
from summarymixing.lobes.pretraining import (
    Wav2Vec2Pretraining,
    gather_masked_frames,
)
from summarymixing.nnet.losses import diversity_loss
from tests import reference

LENGTHS = [16_000, 4_321, 9_999, 100]  # samples; the last is one frame
CODES = (2, 6)


def make_model(device, **options):
    encoder = Wav2Vec2Encoder(
        mixer=partial(SummaryMixing, num_heads=2),
        num_layers=2,
        d_model=8,
        d_ffn=16,
        kernel_size=5,
        dropout=0.0,
        layer_drop=0.0,
        num_mels=20,
        front_end_channels=6,
    )
    model = Wav2Vec2Pretraining(
        encoder,
        num_groups=CODES[0],
        num_codes=CODES[1],
        target_dim=8,
        num_negatives=10,
        **options,
    )
    return model.double().to(device)


def make_utterances(device, lengths=LENGTHS):
    """(audio, masked frames, seed) of each utterance."""
    generator = torch.Generator().manual_seed(4)
    utterances = []
    for seed, num_samples in enumerate(lengths):
        frames = num_frames(num_samples)
        masked = torch.randperm(frames, generator=generator)
        masked = masked[: max(frames // 2, 1)].sort().values
        wav = torch.randn(num_samples, generator=generator).to(device)
        utterances.append((wav, masked.tolist(), seed))
    return utterances


def on_device(masked, device):
    return masked._make(
        x.to(device) if torch.is_tensor(x) else x for x in masked
    )


def run(model, utterances, garbage=0.0, **options):
    """Output and gradients of a batch, padded with garbage."""
    wavs, masked, seeds = zip(*utterances, strict=True)
    longest = max(len(wav) for wav in wavs)
    padded = wavs[0].new_full((len(wavs), longest), garbage)
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = wav
    wav_lens = torch.tensor([len(wav) / longest for wav in wavs])
    gathered = gather_masked_frames(masked, num_frames(longest), seeds)
    out = model(
        padded,
        wav_lens.to(padded.device),
        on_device(gathered, padded.device),
        temperature=options.pop("temperature", 1.5),
        **options,
    )
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(
        out.loss, parameters.values(), materialize_grads=True
    )
    return out, dict(zip(parameters, gradients, strict=True))


def total(parts):
    """Sum of named numbers over several runs."""
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def compute_mels_alone(front_end, monkeypatch):
    """Take the rounding of float32 mel features out of a comparison."""
    mel_features = front_end.mel_features

    def one_by_one(wavs, num_samples):
        mels = [
            mel_features(wav[None, :n], n[None])[0].double()
            for wav, n in zip(wavs, num_samples, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)

    monkeypatch.setattr(front_end, "mel_features", one_by_one)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("garbage", [0.0, 1e3, float("nan")])
def test_a_batch_is_the_sum_of_its_utterances(
    garbage, exact, train, device, monkeypatch
):
    model = make_model(device, diversity_weight=0.0).train(train)
    if exact:
        compute_mels_alone(model.encoder.front_end, monkeypatch)
    utterances = make_utterances(device)
    joint, gradients = run(model, utterances, garbage)
    alone = [run(model, [utterance]) for utterance in utterances]
    torch.testing.assert_close(
        joint._asdict(),
        total([out._asdict() for out, _ in alone]),
        rtol=1e-10 if exact else 1e-5,
        atol=1e-10 if exact else 1e-5,
    )
    torch.testing.assert_close(
        gradients,
        total([gradients for _, gradients in alone]),
        rtol=1e-9 if exact else 1e-2,
        atol=1e-9 if exact else 1e-3,
    )


@pytest.mark.parametrize("train", [True, False])
def test_diversity_is_of_the_frames_of_the_batch_together(
    train, device, monkeypatch
):
    model = make_model(device, diversity_weight=0.5).train(train)
    compute_mels_alone(model.encoder.front_end, monkeypatch)
    utterances = make_utterances(device)
    joint, _ = run(model, utterances)
    sums = sum(
        run(model, [utterance])[0].probability_sums for utterance in utterances
    )
    expected = joint.contrastive_loss + 0.5 * joint.frames * diversity_loss(
        sums
    )
    torch.testing.assert_close(joint.loss.detach(), expected, rtol=1e-6, atol=0)


def test_the_gradient_of_diversity_is_that_of_its_formula(device, monkeypatch):
    model = make_model(device, diversity_weight=0.5)
    compute_mels_alone(model.encoder.front_end, monkeypatch)
    utterances = make_utterances(device)
    joint, gradients = run(model, utterances)
    model.diversity_weight = 0.0
    _, without = run(model, utterances)
    wavs = [
        model.encoder.extract(wav[None], torch.ones(1, device=device))[0]
        for wav, _, _ in utterances
    ]
    latents = torch.cat(
        [
            frames[0, masked]
            for frames, (_, masked, _) in zip(wavs, utterances, strict=True)
        ]
    )
    logits = model.quantiser.to_logits(latents).view(-1, *CODES)
    sums = logits.softmax(dim=-1).sum(dim=0)
    expected = torch.autograd.grad(
        0.5 * joint.frames * diversity_loss(sums),
        model.parameters(),
        materialize_grads=True,
    )
    actual = [gradients[name] - without[name] for name in gradients]
    torch.testing.assert_close(actual, list(expected), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("train", [True, False])
def test_an_utterance_of_one_frame_has_no_loss(train, device):
    model = make_model(device).train(train)
    out, gradients = run(model, make_utterances(device, [100]))
    assert out.frames == out.loss == out.accuracy == out.chance == 0
    assert out.negatives_excluded == 0
    assert all(not gradient.any() for gradient in gradients.values())


def test_every_parameter_takes_part(device):
    _, gradients = run(make_model(device), make_utterances(device))
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


def test_noise_and_negatives_depend_on_the_seed_alone(device):
    model = make_model(device)
    utterances = make_utterances(device)
    first, _ = run(model, utterances)
    torch.manual_seed(12345)
    again, _ = run(model, utterances)
    assert first.loss == again.loss
    other, _ = run(model, [(w, m, seed + 50) for w, m, seed in utterances])
    assert first.loss != other.loss


def test_negatives_are_the_same_in_training_and_evaluation(device):
    model = make_model(device)
    utterances = make_utterances(device)
    wavs, masked, seeds = zip(*utterances, strict=True)
    gathered = gather_masked_frames(masked, num_frames(16_000), seeds)
    gathered = on_device(gathered, device)
    training, _ = model.train()._draw(gathered)
    evaluation, noise = model.eval()._draw(gathered)
    assert torch.equal(training, evaluation)
    assert noise is None


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_the_front_end_alone_is_slowed_down(factor, device):
    model = make_model(device)
    utterances = make_utterances(device)
    _, usual = run(model, utterances)
    model.front_end_gradient = factor
    _, slowed = run(model, utterances)
    for name, gradient in slowed.items():
        scale = factor if "front_end" in name else 1.0
        torch.testing.assert_close(gradient, scale * usual[name])


def test_masked_frames_are_found_where_they_are(device):
    gathered = gather_masked_frames([[1, 3], [0], [0, 1, 2]], 5, [7, 8, 9])
    assert gathered.span_mask.tolist() == [
        [False, True, False, True, False],
        [True, False, False, False, False],
        [True, True, True, False, False],
    ]
    assert gathered.frames.tolist() == [1, 3, 5, 10, 11, 12]
    assert gathered.padded_index.tolist() == [0, 1, 3, 6, 7, 8]
    assert gathered.counts.tolist() == [2, 0, 3]  # one has no negatives
    assert gathered.seeds.tolist() == [7, 8, 9]
    assert gathered.widest == 3


def test_the_conformer_runs_while_code_usage_is_summed(device, monkeypatch):
    calls = []

    def all_reduce(tensor, async_op):
        calls.append("start" if async_op else "blocks")
        return SimpleNamespace(wait=lambda: calls.append("wait"))

    model = make_model(device)
    for layer in model.encoder.conformer.layers:
        layer.register_forward_hook(lambda *_: calls.append("layer"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    run(model, make_utterances(device))
    assert calls == ["start", "layer", "layer", "wait"]
    calls.clear()
    run(model.eval(), make_utterances(device))
    assert calls == ["layer", "layer"]


def test_masked_frames_are_hidden_from_their_context(device):
    # The target sees the frame itself, the context must not.
    model = make_model(device)
    latents = torch.randn(1, 9, 6, dtype=torch.float64, device=device)
    span_mask = torch.zeros(1, 9, dtype=torch.bool, device=device)
    span_mask[0, 2:5] = True
    nothing = torch.zeros_like(span_mask)
    first = model.encoder.contextualise(latents, nothing, span_mask=span_mask)
    latents[span_mask] += 1
    second = model.encoder.contextualise(latents, nothing, span_mask=span_mask)
    assert torch.equal(first.output, second.output)


def test_layer_drop_follows_its_seed(device):
    model = make_model(device)
    model.encoder.conformer.layer_drop = 0.5
    utterances = make_utterances(device)
    losses = [
        run(model, utterances, layer_drop_seed=seed)[0].loss.item()
        for seed in range(8)
    ]
    again = run(model, utterances, layer_drop_seed=3)[0].loss.item()
    assert again == losses[3]
    assert 1 < len(set(losses)) <= 4  # two layers, dropped or not


@pytest.mark.parametrize("width", [32, 64])
def test_negatives_cost_an_index_and_a_logit_each(width, device):
    """No (K, N, width) tensor of negatives is kept for backward."""
    masked = gather_masked_frames([range(5, 45)], 51, [1])
    masked = on_device(masked, device)
    wav, ones = torch.randn(1, 16_000, device=device), torch.ones(1).to(device)

    def kept(num_negatives):
        model = Wav2Vec2Pretraining(
            make_model(device).encoder,
            num_codes=16,
            num_negatives=num_negatives,
            target_dim=width,
        )
        model = model.double().to(device)
        return reference.num_bytes(
            reference.saved_for_backward(
                lambda: model(wav, ones, masked, temperature=1.0).loss
            )
        )

    # int64 index, float64 logit, bool for those that equal the positive.
    assert kept(60) - kept(20) == 40 * 40 * (8 + 8 + 1)


@pytest.mark.parametrize("train", [True, False])
def test_the_whole_forward_is_one_graph(train, device):
    """Nothing in it needs Python between two kernels."""
    model = make_model(device, front_end_gradient=0.1).train(train)
    wavs = torch.randn(2, 16_000, device=device)
    masked = gather_masked_frames([range(5, 45), range(3, 9)], 51, [1, 2])
    explained = torch._dynamo.explain(model)(
        wavs,
        torch.tensor([1.0, 0.5], device=device),
        on_device(masked, device),
        temperature=1.0,
    )
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1
