"""The account of a preparation, as other programs read it."""

import json

import pytest

from summarymixing.data.prepare import CORPORA
from summarymixing.data.prepare.account import (
    MINIATURE_MARKER,
    holds_miniature,
    is_miniature,
)
from summarymixing.miniature import build_iemocap


@pytest.mark.parametrize(
    "place", ["a/b/c", "a/b", "a", "a/b/c/d", "a/b/c/d/e", None]
)
def test_a_miniature_is_known_by_its_marker(tmp_path, place):
    (tmp_path / "a/b/c/d/e").mkdir(parents=True)
    if place is not None:
        (tmp_path / place / MINIATURE_MARKER).touch()
    assert holds_miniature(tmp_path / "a/b/c") == (place is not None)


def test_a_miniature_needs_no_option_and_its_account_says_so(tmp_path):
    corpus = build_iemocap(tmp_path / "c", hours=0.01)
    for expected in (True, False):
        plan = CORPORA["iemocap"].plan(corpus, tmp_path / "m")
        if not expected:
            plan = CORPORA["iemocap"].plan(
                corpus, tmp_path / "m", expected_utterances=0
            )
        account = plan.run(overwrite=True)
        assert is_miniature(tmp_path / "m") == expected
        assert account.summary().startswith("miniature ") == expected
        (corpus / MINIATURE_MARKER).unlink(missing_ok=True)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_manifests_are_real_where_no_account_says_otherwise(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert not is_miniature(tmp_path)


def test_a_miniature_prepared_before_the_marker_is_prepared_again(tmp_path):
    """An account without the word must not hide what the corpus is."""
    corpus = build_iemocap(tmp_path / "c", hours=0.01)
    marker = corpus / MINIATURE_MARKER
    text = marker.read_text()
    marker.unlink()
    CORPORA["iemocap"].plan(corpus, tmp_path / "m", expected_utterances=0).run()
    marker.write_text(text)
    CORPORA["iemocap"].plan(corpus, tmp_path / "m", expected_utterances=0).run()
    assert json.loads((tmp_path / "m" / "report.json").read_text())["miniature"]
