"""The quantiser: SpeechBrain's numbers without SpeechBrain's tensors."""

import pytest
import torch
from speechbrain.nnet.quantisers import GumbelVectorQuantizer

from summarymixing.nnet.losses import diversity_loss
from summarymixing.nnet.quantiser import (
    GumbelQuantiser,
    gumbel_noise,
    perplexity,
    temperature_at,
)
from summarymixing.nnet.randomness import splitmix64
from tests import reference

INPUT_DIM, GROUPS, CODES, TARGET_DIM = 6, 2, 5, 8


def make_quantiser(device):
    quantiser = GumbelQuantiser(INPUT_DIM, GROUPS, CODES, TARGET_DIM)
    torch.nn.init.normal_(quantiser.to_logits.bias)
    return quantiser.double().to(device)


def make_stock(quantiser, device):
    """SpeechBrain's quantiser with the same codes and logits."""
    stock = GumbelVectorQuantizer(
        INPUT_DIM, CODES, (2.0, 0.25, 0.999995), GROUPS, TARGET_DIM
    )
    stock = stock.double().to(device)
    stock.weight_proj.load_state_dict(quantiser.to_logits.state_dict())
    stock.vars.data.copy_(quantiser.codebook.data.flatten(0, 1)[None])
    return stock


def draw_noise(num_frames, device, codes=CODES):
    keys = splitmix64(torch.tensor(1, device=device), num_frames)
    return gumbel_noise(keys, GROUPS, codes)


def frames(count, device):
    return torch.randn(count, INPUT_DIM, dtype=torch.float64, device=device)


def test_evaluation_agrees_with_speechbrain(device):
    quantiser = make_quantiser(device).eval()
    stock = make_stock(quantiser, device).eval()
    x = frames(40, device)
    ours, theirs = quantiser(x), stock(x[None])
    torch.testing.assert_close(ours.targets, quantiser.project(theirs["x"][0]))
    for sums, name in (
        (ours.code_counts, "code_perplexity"),
        (ours.probability_sums, "prob_perplex"),
    ):
        # SpeechBrain averages in float32.
        torch.testing.assert_close(
            perplexity(sums).float(), theirs[name].float(), rtol=1e-5, atol=0
        )


def test_diversity_is_speechbrains_formula(device):
    quantiser = make_quantiser(device)
    x = frames(40, device)
    theirs = make_stock(quantiser, device)(x[None])
    stock = (theirs["num_vars"] - theirs["prob_perplex"]) / theirs["num_vars"]
    ours = diversity_loss(quantiser(x).probability_sums)
    torch.testing.assert_close(ours.float(), stock.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [2.0, 0.25])
