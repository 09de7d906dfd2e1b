"""Which tasks a command names, and what their files say of them."""

import pytest

from summarymixing.errors import UserError
from summarymixing.run.hparams_file import HPARAMS_FOLDER
from summarymixing.suite.tasks import (
    PAPER_COLUMNS,
    benchmark_tasks,
    choose_tasks,
    describe_tasks,
)

TASKS = benchmark_tasks()
CORPORA = {task.corpus for task in TASKS.values()}
OF_PAPER = [task for task in TASKS.values() if task.in_paper]


def names(tasks):
    return [task.name for task in tasks]


def test_the_default_is_the_paper_as_far_as_the_corpora_go():
    of_paper = {task.corpus for task in OF_PAPER}
    assert names(choose_tasks(None, of_paper)) == [
        "librispeech_lstm",
        "librispeech_contextnet",
        "commonvoice_cy_lstm",
        "commonvoice_eu_lstm",
        "slurp_lstm",
        "iemocap_ecapa",
        "voxceleb1_ecapa",
    ]
    assert names(choose_tasks(None, ["slurp"])) == ["slurp_lstm"]
    beside = [t for t in TASKS.values() if t.corpus not in of_paper]
    assert names(
        choose_tasks(None, ["slurp", *(t.corpus for t in beside)])
    ) == [
        "slurp_lstm",
        *names(beside),
    ]


def test_all_is_every_head_of_mp3s_in_the_order_of_the_table():
    assert names(choose_tasks("all", CORPORA)) == [
        "librispeech_lstm",
        "librispeech_contextnet",
        "commonvoice_cy_lstm",
        "commonvoice_cy_linear",
        "commonvoice_eu_lstm",
        "commonvoice_eu_linear",
        "slurp_lstm",
        "slurp_linear",
        "iemocap_ecapa",
        "iemocap_linear",
        "voxceleb1_ecapa",
        "voxceleb1_xvector",
    ]


def test_tasks_are_chosen_by_name_and_keep_their_order():
    chosen = choose_tasks("slurp_linear, librispeech_lstm", CORPORA)
    assert names(chosen) == ["librispeech_lstm", "slurp_linear"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slurp_lsmt", "no task 'slurp_lsmt'; did you mean 'slurp_lstm'"),
        (
            "voxceleb1_ecapa,slurp_lstm",
            "voxceleb1 .voxceleb1_ecapa.*voxceleb1:",
        ),
        (" , ", "--list"),
        ("nowhere/mine.yaml", "there is no file"),
        (str(HPARAMS_FOLDER / "mp3s/tiny_lstm.yaml"), "names no corpus"),
        (str(HPARAMS_FOLDER / "pretraining/tiny.yaml"), "is not a probe"),
    ],
)
def test_mistakes_in_the_tasks(text, message):
    with pytest.raises(UserError, match=message):
        choose_tasks(text, ["slurp"])


def test_a_file_of_the_package_is_the_task_of_that_name():
    file = HPARAMS_FOLDER / "mp3s" / "slurp_lstm.yaml"
    assert choose_tasks(str(file), ["slurp"]) == [TASKS["slurp_lstm"]]


def test_a_file_of_the_package_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for typed in ("hparams/mp3s/slurp_lstm.yaml", "mp3s/slurp_lstm.yaml"):
        assert choose_tasks(typed, ["slurp"]) == [TASKS["slurp_lstm"]]


def test_two_files_of_one_name_are_not_one_task(tmp_path):
    files = []
    for folder in ("a", "b"):
        files.append(tmp_path / folder / "mine.yaml")
        files[-1].parent.mkdir()
        files[-1].write_text(
            f"base: {HPARAMS_FOLDER / 'mp3s' / 'slurp_linear.yaml'}\n"
            f"table: {{title: Mine {folder}}}\n"
        )
    with pytest.raises(UserError, match="both are named 'mine'"):
        choose_tasks(",".join(map(str, files)), ["slurp"])
    assert len(choose_tasks(f"{files[0]},{files[0]}", ["slurp"])) == 1


def test_your_own_file_needs_a_name_and_a_title_of_its_own(tmp_path):
    base = f"base: {HPARAMS_FOLDER / 'mp3s' / 'slurp_linear.yaml'}\n"
    mine = tmp_path / "mine.yaml"
    mine.write_text(base)
    with pytest.raises(UserError, match="the title of .*'SLURP linear'"):
        choose_tasks(str(mine), ["slurp"])
    mine.write_text(base + "table: {title: Mine}\n")
    (task,) = choose_tasks(str(mine), ["slurp"])
    assert (task.name, task.title, task.short_title) == ("mine",) + (
        "Mine",
    ) * 2
    assert not task.in_paper
    with pytest.raises(UserError, match="the name of .*'slurp_lstm'"):
        choose_tasks(str(mine.rename(tmp_path / "slurp_lstm.yaml")), ["slurp"])


def test_what_a_file_says_of_its_task():
    libri = TASKS["librispeech_lstm"]
    assert (libri.metric_title, libri.splits) == ("WER ↓", ("test-other",))
    assert libri.valid_split == "dev-clean"
    # The validation and the test of a fold are parts of one manifest.
    assert TASKS["iemocap_ecapa"].valid_split == "valid"
    assert TASKS["slurp_lstm"].metric_title == "Acc. ↑"
    assert "slurp_lstm              paper  Acc.  slurp " in describe_tasks()


def test_every_column_of_the_paper_is_one_of_ours():
    ours = {(t.name, split) for t in OF_PAPER for split in t.splits}
    assert set(PAPER_COLUMNS) == ours
