"""Which tasks a command names, and the table they come from."""

import pytest

from summarymixing.errors import UserError
from summarymixing.suite import paper
from summarymixing.suite.corpora import CORPORA
from summarymixing.suite.tasks import TASKS, choose_tasks


def names(tasks):
    return [task.name for task in tasks]


def test_the_default_is_the_paper_as_far_as_the_corpora_go():
    of_mp3s = [corpus for corpus in CORPORA if corpus != "fsdd"]
    assert names(choose_tasks(None, of_mp3s)) == [
        "librispeech_lstm",
        "librispeech_contextnet",
        "commonvoice_cy_lstm",
        "commonvoice_eu_lstm",
        "slurp_lstm",
        "iemocap_ecapa",
        "voxceleb1_ecapa",
    ]
    assert names(choose_tasks(None, ["slurp"])) == ["slurp_lstm"]
    own = ["fsdd_linear", "fsdd_ecapa"]
    assert names(choose_tasks(None, ["slurp", "fsdd"])) == ["slurp_lstm", *own]


def test_tasks_are_chosen_by_name_and_keep_their_order():
    text = "slurp_linear, librispeech_lstm"
    assert names(choose_tasks(text, CORPORA)) == [
        "librispeech_lstm",
        "slurp_linear",
    ]
    assert names(choose_tasks("all", CORPORA)) == [
        name for name in TASKS if not name.startswith("fsdd")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slurp_lsmt", "no task 'slurp_lsmt'; did you mean 'slurp_lstm'"),
        (
            "voxceleb1_ecapa,slurp_lstm",
            "voxceleb1 .voxceleb1_ecapa.*voxceleb1:",
        ),
        (" , ", "--list"),
    ],
)
def test_mistakes_in_the_tasks(text, message):
    with pytest.raises(UserError, match=message):
        choose_tasks(text, ["slurp"])


def test_every_column_of_the_paper_is_one_of_ours():
    ours = {(t.name, split) for t in TASKS.values() for split in t.splits}
    assert set(paper.COLUMNS) <= ours
    assert {name for name, _ in paper.COLUMNS} == {
        task.name for task in TASKS.values() if task.in_paper
    }


def test_numbers_of_the_paper():
    mhsa, mixing, *_, data2vec = paper.ROWS
    assert mhsa.percent["commonvoice_cy_lstm", "test"] == 50.8
    assert mixing.percent["librispeech_lstm", "test-other"] == 17.3
    assert mixing.percent["voxceleb1_ecapa", "test"] == 2.4
    assert ("librispeech_lstm", "test-other") not in data2vec.percent
    assert data2vec.percent["slurp_lstm", "test"] == 79.9
