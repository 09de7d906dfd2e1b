"""The contrastive loss: the stock numbers at a fraction of the memory."""

import pytest
import torch
from speechbrain.nnet.losses import ContrastiveLoss
from torch.utils._python_dispatch import TorchDispatchMode

from summarymixing.nnet.losses import (
    contrastive_loss,
    diversity_loss,
    draw_negatives,
)
from summarymixing.nnet.masking import padding_mask_from_lengths
from summarymixing.nnet.randomness import splitmix64
from tests import reference

TEMPERATURE = 0.1


def make_batch(counts, device, num_ids=4, negatives=7, width=6):
    """Context, targets that repeat, their ids, negatives, padding mask."""
    batch, widest = len(counts), max(counts)
    ids = torch.randint(num_ids, (batch, widest), device=device)
    codes = torch.randn(num_ids, width, dtype=torch.float64, device=device)
    context = torch.randn(
        batch, widest, width, dtype=torch.float64, device=device
    )
    lengths = torch.tensor(counts, device=device)
    keys = splitmix64(torch.arange(batch, device=device), widest)
    drawn = draw_negatives(keys, lengths, negatives)
    mask = padding_mask_from_lengths(lengths, widest)
    return context, codes[ids], ids, drawn, mask


def loss_and_gradients(function, context, targets):
    context = context.detach().requires_grad_()
    targets = targets.detach().requires_grad_()
    loss = function(context, targets)
    return loss.detach(), *torch.autograd.grad(loss, [context, targets])


def stock_negatives(targets, negatives):
    """SpeechBrain's form of negatives: (K, B, M, C)."""
    batch = torch.arange(len(targets), device=targets.device)[:, None, None]
    return targets[batch, negatives].permute(2, 0, 1, 3)


@pytest.mark.parametrize("num_ids", [1, 2, 4, 1000])
def test_value_gradient_and_accuracy_agree_with_speechbrain(num_ids, device):
    context, targets, ids, negatives, mask = make_batch(
        [9, 9], device, num_ids=num_ids
    )

    def ours(context, targets):
        return contrastive_loss(
            context, targets, ids, negatives, padding_mask=mask
        )

    def theirs(context, targets):
        return ContrastiveLoss(TEMPERATURE)(
            context, targets, stock_negatives(targets, negatives)
        )

    # SpeechBrain computes similarities in float32.
    torch.testing.assert_close(
        loss_and_gradients(lambda c, t: ours(c, t).loss, context, targets),
        loss_and_gradients(lambda c, t: theirs(c, t)[0], context, targets),
        rtol=1e-4,
        atol=1e-5,
    )
    _, accuracy = theirs(context, targets)
    assert ours(context, targets).correct / 18 == accuracy