def test_training_is_the_explicit_sum_over_codes(temperature, device):
    quantiser = make_quantiser(device)
    noise = draw_noise(7, device).double()
    actual, expected = (
        reference.values_and_gradients(function, x, quantiser.parameters())
        for x in [frames(7, device)]
        for function in (
            lambda x: (
                quantiser(x, gumbel=noise, temperature=temperature).targets
            ),
            lambda x: reference.quantise(quantiser, x, noise, temperature),
        )
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def test_training_agrees_with_speechbrain_for_the_same_noise(device):
    quantiser = make_quantiser(device)
    stock = make_stock(quantiser, device)
    x = frames(30, device)
    torch.manual_seed(3)
    theirs = stock(x[None])["x"][0]
    # What F.gumbel_softmax drew: one float32 exponential for each logit.
    torch.manual_seed(3)
    noise = -torch.empty(30, GROUPS, CODES, device=device).exponential_().log()
    ours = quantiser(x, gumbel=noise, temperature=2.0).targets
    torch.testing.assert_close(
        ours, quantiser.project(theirs), rtol=1e-5, atol=1e-5
    )


def test_in_evaluation_logits_get_no_gradient(device):
    quantiser = make_quantiser(device)
    _, of_input, *of_parameters = reference.values_and_gradients(
        lambda x: quantiser(x).targets,
        frames(9, device),
        quantiser.parameters(),
    )
    names = [name for name, _ in quantiser.named_parameters()]
    touched = {
        name
        for name, gradient in zip(names, of_parameters, strict=True)
        if gradient.any()
    }
    assert touched == {"codebook", "project.weight", "project.bias"}
    assert not of_input.any()


@pytest.mark.parametrize("train", [False, True])
def test_ids_are_equal_exactly_where_targets_are(train, device):
    quantiser = make_quantiser(device)
    noise = None
    if train:
        noise = draw_noise(60, device)
    out = quantiser(frames(60, device), gumbel=noise)
    same_ids = out.code_ids[:, None] == out.code_ids[None]
    same_targets = torch.isclose(
        out.targets[:, None], out.targets[None], atol=1e-9, rtol=0
    ).all(-1)
    assert torch.equal(same_ids, same_targets)
    assert not same_ids.all()


def test_statistics_are_of_the_choice_without_noise(device):
    quantiser = make_quantiser(device)
    x = frames(25, device)
    noise = 100 * draw_noise(25, device)
    noisy, quiet = quantiser(x, gumbel=noise), quantiser(x)
    assert not torch.equal(noisy.code_ids, quiet.code_ids)
    torch.testing.assert_close(noisy.code_counts, quiet.code_counts)
    torch.testing.assert_close(noisy.probability_sums, quiet.probability_sums)
    assert noisy.code_counts.sum(dim=1).tolist() == [25, 25]
    torch.testing.assert_close(
        noisy.probability_sums.sum(dim=1),
        torch.full((GROUPS,), 25.0, device=device).double(),
    )


def test_statistics_add_up_over_batches(device):
    quantiser = make_quantiser(device)
    x = frames(25, device)
    whole, first, rest = quantiser(x), quantiser(x[:9]), quantiser(x[9:])
    for name in ("probability_sums", "code_counts"):
        torch.testing.assert_close(
            getattr(whole, name), getattr(first, name) + getattr(rest, name)
        )


def test_no_tensor_of_frames_by_codes_by_width_is_kept(device):
    num_frames, codes, width = 50, 32, 16
    quantiser = GumbelQuantiser(8, 2, codes, width).to(device)
    noise = draw_noise(num_frames, device, codes)
    x = torch.randn(num_frames, 8, device=device, requires_grad=True)
    saved = reference.saved_for_backward(lambda: quantiser(x, gumbel=noise))
    # The widest are distributions over the codes; the usual formulation
    # keeps num_frames x 2 x codes x width / 2 values.
    assert max(tensor.numel() for tensor in saved) == num_frames * 2 * codes


def test_runs_in_float32_under_autocast(device):
    quantiser = GumbelQuantiser(8, 2, 4, 6).to(device)
    x = torch.randn(5, 8, device=device).bfloat16()
    expected = quantiser(x.float())
    with torch.autocast(device.type, torch.bfloat16):
        actual = quantiser(x)
    assert actual.targets.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_gumbel_noise_has_its_mean_and_variance(device):
    noise = draw_noise(20_000, device, codes=5)
    assert noise.shape == (20_000, 2, 5)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.03)


def test_perplexity_counts_codes_in_use():
    counts = torch.tensor([[4, 4, 0, 0], [9, 0, 0, 0]])
    assert perplexity(counts).item() == pytest.approx(3.0, rel=1e-4)
    assert perplexity(1000 * counts).item() == pytest.approx(3.0, rel=1e-4)


def test_temperature_agrees_with_speechbrain():
    stock = GumbelVectorQuantizer(2, 2, (2.0, 0.25, 0.999995), 1, 2)
    for update in (0, 1, 100_000, 415_888, 500_000):
        stock.update_temp(update)
        assert temperature_at(update) == stock.curr_temp


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="target_dim .7. must be a multiple"):
        GumbelQuantiser(8, num_groups=2, num_codes=4, target_dim=7)
