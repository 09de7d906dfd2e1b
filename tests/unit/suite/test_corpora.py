"""The file of corpora: all that is wrong is said at once."""

import pytest

from summarymixing.errors import UserError
from summarymixing.suite.corpora import read_corpora


@pytest.fixture
def write(tmp_path):
    (tmp_path / "data" / "ls").mkdir(parents=True)
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / "train.csv").touch()

    def write_file(text):
        path = tmp_path / "data" / "corpora.yaml"
        path.write_text(text)
        return path

    return write_file


def test_paths_are_relative_to_the_file(write, tmp_path):
    path = write(
        "librispeech: ls\n"
        "slurp: {source: ls, options: [--a=1]}\n"
        "voxceleb1: {manifests: ../ready}\n"
    )
    corpora = read_corpora(path, tmp_path / "m")
    librispeech, slurp, voxceleb1 = corpora.values()
    assert librispeech.source == tmp_path / "data" / "ls"
    assert librispeech.manifests == tmp_path / "m" / "librispeech"
    assert slurp.options == ("--a=1",)
    assert voxceleb1.source is None
    assert voxceleb1.manifests.resolve() == tmp_path / "ready"


def test_one_place_for_all_manifests(write, tmp_path):
    path = write("manifests: made\nlibrispeech: ls")
    corpus = read_corpora(path, tmp_path / "m")["librispeech"]
    assert corpus.manifests == tmp_path / "data" / "made" / "librispeech"


def test_all_mistakes_are_in_one_message(write, tmp_path):
    path = write(
        "libri_speech: ls\n"
        "slurp: nowhere\n"
        "iemocap: [ls]\n"
        "voxceleb1: {manifests: nowhere}\n"
        "commonvoice_cy: {sauce: ls}\n"
        "commonvoice_eu: {options: [--a]}\n"
    )
    with pytest.raises(UserError) as error:
        read_corpora(path, tmp_path / "m")
    message = str(error.value)
    for part in (
        "did you mean 'librispeech'",
        "there is no folder",
        "iemocap: not a folder",
        "there are no manifests in",
        "did you mean 'source'",
        "neither a source nor manifests",
    ):
        assert part in message
    assert len(message.splitlines()) == 7


def test_a_corpus_of_ones_own_needs_manifests(write, tmp_path):
    corpora = read_corpora(write("mine: {manifests: ../ready}"), tmp_path)
    assert list(corpora) == ["mine"] and corpora["mine"].source is None
    both = write("mine: {manifests: ../ready, source: ls}")
    with pytest.raises(UserError, match="and no source"):
        read_corpora(both, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just text", "no lines like"),
        ("a: [", "not YAML"),
        ("manifests: m", "names no corpus"),
        ("slurp: {source: ls, options: overwrite}", "options is a list"),
    ],
)
def test_other_mistakes(write, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_corpora(write(text), tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file.*librispeech: FOLDER"):
        read_corpora(tmp_path / "no.yaml", tmp_path)
