"""An encoder on disk: whole, explained, and never executed."""

import json
import os
import pickle
import resource
import shutil
import stat
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from summarymixing import MultiHeadAttention, SummaryMixing, Wav2Vec2Encoder
from summarymixing.errors import UserError
from summarymixing.lobes.encoders import FrozenEncoder, digest
from summarymixing.lobes.finetuning import with_regularisation
from summarymixing.lobes.pretraining import (
    Wav2Vec2Pretraining,
    gather_masked_frames,
)
from summarymixing.nnet.quantiser import GumbelQuantiser
from summarymixing.pretrained import (
    QUANTISER_NAME,
    load_quantiser,
    read_config,
    save_encoder,
)
from summarymixing.run.processes import on_main_process

# An encoder and a checkpoint that version 0.1.0 wrote, and what it made of
# TONE with them.
DATA_0_1_0 = Path(__file__).parent / "data_0_1_0"
EXPECTED = json.loads((DATA_0_1_0 / "expected.json").read_text())
TONE = (torch.arange(2_000) / 16_000 * 2 * torch.pi * 440).sin()[None]
TINY = {
    "num_layers": 1,
    "d_model": 8,
    "d_ffn": 16,
    "kernel_size": 3,
    "num_mels": 20,
    "front_end_channels": 6,
}


def make_encoder(mixer=None, **options):
    mixer = mixer or partial(SummaryMixing, num_heads=2)
    return Wav2Vec2Encoder(mixer=mixer, **{**TINY, **options})


@pytest.fixture
def folder(tmp_path):
    return save_encoder(make_encoder(), tmp_path / "run" / "encoder")


def edit(folder, **changes):
    """Change top-level keys of encoder.json; None removes one."""
    path = folder / "encoder.json"
    config = {**json.loads(path.read_text()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(config))


def edit_architecture(folder, **changes):
    architecture = read_config(folder)["architecture"]
    edit(folder, architecture={**architecture, **changes})


def refused(folder, *parts):
    """Loading fails with a message that names the folder and these parts."""
    with pytest.raises(UserError) as caught:
        Wav2Vec2Encoder.from_pretrained(folder)
    for part in (str(folder), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "mixer",
    [
        partial(SummaryMixing, num_heads=2),
        partial(SummaryMixing, num_heads=4, mode="lite"),
        partial(MultiHeadAttention, num_heads=2, dropout=0.1),
    ],
)
def test_what_is_saved_is_what_is_loaded(mixer, tmp_path):
    encoder = make_encoder(mixer, layer_drop=0.2).eval()
    facts = {"updates": 3, "corpus": "Libri-Light ½"}
    folder = save_encoder(encoder, tmp_path / "encoder", trained_on=facts)
    loaded = Wav2Vec2Encoder.from_pretrained(folder)
    assert not loaded.training
    assert loaded.config == encoder.config
    assert read_config(folder)["trained_on"] == facts
    wavs, wav_lens = torch.randn(2, 4_000), torch.tensor([1.0, 0.7])
    torch.testing.assert_close(
        loaded(wavs, wav_lens).hidden_states,
        encoder(wavs, wav_lens).hidden_states,
        rtol=0,
        atol=0,
    )


def test_saving_again_replaces_and_leaves_nothing_else(folder):
    before = {path.name for path in folder.iterdir()}
    encoder = make_encoder()
    save_encoder(encoder, folder)
    assert {path.name for path in folder.iterdir()} == before
    assert before == {"README.md", "encoder.json", "encoder.safetensors"}
    for name, tensor in (
        Wav2Vec2Encoder.from_pretrained(folder).state_dict().items()
    ):
        assert torch.equal(tensor, encoder.state_dict()[name])


def test_an_encoder_of_0_1_0_gives_the_states_it_gave():
    encoder = Wav2Vec2Encoder.from_pretrained(DATA_0_1_0 / "encoder")
    states = encoder(TONE, torch.ones(1)).hidden_states[-1][0, :2]
    expected = torch.tensor(EXPECTED["last_hidden_state"])
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-4)


