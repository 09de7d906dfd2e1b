"""The model card says what encoder.json says, and nothing else."""

import re
from functools import partial

import pytest
import yaml

from summarymixing import SummaryMixing, Wav2Vec2Encoder
from summarymixing.pretrained import save_encoder

TRAINED_ON = {
    "update": 300_000,
    "train_hours": 57_706.4,
    "gpu_hours": 164.25,
    "encoder": "/home/me/secret",
    "random_encoder": False,
    "valid": {"loss": 2.34567, "accuracy": 0.5},
}


class OutsideMixer(SummaryMixing):
    """Stands for one of another package."""


def make_card(folder, trained_on=None, mixer=SummaryMixing):
    encoder = Wav2Vec2Encoder(
        num_layers=1, d_model=16, d_ffn=8, mixer=partial(mixer, num_heads=2)
    )
    save_encoder(encoder, folder / "encoder", trained_on)
    card = (folder / "encoder" / "README.md").read_text("utf-8")
    return yaml.safe_load(card.split("---")[1]), card


def test_what_hubs_read_is_yaml(tmp_path):
    front_matter, _ = make_card(tmp_path, TRAINED_ON)
    assert front_matter["library_name"] == "summarymixing"
    assert "summarymixing" in front_matter["tags"]
    assert "license" not in front_matter


def test_numbers_of_the_training_are_shown(tmp_path):
    _, card = make_card(tmp_path, TRAINED_ON)
    for row in (
        "| updates | 300,000 |",
        "| hours of audio to train on | 57,706.4 |",
        "| GPU hours | 164.2 |",
        "| valid: loss | 2.346 |",
    ):
        assert row in card
    assert "secret" not in card and "random" not in card


def test_what_is_not_known_is_left_out(tmp_path):
    _, card = make_card(tmp_path)
    assert "Training" not in card and "None" not in card
    assert "decides on theirs" in card


def test_the_licence_of_the_weights_is_that_of_the_run(tmp_path):
    front_matter, card = make_card(tmp_path, {"licence": "cc-by-4.0"})
    assert front_matter["license"] == "cc-by-4.0"
    assert "licence of the weights is cc-by-4.0." in card


@pytest.mark.parametrize(
    "licence",
    ["mit\n---\n# Injected", "a: b", "no", "1.0", "[x](y)", "x" + chr(0x202E)],
)
def test_a_licence_is_neither_yaml_nor_markdown(licence, tmp_path):
    front_matter, card = make_card(tmp_path, {"licence": licence})
    is_name = licence in ("no", "1.0")
    expected = licence if is_name else "x" if licence[0] == "x" else "other"
    assert front_matter["license"] == expected
    assert "\n# Injected" not in card and "[x](" not in card
    assert card.isascii()


def test_names_of_numbers_are_not_markdown(tmp_path):
    _, card = make_card(tmp_path, {"a|b\n# c <i>": 1, 7: {"*": 2.0}})
    assert "| a\\|b \\# c \\<i\\> | 1 |" in card
    assert "| 7: \\* | 2 |" in card


class Null(SummaryMixing):
    """Stands for a class whose name means nothing in YAML."""


def test_every_tag_is_text(tmp_path):
    front_matter, _ = make_card(tmp_path, mixer=Null)
    assert "null" in front_matter["tags"]


@pytest.mark.parametrize("mixer", [SummaryMixing, OutsideMixer])
def test_the_lines_that_load_it_do(mixer, tmp_path, monkeypatch):
    _, card = make_card(tmp_path, mixer=mixer)
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    *loading, _ = code.replace("path/to/this/folder", "encoder").splitlines()
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(loading), names)
    assert isinstance(names["encoder"].conformer.layers[0].mixer, mixer)
