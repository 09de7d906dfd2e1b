"""Heads of the probes: sizes of MP3S, padding, and nothing in between."""

import pytest
import torch
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.lobes.models.Xvector import Xvector
from torch.nn.utils.rnn import pad_sequence

from summarymixing.errors import UserError
from summarymixing.lobes.heads import (
    ContextNetHead,
    EcapaHead,
    HiddenLayerHead,
    LSTMHead,
    LSTMPoolingHead,
    MeanAndDeviation,
    PoolingHead,
    UtteranceOutput,
    XvectorHead,
    relative_lengths,
)
from summarymixing.lobes.probes import Probe

SMALL_TDNN = {"channels": [16, 16, 16, 16, 48]}
SMALL = {
    "lstm": lambda d, n: LSTMHead(d, n, hidden_size=4),
    "packed": lambda d, n: LSTMHead(d, n, hidden_size=4, packed=True),
    "contextnet": lambda d, n: ContextNetHead(
        d, n, num_blocks=2, channels=[16, 16], out_channels=16
    ),
    "hidden": lambda d, n: HiddenLayerHead(d, n, hidden_size=4),
    "pooling": PoolingHead,
    "lstm pooling": lambda d, n: LSTMPoolingHead(d, n, packed=True),
    "ecapa": lambda d, n: EcapaHead(d, n, **SMALL_TDNN),
    "xvector": lambda d, n: XvectorHead(d, n, **SMALL_TDNN),
}
# What depends on the number of padded frames in MP3S, too: convolutions whose
# biases fill the padding, and the backward LSTM that starts there.
SEES_PADDING = ("lstm", "contextnet", "ecapa", "xvector")


def count(module):
    return sum(p.numel() for p in module.parameters())


def flat(output):
    return output if torch.is_tensor(output) else torch.cat(output, dim=1)


@pytest.mark.parametrize(
    ("part", "millions"),
    [
        (lambda: LSTMHead(768, 30).lstm, 39.88),
        (lambda: ContextNetHead(768, 30).context_net, 32.41),
        (lambda: HiddenLayerHead(768, 100).hidden, 0.79),
        (lambda: HiddenLayerHead(768, 100).linear, 0.10),
        (lambda: LSTMPoolingHead(768, 18).lstm, 23.62),
        (lambda: LSTMPoolingHead(768, 18).linear, 1.18),
        (lambda: EcapaHead(768, 4).network, 7.27),
        (lambda: EcapaHead(768, 1211, embedding_size=512).network, 8.55),
        (lambda: EcapaHead(768, 1211, embedding_size=512).classifier, 0.62),
        (lambda: XvectorHead(768, 1211).network, 6.12),
        (lambda: XvectorHead(768, 1211).classifier, 0.89),
    ],
)
def test_sizes_are_those_of_mp3s(part, millions):
    assert round(count(part()) / 1e6, 2) == millions


def test_linear_heads_have_no_bias():
    assert count(PoolingHead(768, 18)) == 768 * 18


@pytest.mark.parametrize("name", SMALL)
def test_garbage_in_padding_changes_nothing(name):
    """The probe clears it; values and gradients stay the same."""
    results = []
    for garbage in (0.0, 7.0, 1e4):
        torch.manual_seed(0)
        probe = Probe(2, SMALL[name](6, 5))
        states = [torch.randn(2, 9, 6) for _ in range(2)]
        padding_mask = torch.arange(9) >= torch.tensor([[9], [4]])
        states = [
            state.masked_fill(padding_mask.unsqueeze(-1), garbage)
            for state in states
        ]
        torch.manual_seed(1)
        output = flat(probe(states, padding_mask))
        if output.dim() == 3:
            output = output[~padding_mask]
        output.square().sum().backward()
        gradients = [p.grad for p in probe.parameters() if p.grad is not None]
        results.append([output.detach(), *gradients])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(SMALL) - set(SEES_PADDING)))
