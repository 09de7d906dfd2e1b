"""The promises of a mixer (summarymixing/nnet/mixer.py), for all of them.

A new mixer adds one line to `MIXERS`.
"""

import math
from functools import partial

import pytest
import torch

from summarymixing import MultiHeadAttention, SummaryMixing
from summarymixing.errors import UserError
from summarymixing.nnet.attention import (
    RelativePositionAttention,
    RotaryAttention,
)
from summarymixing.nnet.masking import padding_mask_from_lengths
from summarymixing.nnet.mixer import (
    BlockwiseMixer,
    describe_mixer,
    mixer_from_description,
)
from tests import reference

D_MODEL = 8
ATTENTION = (MultiHeadAttention, RotaryAttention, RelativePositionAttention)
MIXERS = {
    "summary": partial(SummaryMixing, num_heads=2),
    "lite": partial(SummaryMixing, num_heads=2, mode="lite"),
    "attention": partial(MultiHeadAttention, num_heads=2),
    "rotary": partial(RotaryAttention, num_heads=2),
    "relative": partial(RelativePositionAttention, num_heads=2),
}
every_mixer = pytest.mark.parametrize("factory", MIXERS.values(), ids=MIXERS)


def make_mixer(factory, device, **keywords):
    """Biases start at zero, where one that is added twice would not show."""
    # In float32: SpeechBrain's relative positions exist in no other type.
    mixer = factory(D_MODEL, **keywords).to(device)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer


def frames(*shape, device):
    return torch.randn(*shape, D_MODEL, device=device)


@every_mixer
@pytest.mark.parametrize("garbage", [1e3, math.nan, math.inf])
@pytest.mark.parametrize("num_padding_frames", [1, 7, 63])
def test_padding_changes_no_frame_and_no_gradient(
    num_padding_frames, garbage, factory, device
):
    mixer = make_mixer(factory, device)
    x = frames(1, 20, device=device)
    mask = torch.arange(20 + num_padding_frames, device=device)[None] >= 20

    def padded(x):
        noise = x.new_full((1, num_padding_frames, D_MODEL), garbage)
        mixed = mixer(torch.cat([x, noise], dim=1), mask)
        assert (mixed[:, 20:] == 0).all()
        return mixed[:, :20]

    alone = reference.values_and_gradients(
        lambda x: mixer(x, None), x, mixer.parameters()
    )
    actual = reference.values_and_gradients(padded, x, mixer.parameters())
    torch.testing.assert_close(actual, alone, rtol=1e-4, atol=1e-4)


@every_mixer
@pytest.mark.parametrize("lengths", [[1], [1, 1], [3, 1], [7, 5], [64, 33]])
def test_an_utterance_is_mixed_as_if_it_were_alone(lengths, factory, device):
    mixer = make_mixer(factory, device)
    x = frames(len(lengths), max(lengths), device=device)
    of_batch = torch.tensor(lengths, device=device)
    mixed = mixer(x, padding_mask_from_lengths(of_batch, max(lengths)))
    assert isinstance(mixed, torch.Tensor) and mixed.shape == x.shape
    for b, length in enumerate(lengths):
        alone = mixer(x[b : b + 1, :length], None)
        torch.testing.assert_close(
            mixed[b : b + 1, :length], alone, rtol=1e-4, atol=1e-5
        )
        assert (mixed[b, length:] == 0).all()


@every_mixer
def test_an_utterance_of_padding_gives_zeros_and_finite_gradients(
    factory, device
):
    mixer = make_mixer(factory, device)
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
def test_input_and_every_parameter_get_a_gradient(factory, device):
    mixer = make_mixer(factory, device)
    _, *gradients = reference.values_and_gradients(
        lambda x: mixer(x, None),
        frames(2, 6, device=device),
        mixer.parameters(),
    )
    assert all(gradient.any() for gradient in gradients)


@every_mixer
def test_bf16_is_close_to_float32(factory, device):
    mixer = make_mixer(factory, device)
    x = frames(2, 50, device=device)
    mask = padding_mask_from_lengths(torch.tensor([50, 31], device=device), 50)
    with torch.autocast(device.type, torch.bfloat16):
        actual = mixer(x, mask)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(
        actual.float(), mixer(x, mask), rtol=0.05, atol=0.05
    )


