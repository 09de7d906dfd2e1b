"""Common Voice: the columns of a table by their names, text as it is."""

import shutil

import pytest

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.commonvoice import CORPUS
from summarymixing.errors import UserError
from summarymixing.miniature import build_commonvoice


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a miniature once; return the folder of its language."""
    root = build_commonvoice(tmp_path_factory.mktemp("cv") / "c", hours=0.01)
    (folder,) = root.glob("cv-corpus-*/cy")
    return folder


@pytest.fixture
def prepare(corpus, tmp_path):
    return lambda source="": CORPUS.plan(corpus / source, tmp_path / "m").run()


def read_rows(tmp_path, split="train"):
    path = tmp_path / "m" / f"{split}.csv"
    return list(Manifest.read(path, ("speaker", "transcript")))


def read_table(corpus, split="train"):
    lines = (corpus / f"{split}.tsv").read_text("utf-8").splitlines()
    return [line.split("\t") for line in lines]


def write_table(corpus, table, split="train"):
    text = "".join("\t".join(cells) + "\n" for cells in table)
    (corpus / f"{split}.tsv").write_text(text, "utf-8")


def test_each_split_has_the_lines_of_its_table(corpus, prepare, tmp_path):
    account = prepare()
    assert not account.problems
    for split in ("train", "dev", "test"):
        rows, table = read_rows(tmp_path, split), read_table(corpus, split)
        assert [f"{row.id}.mp3" for row in rows] == [c[1] for c in table[1:]]
        for row, (speaker, clip, sentence, *_) in zip(
            rows, table[1:], strict=True
        ):
            assert row.path == str(corpus / "clips" / clip)
            assert row.labels == {"speaker": speaker, "transcript": sentence}
            assert row.segments == () and 1 < row.duration < 10
    assert account.found.count == account.kept.count


def test_columns_are_found_by_name_and_text_is_kept(corpus, prepare, tmp_path):
    header, first, *others = read_table(corpus)
    first[2] = ' Dŵr,  "paned" \u2028a choffi?  I\'r'
    table = [header, first, *others]
    write_table(corpus, [cells[::-1] for cells in table])
    prepare()
    row, *rest = read_rows(tmp_path)
    assert row.labels["transcript"] == 'Dŵr, "paned" a choffi? I\'r'
    assert row.labels["speaker"] == first[0]
    assert len(rest) == len(others)


def test_damaged_clips_are_listed(corpus, prepare, tmp_path, damage):
    name = read_table(corpus)[1][1]
    reason = damage(corpus / "clips" / name)
    before = len(read_table(corpus)) - 1
    assert prepare().problems == {reason: [f"clips/{name}"]}
    assert len(read_rows(tmp_path)) == before - 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (["a", "b.mp3"], "malformed line"),
        (["a", "", "Bore da."] + [""] * 7, "malformed line"),
        (["a", "b.mp3", "c"] + [""] * 8, "malformed line"),
        (["a", "b.mp3", " "] + [""] * 7, "no transcript"),
        (["", "b.mp3", "Bore da."] + [""] * 7, "no speaker"),
        (["a", "b\udcff.mp3", "c"] + [""] * 7, "line is not UTF-8 text"),
    ],
)
def test_bad_lines_are_listed(corpus, prepare, tmp_path, line, reason):
    before = len(read_table(corpus)) - 1
    with open(corpus / "train.tsv", "ab") as file:
        file.write("\t".join(line).encode("utf-8", "surrogateescape") + b"\n")
    assert prepare().problems == {reason: [f"train.tsv:{before + 2}"]}
    assert len(read_rows(tmp_path)) == before


def test_a_clip_counts_once_even_in_two_splits(corpus, prepare, tmp_path):
    train, test = read_table(corpus), read_table(corpus, "test")
    write_table(corpus, [*train, train[1]])
    write_table(corpus, [*test, train[2]], "test")
    account = prepare()
    assert account.problems == {
        "listed twice (the first counts)": [
            f"train.tsv:{len(train) + 1}",
            f"test.tsv:{len(test) + 1}",
        ]
    }
    assert len(read_rows(tmp_path)) == len(train) - 1
    assert len(read_rows(tmp_path, "test")) == len(test) - 1


@pytest.mark.parametrize("text", ["", "client_id\tpath\n", "\xff\tpath\n"])
def test_a_table_without_its_columns_is_explained(corpus, prepare, text):
    (corpus / "dev.tsv").write_text(text, "latin-1")
    with pytest.raises(UserError, match=r"dev.tsv has no column .*sentence"):
        prepare()


def test_an_empty_split_leaves_no_manifest(corpus, prepare, tmp_path):
    prepare()
    write_table(corpus, read_table(corpus, "dev")[:1], "dev")
    with pytest.raises(UserError, match="Nothing usable in dev") as caught:
        prepare()
    assert "commonvoice: " in str(caught.value)  # the account
    assert not list((tmp_path / "m").glob("*.csv"))


def test_the_wrong_folder_is_explained(prepare):
    with pytest.raises(UserError, match="the folder of one language"):
        prepare("clips")


def test_the_language_is_found_below_source(corpus, prepare):
    assert prepare("..").source == str(corpus)
    other = shutil.copytree(corpus, corpus.with_name("release") / "eu")
    with pytest.raises(UserError, match="several corpora") as caught:
        prepare("..")
    assert f"{corpus}, {other}" in str(caught.value)
