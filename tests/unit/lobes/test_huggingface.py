"""Encoders of HuggingFace, with tiny random models made on the spot."""

import pytest
import torch

from summarymixing.errors import UserError
from summarymixing.lobes.encoders import digest, load_frozen_encoder
from summarymixing.lobes.huggingface import (
    HuggingFaceEncoder,
    normalise_utterances,
)

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [20, 16],  # 20 ms, in two convolutions for speed
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 5,
}
KINDS = {
    "wav2vec2": ("Wav2Vec2", {"feat_extract_norm": "layer"}),
    "wav2vec2 base": ("Wav2Vec2", {"feat_extract_norm": "group"}),
    "wav2vec2 large": (
        "Wav2Vec2",
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    ),
    "hubert": ("Hubert", {"feat_extract_norm": "layer"}),
    "wavlm": ("WavLM", {"feat_extract_norm": "layer"}),
    "data2vec": ("Data2VecAudio", {"conv_pos_kernel_size": 3}),
}


def save_model(kind, folder):
    """Write a random model as HuggingFace does, and return its folder."""
    name, extra = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**SMALL, **extra)
    torch.manual_seed(0)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=True, return_attention_mask=kind != "wav2vec2 base"
    ).save_pretrained(folder)
    return folder


def test_long_recordings_are_cut_into_windows(tmp_path, monkeypatch):
    encoder = HuggingFaceEncoder(str(save_model("hubert", tmp_path))).eval()
    module = "summarymixing.lobes.long_audio"
    monkeypatch.setattr(f"{module}.WINDOW_SECONDS", 2)
    monkeypatch.setattr(f"{module}.CONTEXT_SECONDS", 1)
    wav = torch.randn(5 * 16_000 + 100)
    pieces = list(encoder.encode_long(wav, [2]))
    assert [piece.start_seconds for piece in pieces] == [0, 2, 4]
    joined = torch.cat([piece.hidden_states[0] for piece in pieces])
    whole = encoder(wav[None], torch.ones(1)).hidden_states[2][0]
    assert joined.shape == whole.shape
    window = encoder(wav[None, 16_000:80_000], torch.ones(1)).hidden_states
    torch.testing.assert_close(
        pieces[1].hidden_states[0], window[2][0, 50:150], rtol=1e-4, atol=1e-4
    )


def test_the_shortest_recording_has_a_frame(tmp_path):
    encoder = HuggingFaceEncoder(str(save_model("wav2vec2", tmp_path))).eval()
    out = encoder(torch.ones(1, 1), torch.ones(1))
    assert (~out.padding_mask).sum() == encoder.count_frames(1) == 1


def load(folder, **extra):
    hparams = {
        "encoder": str(folder),
        "mixer": None,
        "random_encoder": False,
        "seed": 1,
        "precision": "fp32",
        "encoder_train_mode": False,
        "encode_alone": False,
    }
    return load_frozen_encoder({**hparams, **extra})


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_the_model(kind, tmp_path):
    frozen = load(save_model(kind, tmp_path))
    encoder = frozen.inner
    assert (encoder.d_model, encoder.num_layers) == (16, 2)
    wavs = torch.randn(1, 8000) * 0.1 + 0.3
    out = frozen(wavs, torch.ones(1))
    unit = (wavs - wavs.mean()) / (wavs.var(unbiased=False) + 1e-7).sqrt()
    expected = encoder.model(unit, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    states = [*expected.hidden_states[:2], expected.last_hidden_state]
    for ours, theirs in zip(out.hidden_states, states, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert out.padding_mask.shape == out.hidden_states[0].shape[:2]
    assert not out.padding_mask.any()


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
@pytest.mark.parametrize("garbage", [0.0, 1e3, float("nan")])
def test_what_stands_in_padding_reaches_nothing(kind, garbage, tmp_path):
    frozen = load(save_model(kind, tmp_path))
    torch.manual_seed(0)
    long, short = torch.randn(8000), torch.randn(5000)
    wavs = torch.full((2, 8000), garbage)
    wavs[0], wavs[1, :5000] = long, short
    together = frozen(wavs, torch.tensor([1.0, 5000 / 8000]))
    for i, wav in enumerate((long, short)):
        alone = frozen(wav.unsqueeze(0), torch.ones(1))
        frames = alone.hidden_states[0].shape[1]
        assert (~together.padding_mask[i]).sum() == frames
        for ours, theirs in zip(
            together.hidden_states, alone.hidden_states, strict=True
        ):
            # The convolution of positions sees the frames behind the end.
            ours, theirs = ours[i, : frames - 5], theirs[0, : frames - 5]
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_normalisation_is_that_of_the_feature_extractor():
    torch.manual_seed(0)
    wavs = torch.randn(2, 400) + 5
    beyond_end = torch.arange(400) >= torch.tensor([[400], [100]])
    ours = normalise_utterances(wavs, beyond_end)
    theirs = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)(
        [wavs[0].numpy(), wavs[1, :100].numpy()],
        sampling_rate=16_000,
        padding=True,
        return_attention_mask=True,
        return_tensors="pt",
    ).input_values
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_random_twin_and_frozen(tmp_path):
    folder = save_model("wavlm", tmp_path)
    pretrained, twin = load(folder), load(folder, random_encoder=True)
    assert digest(pretrained) != digest(twin)
    assert digest(twin) == digest(load(folder, random_encoder=True))
    for frozen in (pretrained, twin):
        assert not frozen.train().inner.model.training
        assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_train_mode_leaves_all_states(kind, tmp_path):
    """Layer drop is on in the configurations of the hub."""
    frozen = load(save_model(kind, tmp_path), encoder_train_mode=True).train()
    assert frozen.inner.model.training
    for _ in range(10):
        out = frozen(torch.randn(1, 4000), torch.ones(1))
        assert len(out.hidden_states) == 3


def test_a_folder_without_weights_is_refused(tmp_path):
    save_model("hubert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="HuggingFace cannot load it"):
        HuggingFaceEncoder(str(tmp_path))