@pytest.mark.parametrize("num_ids", [2, 1000])
@pytest.mark.parametrize("counts", [[5, 5], [2, 9, 4]])
def test_value_gradient_and_accuracy_are_those_of_equation_3(
    counts, num_ids, device
):
    context, targets, ids, negatives, mask = make_batch(
        counts, device, num_ids=num_ids
    )
    actual, expected = (
        loss_and_gradients(function, context, targets)
        for function in (
            lambda c, t: (
                contrastive_loss(
                    c, t, ids, negatives, padding_mask=mask, temperature=0.2
                ).loss
            ),
            lambda c, t: reference.contrastive_loss(
                c, t, ids, negatives, counts, 0.2
            )[0],
        )
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    out = contrastive_loss(context, targets, ids, negatives, padding_mask=mask)
    _, correct = reference.contrastive_loss(
        context, targets, ids, negatives, counts, TEMPERATURE
    )
    assert out.correct == correct


@pytest.mark.parametrize("garbage", [0.0, 1e3])
def test_what_stands_in_padding_never_counts(garbage, device):
    counts = [9, 3]
    context, targets, ids, negatives, mask = make_batch(counts, device)
    alone = [
        contrastive_loss(
            context[b : b + 1, :n],
            targets[b : b + 1, :n],
            ids[b : b + 1, :n],
            negatives[b : b + 1, :n],
            padding_mask=mask[b : b + 1, :n],
        )
        for b, n in enumerate(counts)
    ]
    context[mask] = targets[mask] = garbage
    context.requires_grad_()
    targets.requires_grad_()
    joint = contrastive_loss(
        context, targets, ids, negatives, padding_mask=mask
    )
    for name, value in joint._asdict().items():
        torch.testing.assert_close(
            value, getattr(alone[0], name) + getattr(alone[1], name)
        )
    for gradient in torch.autograd.grad(joint.loss, [context, targets]):
        assert gradient.isfinite().all()
        assert not gradient[mask].any()


def test_excluded_negatives_and_chance_are_counted(device):
    ids = torch.tensor([[0, 0, 1, 2]], device=device)
    negatives = torch.tensor([[[1, 1], [2, 0], [0, 3], [0, 1]]], device=device)
    x = torch.randn(1, 4, 3, device=device)
    mask = torch.tensor([[False, False, False, True]], device=device)
    out = contrastive_loss(x, x, ids, negatives, padding_mask=mask)
    assert out.excluded == 3  # both of frame 0, one of frame 1
    assert out.chance.item() == pytest.approx(1 + 1 / 2 + 1 / 3)


def test_a_frame_without_remaining_negatives_costs_nothing(device):
    context, targets, _, negatives, mask = make_batch([6], device)
    same = torch.zeros(1, 6, dtype=torch.int64, device=device)
    out = contrastive_loss(context, targets, same, negatives, padding_mask=mask)
    assert out.loss == 0
    assert out.correct == out.chance == 6
    assert out.excluded == negatives.numel()


def test_zero_vectors_give_finite_gradients(device):
    zeros = torch.zeros(1, 4, 3, device=device, requires_grad=True)
    _, _, ids, negatives, mask = make_batch([4], device)
    out = contrastive_loss(zeros, zeros, ids, negatives, padding_mask=mask)
    (gradient,) = torch.autograd.grad(out.loss, zeros)
    assert gradient.isfinite().all()


def test_a_tie_is_not_correct(device):
    context, targets, _, negatives, mask = make_batch([6], device)
    different = torch.arange(6, device=device)[None]
    out = contrastive_loss(
        torch.zeros_like(context),
        targets,
        different,
        negatives,
        padding_mask=mask,
    )
    assert out.correct == 0


def test_runs_in_float32_under_autocast(device):
    context, targets, ids, negatives, mask = make_batch([20], device)
    context, targets = context.bfloat16(), targets.float()
    expected = contrastive_loss(
        context.float(), targets, ids, negatives, padding_mask=mask
    )
    with torch.autocast(device.type, torch.bfloat16):
        actual = contrastive_loss(
            context, targets, ids, negatives, padding_mask=mask
        )
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_saves_far_less_than_the_stock_loss(device):
    batch, masked, num_negatives, width = 2, 60, 100, 256
    context, targets, ids, negatives, mask = make_batch(
        [masked] * batch, device, 1000, num_negatives, width
    )
    context, targets = context.float(), targets.float()
    context.requires_grad_()
    targets.requires_grad_()
    ours = reference.num_bytes(
        reference.saved_for_backward(
            lambda: contrastive_loss(
                context, targets, ids, negatives, padding_mask=mask
            )
        )
    )
    stock = reference.num_bytes(
        reference.saved_for_backward(
            lambda: ContrastiveLoss(TEMPERATURE)(
                context, targets, stock_negatives(targets, negatives)
            )
        )
    )
    floats = (
        4 * width  # context, targets, both normalised
        + masked  # similarities of one frame to all of its utterance
        + num_negatives
        + 1  # logits
        + 5  # two norms, two limited norms, the logarithm of the partition
    )
    # Also an int64 index and a bool for each negative, a bool of padding.
    per_frame = 4 * floats + 9 * num_negatives + 1
    assert ours == batch * masked * per_frame  # 679 320, stock 37.7 MB
    assert stock > 50 * ours


@pytest.mark.parametrize("rows", [1, 3, 4, 8])
def test_blocks_of_rows_give_the_same(rows, device):
    context, targets, ids, negatives, mask = make_batch([9, 3], device)

    def contrast(context, targets, **options):
        return contrastive_loss(
            context, targets, ids, negatives, padding_mask=mask, **options
        )

    def in_blocks(context, targets):
        return contrast(context, targets, max_similarities=rows * 2 * 9)

    torch.testing.assert_close(
        in_blocks(context, targets), contrast(context, targets)
    )
    torch.testing.assert_close(
        loss_and_gradients(lambda *x: in_blocks(*x).loss, context, targets),
        loss_and_gradients(lambda *x: contrast(*x).loss, context, targets),
        rtol=1e-10,
        atol=1e-12,
    )


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if torch.is_tensor(result):
            self.numel = max(self.numel, result.numel())
        return result


def test_a_long_utterance_needs_no_square_of_its_length(device):
    context, targets, ids, negatives, mask = make_batch([200], device, 1000)
    context.requires_grad_()
    targets.requires_grad_()

    def largest(limit):
        with Largest() as made:
            contrastive_loss(
                context,
                targets,
                ids,
                negatives,
                padding_mask=mask,
                max_similarities=limit,
            ).loss.backward()
        return made.numel

    assert largest(200 * 200) == 200 * 200
    # Blocks of 20 rows, forward and backward; the next is (K + 1) M.
    assert largest(20 * 200) == 20 * 200


def test_summands_of_a_gradient_are_equal_where_a_gpu_has_no_order(device):
    """A negative that is drawn twice gets the same gradient twice."""
    context, targets, ids, negatives, mask = make_batch(
        [9, 4], device, 1000, negatives=30
    )
    scattered = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if "scatter_add" in str(operation):
                scattered.append(args[2:4])
            return operation(*args, **(kwargs or {}))

    context.requires_grad_()
    with Record():
        contrastive_loss(
            context, targets, ids, negatives, padding_mask=mask
        ).loss.backward()
    ((index, summands),) = scattered
    for places, values in zip(
        index.flatten(0, 1), summands.flatten(0, 1), strict=True
    ):
        for place in places.unique():
            assert len(values[places == place].unique()) == 1


@pytest.mark.parametrize("num_masked", [2, 3, 50])
def test_negatives_are_the_other_frames_of_the_utterance(num_masked, device):
    counts = torch.tensor([num_masked, 0, 51], device=device)
    keys = splitmix64(counts, 51)
    drawn = draw_negatives(keys, counts, 200)
    assert drawn.shape == (3, 51, 200)
    assert drawn.dtype == torch.int64
    assert drawn.min() == 0 and drawn.max() == 50
    own = torch.arange(51, device=device)[:, None]
    valid = drawn[0, :num_masked]
    assert valid.max() < num_masked
    assert not (valid == own[:num_masked]).any()
    assert not (drawn[2] == own).any()
    alone = draw_negatives(keys[:1, :num_masked], counts[:1], 200)
    assert torch.equal(alone[0], valid)


def test_negatives_are_uniform(device):
    num_masked, repeats = 11, 4000
    counts = torch.tensor([num_masked], device=device)
    (drawn,) = draw_negatives(splitmix64(counts, 11), counts, repeats)
    counts = torch.stack([row.bincount(minlength=num_masked) for row in drawn])
    others = ~torch.eye(num_masked, dtype=torch.bool, device=device)
    expected = repeats / (num_masked - 1)
    chi_square = ((counts[others] - expected) ** 2 / expected).sum().item()
    # 11 rows with 9 degrees of freedom each: mean 99, deviation 14.
    assert 99 - 4 * 14 < chi_square < 99 + 4 * 14


def test_diversity_is_the_unused_share_of_the_codebook():
    even, one = torch.ones(2, 8), torch.eye(8)[:2]
    assert diversity_loss(even).item() == pytest.approx(0, abs=1e-5)
    assert diversity_loss(one).item() == pytest.approx(7 / 8, abs=1e-5)
    # Sums and averages have the same diversity.
    torch.testing.assert_close(
        diversity_loss(torch.arange(1.0, 17).view(2, 8)),
        diversity_loss(100 * torch.arange(1.0, 17).view(2, 8)),
    )