def test_alone_or_in_a_batch(name):
    torch.manual_seed(0)
    head = SMALL[name](6, 5).eval()
    utterances = [torch.randn(9, 6), torch.randn(4, 6), torch.randn(1, 6)]
    lengths = torch.tensor([9, 4, 1])
    padding_mask = torch.arange(9) >= lengths.unsqueeze(1)
    together = head(pad_sequence(utterances, batch_first=True), padding_mask)
    for i, utterance in enumerate(utterances):
        alone = head(utterance.unsqueeze(0), torch.zeros(1, len(utterance)) > 0)
        ours = flat(together)[i : i + 1]
        if ours.dim() == 3:
            ours = ours[:, : len(utterance)]
        torch.testing.assert_close(ours, flat(alone))


@pytest.mark.parametrize("name", ["ecapa", "xvector", "pooling"])
def test_evaluation_repeats_itself(name):
    """SpeechBrain's pooling adds noise."""
    torch.manual_seed(0)
    head = SMALL[name](6, 5).eval()
    features, padding_mask = torch.randn(2, 9, 6), torch.zeros(2, 9) > 0
    first, second = head(features, padding_mask), head(features, padding_mask)
    assert isinstance(first, UtteranceOutput)
    assert torch.equal(flat(first), flat(second))


def test_xvector_is_speechbrains_without_noise():
    torch.manual_seed(0)
    head = XvectorHead(6, 5, **SMALL_TDNN).eval()
    stock = Xvector(
        in_channels=6,
        tdnn_channels=SMALL_TDNN["channels"],
        lin_neurons=512,
    ).eval()
    stock.load_state_dict(head.network.state_dict())
    features = torch.randn(2, 9, 6)
    noisy = stock(features, torch.ones(2)).squeeze(1)
    ours = head(features, torch.zeros(2, 9) > 0).embeddings
    torch.testing.assert_close(ours, noisy, atol=1e-3, rtol=0)
    assert not torch.equal(ours, noisy)


def test_mean_and_deviation_against_torch():
    torch.manual_seed(0)
    x = torch.randn(3, 7, 4)
    lengths = torch.tensor([7, 3, 1])
    pooled = MeanAndDeviation()(x, lengths / 7)
    for i, length in enumerate(lengths.tolist()):
        frames = x[i, :length]
        deviation = frames.std(dim=0) if length > 1 else torch.full((4,), 1e-5)
        expected = torch.cat([frames.mean(dim=0), deviation + 1e-5])
        torch.testing.assert_close(pooled[i, 0], expected)


def test_speechbrain_takes_as_many_frames_as_are_valid():
    """A share times T may round up to one frame of the padding."""
    for width in range(1, 130):
        counts = torch.arange(width + 1)
        mask = torch.arange(width) >= counts.unsqueeze(1)
        shares = relative_lengths(mask)
        for product in (shares * width, shares / (1 / width)):
            taken = length_to_mask(product, max_len=width).sum(dim=1)
            assert torch.equal(taken.long(), counts)


def test_deviation_of_equal_frames_has_a_gradient():
    x = torch.ones(1, 5, 2, requires_grad=True)
    MeanAndDeviation()(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_only_the_weighted_sum_stands_before_a_head(name):
    """Values and gradients through the probe, and of the head fed directly."""

    def make():
        torch.manual_seed(1)
        return SMALL[name](6, 5)

    def values_and_gradients(forward, head):
        torch.manual_seed(2)  # of dropout
        output = flat(forward())
        return output, *torch.autograd.grad(
            output.square().mean(), head.parameters(), allow_unused=True
        )

    torch.manual_seed(0)
    states = [torch.randn(2, 9, 6) for _ in range(2)]
    padding_mask = torch.zeros(2, 9) > 0
    probe, head = Probe(2, make()), make()
    mixture = (states[0] + states[1]) / 2  # equal weights at the start
    torch.testing.assert_close(
        values_and_gradients(lambda: probe(states, padding_mask), probe.head),
        values_and_gradients(lambda: head(mixture, padding_mask), head),
    )


@pytest.mark.parametrize("name", ["ecapa", "xvector"])
def test_batch_norm_needs_two_utterances(name):
    head = SMALL[name](6, 5)
    with pytest.raises(UserError, match="smallest_batch"):
        head(torch.randn(1, 9, 6), torch.zeros(1, 9) > 0)
