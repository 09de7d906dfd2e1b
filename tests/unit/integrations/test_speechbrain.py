"""Our encoder where a SpeechBrain recipe names HuggingFace's."""

import copy
import inspect
from functools import partial

import pytest
import speechbrain as sb
import torch
import torch.nn.functional as F
from hyperpyyaml import load_hyperpyyaml
from torch import nn

from summarymixing import SummaryMixing, Wav2Vec2Encoder
from summarymixing.errors import UserError
from summarymixing.integrations.speechbrain import Wav2Vec2
from summarymixing.pretrained import save_encoder

WAVS = torch.rand(2, 8_000) - 0.5
WAV_LENS = torch.tensor([1.0, 0.5])

# As in the recipes of SpeechBrain, but for the line of `wav2vec2`.
RECIPE = """
wav2vec2: !new:summarymixing.integrations.speechbrain.Wav2Vec2
  source: {source}
  output_norm: True
  freeze: {freeze}
  save_path: results/wav2vec2_checkpoint

ctc_lin: !new:speechbrain.nnet.linear.Linear
  input_size: 8
  n_neurons: 5

log_softmax: !new:speechbrain.nnet.activations.Softmax
  apply_log: True

modules:
  wav2vec2: !ref <wav2vec2>
  ctc_lin: !ref <ctc_lin>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Wav2Vec2Encoder(
            mixer=partial(SummaryMixing, num_heads=2),
            num_layers=2,
            d_model=8,
            d_ffn=16,
            num_mels=20,
            front_end_channels=6,
            layer_drop=0.0,
        )
    return save_encoder(encoder, tmp_path_factory.mktemp("encoder"))


def states_of(folder, wavs, wav_lens):
    """Return the states (L+1, B, T, D) of the encoder, zero on padding."""
    out = Wav2Vec2Encoder.from_pretrained(folder)(wavs, wav_lens)
    states = torch.stack(out.hidden_states)
    return states.masked_fill(out.padding_mask[None, :, :, None], 0)


def test_the_arguments_are_those_of_speechbrain():
    pytest.importorskip("transformers")
    from speechbrain.integrations.huggingface import wav2vec2

    for method in ("__init__", "forward"):
        ours, theirs = (
            [
                (p.name, p.kind, p.default)
                for p in inspect.signature(
                    getattr(c, method)
                ).parameters.values()
            ]
            for c in (Wav2Vec2, wav2vec2.Wav2Vec2)
        )
        assert ours == theirs


def test_last_state_or_all_states(folder):
    lobe = Wav2Vec2(folder, None).eval()
    states = states_of(folder, WAVS, WAV_LENS)
    assert torch.equal(lobe(WAVS, WAV_LENS), states[-1])
    lobe = Wav2Vec2(folder, None, output_all_hiddens=True).eval()
    assert torch.equal(lobe(WAVS, WAV_LENS), states)


def test_without_lengths_all_is_audio(folder):
    lobe = Wav2Vec2(folder, None).eval()
    assert torch.equal(lobe(WAVS), lobe(WAVS, torch.ones(2)))


@pytest.mark.parametrize("all_hiddens", [False, True])
def test_output_norm_is_that_of_speechbrain_without_padding(
    folder, all_hiddens
):
    lobe = Wav2Vec2(
        folder, None, output_norm=True, output_all_hiddens=all_hiddens
    ).eval()
    states = states_of(folder, WAVS, torch.ones(2))
    states = states if all_hiddens else states[-1]
    expected = F.layer_norm(states, states.shape[-2:])
    torch.testing.assert_close(lobe(WAVS), expected)


def test_output_norm_does_not_depend_on_padding(folder):
    lobe = Wav2Vec2(folder, None, output_norm=True).eval()
    alone = lobe(WAVS[1:, :4_000])
    padded = lobe(WAVS, WAV_LENS)[1:]
    torch.testing.assert_close(padded[:, : alone.shape[1]], alone)
    assert not padded[:, alone.shape[1] :].any()


def test_frozen_for_ever(folder):
    lobe = Wav2Vec2(folder, None, freeze=True)
    assert not any(p.requires_grad for p in lobe.parameters())
    nn.ModuleDict({"wav2vec2": lobe}).train()
    assert lobe.training and not lobe.model.training
    out = lobe(WAVS, WAV_LENS)
    assert not out.requires_grad
    assert torch.equal(out, states_of(folder, WAVS, WAV_LENS)[-1])


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("frozen_front_end", [False, True])
def test_all_that_learns_gets_a_gradient(folder, masks, frozen_front_end):
    """Or DDP would wait for it."""
    lobe = Wav2Vec2(
        folder,
        None,
        freeze_feature_extractor=frozen_front_end,
        apply_spec_augment=masks,
    )
    assert lobe.model.training
    lobe(WAVS, WAV_LENS).square().sum().backward()
    for name, parameter in lobe.named_parameters():
        is_frozen = (frozen_front_end and "front_end" in name) or (
            not masks and "mask_embedding" in name
        )
        assert parameter.requires_grad is not is_frozen, name
        assert (parameter.grad is None) is is_frozen, name


def test_masks_are_drawn_anew_from_torchs_generator(folder, monkeypatch):
    lobe = Wav2Vec2(folder, None, apply_spec_augment=True)
    seen = []

    def look(latents, padding_mask, *, span_mask, **_):
        seen.append(span_mask)
        return Wav2Vec2Encoder.contextualise(
            lobe.model, latents, padding_mask, span_mask=span_mask
        )

    monkeypatch.setattr(lobe.model, "contextualise", look)
    wavs = torch.rand(2, 160_000)
    torch.manual_seed(0)
    for _ in range(2):
        lobe(wavs, torch.tensor([0.9, 0.5]))
    torch.manual_seed(0)
    lobe(wavs, torch.tensor([0.9, 0.5]))
    first, second, again = seen
    assert first.shape == (2, 501)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert 10 <= first[0, :451].sum() <= 40
    assert not first[0, 451:].any() and not first[1, 251:].any()
    lobe.eval()(wavs)
    assert seen[-1] is None


def test_masks_for_a_frozen_encoder_are_refused(folder):
    with pytest.raises(UserError, match="set one of them to False"):
        Wav2Vec2(folder, None, freeze=True, apply_spec_augment=True)


class CTC(sb.Brain):
    def compute_forward(self, batch, stage):
        features = self.modules.wav2vec2(*batch[:2])
        return self.hparams.log_softmax(self.modules.ctc_lin(features))

    def compute_objectives(self, predictions, batch, stage):
        return sb.nnet.losses.ctc_loss(
            predictions, batch[2], batch[1], torch.ones(2), blank_index=0
        )


@pytest.mark.parametrize("freeze", [False, True])
def test_a_recipe_with_one_other_line(folder, freeze):
    hparams = load_hyperpyyaml(RECIPE.format(source=folder, freeze=freeze))
    brain = CTC(
        modules=hparams["modules"],
        opt_class=partial(torch.optim.SGD, lr=0.1),
        hparams=hparams,
        run_opts={"device": "cpu"},
    )
    before = copy.deepcopy(brain.modules.state_dict())
    batch = (WAVS, WAV_LENS, torch.tensor([[1, 2], [3, 4]]))
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    brain.fit(range(1), loader, progressbar=False)
    changed = {
        name.split(".")[0]
        for name, value in brain.modules.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == ({"ctc_lin"} if freeze else {"ctc_lin", "wav2vec2"})
