"""Listing files, choosing a validation set."""

import os

import pytest

from summarymixing.data.prepare import common
from summarymixing.data.prepare.account import Account
from summarymixing.data.prepare.common import (
    add_trials,
    assign_splits,
    assign_train_valid,
    check_holds,
    check_source,
    choose_validation,
    find_corpus,
    find_file,
    list_files,
)
from summarymixing.data.trials import Trial
from summarymixing.errors import UserError


def list_names(root):
    return [file.relative for file in list_files(root, (".wav", ".flac"))]


def test_files_are_listed_sorted_without_hidden_ones(tmp_path):
    for name in ("b/c.wav", "a.FLAC", "b.wav", "b/._c.wav", ".x/d.wav", "e.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_names(tmp_path) == ["a.FLAC", "b.wav", "b/c.wav"]


def test_links_are_followed_without_going_in_circles(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    corpus.mkdir(), elsewhere.mkdir()
    (elsewhere / "a.wav").touch()
    (corpus / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(corpus)
    (corpus / "dangling.wav").symlink_to(tmp_path / "nowhere")
    assert list_names(corpus) == ["dangling.wav", "linked/a.wav"]


def test_a_name_that_is_not_text_is_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xe9.wav")).touch()
    with pytest.raises(UserError, match="UTF-8"):
        list_files(tmp_path, (".wav",))


@pytest.mark.parametrize(
    ("name", "expected"), [("nowhere", "does not exist"), ("a.tar", "a file")]
)
def test_a_source_that_is_no_folder_is_explained(tmp_path, name, expected):
    (tmp_path / "a.tar").touch()
    with pytest.raises(UserError, match=expected):
        check_source(tmp_path / name)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["."], "."),
        ([".", "a"], "."),
        (["a/b/c"], "a/b/c"),
        (["a/b/c/d"], "."),  # too deep
        ([".hidden"], "."),
        (["a", "a/b"], "a"),  # what is below a corpus is a part of it
        (["a/b", "a/d"], None),
        (["a", "b/c/d"], None),
    ],
)
def test_the_only_corpus_below_source_is_taken(tmp_path, places, expected):
    for place in places:
        (tmp_path / place / "clips").mkdir(parents=True)

    def find():
        return find_corpus(tmp_path, lambda f: (f / "clips").is_dir())

    if expected is None:
        with pytest.raises(UserError, match="several corpora") as caught:
            find()
        named = ", ".join(str(tmp_path / place) for place in places)
        assert f"Give one of them: {named}." in str(caught.value)
    else:
        assert find() == tmp_path / expected


def test_the_search_below_source_ends(tmp_path, monkeypatch):
    """A wrong SOURCE may be a whole disk."""
    monkeypatch.setattr(common, "SEARCH_FOLDERS", 5)
    asked = []
    for index in range(20):
        (tmp_path / f"{index:02d}" / "below").mkdir(parents=True)
    assert find_corpus(tmp_path, asked.append) == tmp_path
    assert len(asked) == 1 + 20 + 4


@pytest.mark.parametrize("budget_s", [10.0, 50.0, 333.0])
def test_validation_keeps_its_budget(budget_s):
    groups = {f"g{i}": 1.0 + i % 7 for i in range(300)}
    chosen = choose_validation(groups, budget_s)
    total = sum(groups[group] for group in chosen)
    assert 0.9 * budget_s < total <= budget_s
    shuffled = dict(sorted(groups.items(), reverse=True))
    assert choose_validation(shuffled, budget_s) == chosen


def test_a_growing_corpus_keeps_most_of_its_validation_set():
    groups = {f"g{i}": 1.0 for i in range(1000)}
    more = groups | {f"h{i}": 1.0 for i in range(100)}
    before, after = (choose_validation(g, 50.0) for g in (groups, more))
    assert len(before & after) >= 40


@pytest.mark.parametrize("budget_s", [1e-9, 0.5, 1e9])
def test_both_sides_of_a_small_corpus_get_something(budget_s):
    assert len(choose_validation({"a": 5.0, "b": 9.0}, budget_s)) == 1


def test_no_validation_can_be_asked_for():
    assert choose_validation({"a": 5.0}, 0.0) == set()


def test_one_group_cannot_be_shared():
    with pytest.raises(UserError, match="Only one recording or group"):
        choose_validation({"a": 5.0}, 1.0)


def test_the_tighter_bound_of_validation_counts():
    groups = {f"g{i}": 10.0 for i in range(100)}
    for fraction, seconds in ((0.05, 1e9), (1.0, 50.0)):
        names = assign_train_valid(
            groups, max_fraction=fraction, max_seconds=seconds
        )
        assert list(names.values()).count("valid.csv") == 5


def test_the_folder_that_was_meant_is_named(tmp_path):
    (tmp_path / "clips").mkdir()
    check_holds(tmp_path, ["clips"], "Give another.")
    with pytest.raises(UserError, match=r"has no a.tsv, b/c. Give another."):
        check_holds(tmp_path, ["a.tsv", "clips", "b/c"], "Give another.")


def test_every_split_gets_a_manifest_or_is_named():
    splits = {"splits": ("train", "dev"), "advice": "Look."}
    assert assign_splits({"dev": 1.0, "train": 9.0}, **splits) == {
        "train": "train.csv",
        "dev": "dev.csv",
    }
    with pytest.raises(UserError, match="Nothing usable in dev. Look."):
        assign_splits({"train": 9.0}, **splits)


def test_a_file_that_changes_is_another_one(tmp_path):
    path = tmp_path / "a.txt"
    missing = find_file("a.txt", path)
    path.write_text("1")
    assert find_file("a.txt", path) != missing
    assert find_file("a.txt", path).size == 1


@pytest.fixture
def account(tmp_path):
    return Account("toy", "/x", str(tmp_path), options={}, fingerprint="")


def test_trials_are_counted_in_the_report(tmp_path, account):
    add_trials(account, [Trial("1", "a", "b,c"), Trial("0", "a", "d")])
    text = (tmp_path / "trials.csv").read_text()
    assert text == 'target,enrol,test\n1,a,"b,c"\n0,a,d\n'
    assert account.other_files == {"trials.csv": 2}


@pytest.mark.parametrize("targets", ["", "1", "00"])
def test_trials_of_one_kind_are_no_test(tmp_path, account, targets):
    with pytest.raises(UserError, match="same speaker .* two speakers"):
        add_trials(account, [Trial(t, "a", "b") for t in targets])
    assert not (tmp_path / "trials.csv").exists()
