"""Encoders get distinct names, and are recognised again by their content."""

import pytest

from summarymixing.errors import UserError
from summarymixing.suite.encoders import read_encoders


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Make two runs that share their name, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for place in ("a/base/encoder", "b/base/encoder", "hf", "lr=3"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        name = "config.json" if place == "hf" else "encoder.json"
        (folder / name).write_text(place)
    return tmp_path


def read(*words, random=False):
    return {e.name: e for e in read_encoders(words, random=random)}


def test_names_come_from_the_run_and_differ(folders):
    assert list(read("a/base/encoder", "hf", "lr=3")) == ["base", "hf", "lr_3"]
    both = read("a/base/encoder", "b/base/encoder", "mine=hf")
    assert list(both) == ["a_base", "b_base", "mine"]
    assert both["a_base"].source == str(folders / "a/base/encoder")


def test_names_that_are_not_folders_go_through():
    found = read("facebook/wav2vec2-base", "log_mel")
    assert found["wav2vec2-base"].source == "facebook/wav2vec2-base"
    assert found["log_mel"].source == "log_mel"


def test_the_random_twin_is_the_first_one():
    encoders = read("a/base/encoder", "hf", random=True)
    twin = encoders["base_random"]
    assert twin.random and not encoders["base"].random
    assert (twin.source, twin.digest) == (
        encoders["base"].source,
        encoders["base"].digest,
    )


def test_the_digest_follows_the_content(folders):
    before = read("a/base/encoder")["base"].digest
    assert read("a/base/encoder")["base"].digest == before
    (folders / "a/base/encoder/encoder.safetensors").write_bytes(b"weights")
    assert read("a/base/encoder")["base"].digest != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which encoder"),
        (["a/bsae"], "no such folder"),
        (["nothing"], "no such folder"),
        (["a/base"], "did you mean a/base/encoder"),
        (["x=hf", "x=a/base/encoder"], "2 encoders are called 'x'"),
        (["hf", "hf"], "2 encoders are called 'hf'"),
        (["manifests=hf"], "cannot name"),
        ([".x=hf"], "cannot name"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UserError, match=message):
        read(*words)