@every_mixer
def test_dropout_acts_in_training_alone(factory, device):
    mixer = make_mixer(factory, device, dropout=0.5)
    plain = factory(D_MODEL).to(device)
    plain.load_state_dict(mixer.state_dict())
    x = frames(1, 20, device=device)
    assert not torch.equal(mixer(x, None), mixer(x, None))
    torch.testing.assert_close(mixer.eval()(x, None), plain.eval()(x, None))


@every_mixer
@pytest.mark.parametrize("padding", [0, 4])
def test_blocks_with_one_summary_are_the_whole(padding, factory, device):
    mixer = make_mixer(factory, device)
    if not isinstance(mixer, BlockwiseMixer):
        assert isinstance(mixer, ATTENTION)
        return
    x = frames(2, 23, device=device)
    mask = torch.zeros(2, 23, dtype=torch.bool, device=device)
    if padding:
        mask[1, -padding:] = True
        x[mask] = math.nan
    blocks = [slice(0, 10), slice(10, 11), slice(11, 23)]
    sums = sum(mixer.summarise(x[:, b], mask[:, b]) for b in blocks)
    summary = sums / (~mask).sum(1, keepdim=True)
    mixed = [mixer.combine(x[:, b], summary, mask[:, b]) for b in blocks]
    torch.testing.assert_close(torch.cat(mixed, 1), mixer(x, mask))


@every_mixer
def test_its_description_builds_it_again(factory):
    description = describe_mixer(factory)
    again = mixer_from_description(description)
    assert describe_mixer(again) == description
    shapes = [
        {name: p.shape for name, p in made(16).named_parameters()}
        for made in (again, factory)
    ]
    assert shapes[0] == shapes[1]


def test_the_outer_of_nested_factories_wins():
    inner = partial(SummaryMixing, num_heads=2, mode="lite")
    assert describe_mixer(partial(inner, num_heads=4)) == {
        "class": "summarymixing.nnet.summary_mixing.SummaryMixing",
        "num_heads": 4,
        "mode": "lite",
    }


class OutsideMixer(torch.nn.Linear):
    """Stands for one of another package."""

    def __init__(self, d_model):
        super().__init__(d_model, d_model)


def make_outside_mixer(d_model):
    return OutsideMixer(d_model)


def make_local_class():
    class Local(OutsideMixer):
        pass

    return Local


@pytest.mark.parametrize(
    "factory, message",
    [
        (lambda d_model: OutsideMixer(d_model), "top level of a file"),
        (make_outside_mixer, "top level of a file"),
        (make_local_class(), "top level of a file"),
        (partial(make_local_class(), num_heads=2), "top level of a file"),
        (type("Script", (OutsideMixer,), {"__module__": "__main__"}), "file"),
        (dict, "torch.nn.Module"),
        (partial(SummaryMixing, 8), "as keywords"),
        (partial(SummaryMixing, num_heads={1}), "as JSON"),
        (partial(SummaryMixing, num_heads=(1, 2)), "as JSON"),
        (partial(SummaryMixing, mode={(1, 2): 3}), "as JSON"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused(factory, message):
    with pytest.raises(UserError, match=message):
        describe_mixer(factory)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.nn.Linear",
        f"{__name__}.OutsideMixer",
        "summarymixing.nnet.summary_mixing.head_width",  # no class
        "summarymixing.nnet.summary_mixing.torch",
        "summarymixing.nnet.attention.Nothing",
        "summarymixing.nnet.of_a_newer_version.Mixer",  # no such module
        "summarymixing.nnet.summary_mixing.SummaryMixing.forward",
        "summarymixing.nnet_other.SummaryMixing",
        "summarymixing.nnet.",
        "SummaryMixing",
        "",
        3,
        None,
    ],
)
def test_a_name_alone_finds_classes_of_this_package_only(name):
    with pytest.raises(
        (UserError, ValueError), match="is not a mixer of this package"
    ):
        mixer_from_description({"class": name, "num_heads": 2})


@pytest.mark.parametrize(
    "name", ["os.x`; rm -r ~; `", "os\nimport os.X", "a.\x1b[2J", "a..b"]
)
def test_no_code_to_paste_comes_from_a_file(name):
    with pytest.raises(ValueError, match="is not a mixer") as caught:
        mixer_from_description({"class": name})
    assert "import" not in str(caught.value).replace(repr(name), "")
    assert str(caught.value).isprintable()