def test_a_pretraining_checkpoint_of_0_1_0_gives_the_loss_it_gave():
    encoder = Wav2Vec2Encoder.from_pretrained(DATA_0_1_0 / "encoder")
    model = Wav2Vec2Pretraining(
        encoder, num_codes=4, target_dim=4, num_negatives=3
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.load_state_dict(load_file(DATA_0_1_0 / "pretraining.safetensors"))
    masked = gather_masked_frames([[1, 2, 4]], 7, seeds=[5])
    out = model(TONE, torch.ones(1), masked, temperature=1.0)
    assert out.loss.item() == pytest.approx(EXPECTED["loss"], abs=1e-4)


def test_a_probe_that_0_1_0_began_recognises_its_encoder():
    encoder = Wav2Vec2Encoder.from_pretrained(DATA_0_1_0 / "encoder")
    assert digest(FrozenEncoder(encoder)) == EXPECTED["probe_digest"]


def test_every_file_has_the_permissions_the_user_wants(folder):
    before = os.umask(0o027)
    try:
        save_encoder(make_encoder(), folder)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o640}


def test_a_full_disk_is_one_message_and_the_encoder_before_stays(folder):
    before = Wav2Vec2Encoder.from_pretrained(folder).state_dict()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=str(folder)):
            on_main_process(lambda: save_encoder(make_encoder(), folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for name, tensor in (
        Wav2Vec2Encoder.from_pretrained(folder).state_dict().items()
    ):
        assert torch.equal(tensor, before[name])
    assert not list(folder.glob(".*"))


def test_the_folder_of_the_run_is_told_from_its_encoder(folder):
    refused(folder.parent, "Did you mean", str(folder))


def test_a_folder_without_encoder_is_named(tmp_path):
    refused(tmp_path / "nothing", "holds no encoder", "--encoder")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(keep, folder):
    path = folder / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "encoder.safetensors cannot be read")


def test_missing_weights_are_refused(folder):
    (folder / "encoder.safetensors").unlink()
    refused(folder, "encoder.safetensors cannot be read")


def test_weights_that_are_a_pickle_are_not_executed(folder, tmp_path):
    class Dangerous:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    content = pickle.dumps(Dangerous())
    (folder / "encoder.safetensors").write_bytes(content)
    refused(folder, "encoder.safetensors cannot be read")
    assert not (tmp_path / "executed").exists()


def test_nothing_else_in_the_folder_matters(folder, tmp_path, monkeypatch):
    trap = f"open({str(tmp_path / 'executed')!r}, 'w')"
    for name in ("__init__", "encoder", "summarymixing", "torch", "mixer"):
        (folder / f"{name}.py").write_text(trap)
    (folder / "hyperparams.yaml").write_text(
        f"x: !apply:pathlib.Path.touch [{tmp_path / 'executed'}]"
    )
    monkeypatch.chdir(folder)
    Wav2Vec2Encoder.from_pretrained(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.nn.Linear",
        "summarymixing.pretrained.save_encoder",
    ],
)
def test_a_mixer_from_elsewhere_is_not_imported(name, folder):
    edit_architecture(folder, mixer={"class": name})
    module, _, word = name.rpartition(".")
    refused(
        folder,
        "encoder.json",
        f"`from {module} import {word}`",
        f"from_pretrained(folder, mixer={word})",
        f"--mixer=!name:{name}",
    )


def test_a_mixer_of_a_newer_version_is_refused(folder):
    name = "summarymixing.nnet.of_a_newer_version.Mixer"
    edit_architecture(folder, mixer={"class": name})
    refused(folder, "encoder.json", "cannot build", name)


class OutsideMixer(SummaryMixing):
    """Stands for one of another package."""


@pytest.mark.parametrize(
    "given", [OutsideMixer, partial(OutsideMixer, num_heads=4)]
)
def test_an_outside_mixer_is_loaded_with_its_keywords(given, tmp_path):
    encoder = make_encoder(partial(OutsideMixer, num_heads=4, mode="lite"))
    folder = save_encoder(encoder, tmp_path / "encoder")
    loaded = Wav2Vec2Encoder.from_pretrained(folder, mixer=given)
    assert loaded.config == encoder.config
    mixer = loaded.conformer.layers[0].mixer
    assert isinstance(mixer, OutsideMixer)
    assert (mixer.num_heads, mixer.mode) == (4, "lite")
    changed = with_regularisation(loaded, mixer_dropout=0.5)
    assert changed.conformer.layers[0].mixer.dropout.p == 0.5


