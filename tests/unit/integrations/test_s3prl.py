"""Our encoder as an upstream of S3PRL."""

import sys
from types import ModuleType

import pytest
import torch

from summarymixing import Wav2Vec2Encoder
from summarymixing.errors import UserError
from summarymixing.integrations import s3prl as ours
from summarymixing.pretrained import save_encoder

WAVS = [torch.rand(9_000) - 0.5, torch.rand(16_000) - 0.5]


@pytest.fixture
def folder(tmp_path):
    encoder = Wav2Vec2Encoder(
        num_layers=2, d_model=8, d_ffn=16, num_mels=20, front_end_channels=6
    )
    return save_encoder(encoder, tmp_path / "encoder")


def test_states_of_a_list_of_audio(folder):
    # As run_downstream.py calls it.
    upstream = ours.UpstreamExpert(
        ckpt=str(folder), model_config=None, refresh=False
    )
    assert upstream.get_downsample_rates("hidden_states") == 320
    out = upstream.eval()(WAVS)
    assert out["last_hidden_state"] is out["hidden_states"][-1]
    encoder = Wav2Vec2Encoder.from_pretrained(folder)
    for index, wav in enumerate(WAVS):
        alone = encoder(wav[None], torch.ones(1)).hidden_states
        for state, expected in zip(out["hidden_states"], alone, strict=True):
            valid = expected.shape[1]
            torch.testing.assert_close(state[index, :valid], expected[0])
            assert not state[index, valid:].any()


def test_the_number_of_states_in_training(folder):
    upstream = ours.UpstreamExpert(str(folder)).train()
    upstream.encoder.conformer.layer_drop = 0.9
    counts = {len(upstream(WAVS)["hidden_states"]) for _ in range(5)}
    assert counts == {3}


def test_an_upstream_without_an_encoder_says_what_is_missing():
    with pytest.raises(UserError, match="-k FOLDER"):
        ours.UpstreamExpert()


def test_a_missing_s3prl_is_named(monkeypatch):
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps s3prl"):
        ours.register()


def test_registered_by_its_name(monkeypatch):
    package, hub = ModuleType("s3prl"), ModuleType("s3prl.hub")
    package.hub = hub
    monkeypatch.setitem(sys.modules, "s3prl", package)
    monkeypatch.setitem(sys.modules, "s3prl.hub", hub)
    monkeypatch.setattr(ours, "find_spec", lambda name: name)
    monkeypatch.setattr(ours, "_restore_old_names", lambda: None)
    ours.register()
    assert hub.summarymixing is ours.UpstreamExpert


def test_s3prl_finds_it(folder):
    pytest.importorskip("s3prl")
    ours.register()
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("summarymixing", path_or_url=str(folder))
    assert upstream.num_layers == 3 and upstream.hidden_sizes == [8] * 3
    padded = torch.nn.utils.rnn.pad_sequence(WAVS, batch_first=True)
    states, lengths = upstream(padded, torch.tensor([9_000, 16_000]))
    features, _ = Featurizer(upstream)(states, lengths)
    assert features.shape == (2, 50, 8)
