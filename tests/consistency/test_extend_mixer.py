"""A mixer from outside the package, exactly as the README says to add one."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from summarymixing import Wav2Vec2Encoder
from summarymixing.errors import UserError
from summarymixing.pretrained import save_encoder
from summarymixing.run.hparams_file import HparamsFile

ROOT = Path(__file__).resolve().parents[2]

MIXER = '''
from torch import nn

from summarymixing.nnet.masking import masked_mean, zero_padding


class MeanMixer(nn.Module):
    """Every frame gets a projection of the average of its utterance."""

    def __init__(self, d_model, scale=1.0, dropout=0.0):
        super().__init__()
        self.scale = scale
        self.project = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, padding_mask=None):
        mean = masked_mean(x, padding_mask).to(x.dtype).unsqueeze(1)
        mixed = self.scale * self.dropout(self.project(mean))
        return zero_padding(mixed.expand_as(x), padding_mask)
'''
FOLDERS = "manifests: nowhere\noutput_folder: nowhere"
HPARAMS = f"""
# The smallest model, with a mixer of another package.
base: {ROOT}/hparams/pretraining/tiny.yaml

mixer: !name:my_package.mixers.MeanMixer
  scale: 0.5
  dropout: !ref <dropout>
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Return a folder on the path, with a package and a YAML."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mixers.py").write_text(MIXER)
    (tmp_path / "mine.yaml").write_text(HPARAMS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("my_package", "my_package.mixers"):
        sys.modules.pop(name, None)


def test_a_mixer_of_another_package_is_built_saved_and_loaded(elsewhere):
    hparams = HparamsFile.read(elsewhere / "mine.yaml")
    hparams.override(f"{FOLDERS}\nnum_layers: 1\nd_model: 8\nd_ffn: 16")
    encoder = hparams.build()["encoder"].eval()
    folder = save_encoder(encoder, elsewhere / "encoder")
    # What the README tells them to type.
    from my_package.mixers import MeanMixer

    loaded = Wav2Vec2Encoder.from_pretrained(folder, mixer=MeanMixer)
    assert {layer.mixer.scale for layer in loaded.conformer.layers} == {0.5}
    wavs, wav_lens = torch.rand(2, 4_000), torch.tensor([1.0, 0.6])
    torch.testing.assert_close(
        loaded(wavs, wav_lens).hidden_states,
        encoder(wavs, wav_lens).hidden_states,
    )


def test_a_mixer_named_on_the_command_line(elsewhere):
    hparams = HparamsFile.read(ROOT / "hparams/pretraining/tiny.yaml")
    hparams.override(f"{FOLDERS}\nmixer: !name:my_package.mixers.MeanMixer")
    described = hparams.build()["encoder"].config["mixer"]
    assert described["class"] == "my_package.mixers.MeanMixer"


def test_nothing_is_imported_that_a_folder_names(elsewhere):
    hparams = HparamsFile.read(elsewhere / "mine.yaml")
    hparams.override(f"{FOLDERS}\nnum_layers: 1\nd_model: 8")
    folder = save_encoder(hparams.build()["encoder"], elsewhere / "encoder")
    for name in ("my_package", "my_package.mixers"):
        del sys.modules[name]
    with pytest.raises(UserError, match="from my_package.mixers import Mean"):
        Wav2Vec2Encoder.from_pretrained(folder)
    assert "my_package" not in sys.modules