@pytest.mark.parametrize(
    "other",
    [
        OutsideMixer,
        partial(SummaryMixing, num_heads=4),
        partial(SummaryMixing, mode="lite"),
        lambda d_model: SummaryMixing(d_model),
    ],
)
def test_another_mixer_than_the_saved_one_is_refused(other, folder):
    with pytest.raises(UserError, match=str(folder)):
        Wav2Vec2Encoder.from_pretrained(folder, mixer=other)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 2},
        {"d_model": 16},
        {"d_ffn": 8},
        {"kernel_size": 5},
        {"front_end_channels": 12},
    ],
)
def test_weights_of_another_architecture_are_named(changes, folder):
    edit_architecture(folder, **changes)
    refused(folder, "another architecture", "described", "stored")


def test_every_weight_must_be_there(folder):
    path = folder / "encoder.safetensors"
    weights = load_file(path)
    weights["extra"] = weights.pop("mask_embedding")
    save_file(weights, path)
    refused(
        folder,
        "extra: described None, stored (8,)",
        "mask_embedding: described (8,), stored None",
    )


def test_an_old_name_does_not_replace_a_new_one(folder):
    path = folder / "encoder.safetensors"
    weights = load_file(path)
    weights["encoder.norm.weight"] = weights["conformer.norm.weight"] + 1
    save_file(weights, path)
    refused(folder, "encoder.norm.weight: described None, stored (8,)")


def test_files_of_two_encoders_are_told_apart(folder, tmp_path):
    other = save_encoder(
        make_encoder(partial(MultiHeadAttention, num_heads=2)),
        tmp_path / "other",
    )
    shutil.copy(other / "encoder.safetensors", folder)
    refused(folder, "another architecture", "more")


@pytest.mark.parametrize(
    "architecture",
    [
        {"kernel_size": 4},
        {"num_heads": 2},
        {"d_model": "8"},
        {"d_model": 9},
        {"d_model": 0},
        {"d_model": -8},
        {"layer_drop": 2},
        {"mixer": None},
        {"mixer": "SummaryMixing"},
        {"mixer": {"num_heads": 2}},
        {"mixer": {"class": 3}},
        {
            "mixer": {
                "class": "summarymixing.nnet.summary_mixing.SummaryMixing",
                "num_heads": 3,
            }
        },
    ],
    ids=str,
)
def test_a_config_that_cannot_be_built_is_refused(architecture, folder):
    edit_architecture(folder, **architecture)
    refused(folder, "encoder.json", "cannot build")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "transformers"},
        {"format": None},
        {"architecture": None},
        {"architecture": [1, 2]},
        {"architecture": "base"},
    ],
    ids=str,
)
def test_another_format_is_refused(changes, folder):
    edit(folder, **changes)
    refused(folder, "encoder.json")


def test_a_newer_version_asks_for_an_upgrade(folder):
    edit(folder, version=99)
    refused(folder, "newer version", "99", "pip install --upgrade")


@pytest.mark.parametrize(
    "text", ["", "{", "\x00", "[]", "3", "null", '"encoder"', "[" * 100_000]
)
def test_a_config_that_is_no_mapping_is_refused(text, folder):
    (folder / "encoder.json").write_text(text)
    refused(folder, "encoder.json")


def test_a_config_that_is_no_text_is_refused(folder):
    (folder / "encoder.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "encoder.json cannot be read")


@pytest.mark.parametrize("version", ["2", [1], None])
def test_a_version_that_is_no_number_does_not_crash(version, folder):
    path = folder / "encoder.json"
    config = {**json.loads(path.read_text()), "version": version}
    path.write_text(json.dumps(config))
    refused(folder, "encoder.json")


def test_a_quantiser_beside_its_encoder_is_loaded(tmp_path):
    saved = GumbelQuantiser(6, num_groups=3, num_codes=5, target_dim=12)
    folder = save_encoder(make_encoder(), tmp_path, quantiser=saved)
    loaded = load_quantiser(folder)
    latents = torch.randn(20, 6)
    assert loaded(latents).code_ids.equal(saved(latents).code_ids)
    assert loaded(latents).targets.equal(saved(latents).targets)
    save_file({"codebook": torch.rand(2, 3, 4)}, tmp_path / QUANTISER_NAME)
    with pytest.raises(UserError, match="holds no quantiser"):
        load_quantiser(tmp_path)
    (tmp_path / QUANTISER_NAME).write_bytes(b"half of")
    with pytest.raises(UserError, match="not complete"):
        load_quantiser(tmp_path)


def test_without_a_quantiser_there_is_none(folder):
    assert load_quantiser(folder) is None
