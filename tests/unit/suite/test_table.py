"""The table, checked by hand."""

import csv
import json

import pytest

from summarymixing.suite.results import (
    mean_layer_weights,
    read_results,
    write_layer_csv,
    write_long_csv,
)
from summarymixing.suite.table import Table
from summarymixing.suite.tasks import PAPER_COLUMNS, benchmark_tasks
from summarymixing.training.verification import FEWEST_SPEAKERS


def other(wer):
    return {"test-clean": {"wer": wer - 5}, "test-other": {"wer": wer}}


def slurp(accuracy):
    return {"test": {"accuracy": accuracy, "utterances": 3}}


@pytest.fixture
def table(write_run, tmp_path):
    """Two encoders: three seeds of one task, one seed of another."""
    for seed, wer in ((1986, 17.0), (1987, 18.0), (1988, 19.0)):
        write_run("mine", "librispeech_lstm", seed, other(wer))
    write_run("yours", "librispeech_lstm", 1986, other(18.5))
    write_run("yours", "librispeech_lstm", 1987, other(19.5))
    write_run("yours", "librispeech_lstm", 1988)  # failed
    write_run("mine", "slurp_lstm", 1986, slurp(80.04))
    write_run("yours", "slurp_lstm", 1986, slurp(79.96))
    write_run("mine", "iemocap_ecapa", 1986)  # failed
    return Table(read_results(tmp_path))


def cells_of(table):
    return {row.lead[0]: row for row in table.rows()}


def test_means_deviations_and_holes(table):
    rows = cells_of(table)
    # Deviations: sqrt((1 + 0 + 1) / 2) and sqrt((.25 + .25) / 1).
    assert rows["mine"].cells == ("18.0 ± 1.0", "80.0", "failed")
    assert rows["yours"].cells == ("19.0 ± 0.7 (2 of 3)", "80.0", "missing")
    assert rows["mine"].lead == ("mine", "154.7", "3")


def test_the_best_is_bold_in_the_direction_of_the_metric(table, write_run):
    rows = cells_of(table)
    # SLURP is a draw as printed; what is alone is not best of anything.
    assert rows["mine"].best == {0, 1}
    assert rows["yours"].best == {1}
    assert "| **18.0 ± 1.0** |" in table.markdown()
    assert "| failed |" in table.markdown()


def test_settings_that_are_not_the_usual_ones_are_named(write_run, tmp_path):
    usual = ["python", "a.py", "--seed=1", "--fold=all"]
    for encoder, more in (("a", ["--max_updates=1"]), ("b", [])):
        words = {"command": [*usual, *more]}
        write_run(encoder, "slurp_lstm", 1986, slurp(1), **words)
    notes = Table(read_results(tmp_path)).notes()
    assert notes[2].endswith("number of runs: --max_updates=1 (1).")


def test_more_is_better_for_accuracy(write_run, tmp_path):
    write_run("mine", "slurp_lstm", 1986, slurp(70.0))
    write_run("yours", "slurp_lstm", 1986, slurp(80.0))
    rows = cells_of(Table(read_results(tmp_path)))
    assert (rows["mine"].best, rows["yours"].best) == (frozenset(), {0})


def test_the_paper_stands_below_and_is_marked(table):
    text = table.markdown()
    header, _, *lines = text.split("\n\n")[0].splitlines()
    assert header == (
        "| encoder | M | seeds | LibriSpeech LSTM<br>test-other WER ↓ "
        "| SLURP LSTM<br>Acc. ↑<br>3 utterances | IEMOCAP ECAPA<br>Acc. ↑ |"
    )
    assert [line.split(" | ")[0] for line in lines] == [
        "| mine",
        "| yours",
        "| MHSA [paper]",
        "| SummaryMixing [paper]",
        "| w2v2 base [paper]",
        "| w2v2 large [paper]",
        "| HuBERT large [paper]",
        "| data2vec large [paper]",
    ]
    assert "| SummaryMixing [paper] | 155 | - | 17.3 | 80.5 | 64.3 |" in lines
    assert "| w2v2 base [paper] | 95 | - | - | 77.7 | 73.2 |" in lines
    assert "quoted from table 2" in text


def test_wide_csv_has_every_split(table, tmp_path):
    table.write_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        mine, yours, *paper = csv.DictReader(file)
    assert mine["librispeech_lstm/test-other/wer"] == "18"
    assert mine["librispeech_lstm/test-other/wer/std"] == "1"
    assert mine["librispeech_lstm/test-clean/wer"] == "13"
    assert mine["librispeech_lstm/dev-clean/wer"] == "9"
    assert mine["slurp_lstm/test/accuracy/std"] == "-"
    assert mine["iemocap_ecapa/utterances/accuracy"] == "failed"
    assert yours["iemocap_ecapa/utterances/accuracy"] == "missing"
    assert {row["source"] for row in paper} == {"paper"}
    assert paper[0]["librispeech_lstm/test-other/wer"] == "21.4"
    assert paper[0]["librispeech_lstm/test-clean/wer"] == "-"
    assert paper[0]["slurp_lstm/test/accuracy"] == "78.1"


def test_long_csv_has_one_number_in_a_line(table, tmp_path):
    write_long_csv(tmp_path / "results.csv", table.results)
    with open(tmp_path / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = {
        row["seed"]: float(row["value"])
        for row in rows
        if (row["encoder"], row["split"], row["metric"])
        == ("mine", "test-other", "wer")
    }
    assert values == {"1986": 17.0, "1987": 18.0, "1988": 19.0}
    empty = [row for row in rows if not row["value"]]
    assert [(r["encoder"], r["task"], r["state"]) for r in empty] == [
        ("mine", "iemocap_ecapa", "failed"),
        ("yours", "librispeech_lstm", "failed"),
    ]
    assert not {"epoch", "update"} & {row["metric"] for row in rows}


@pytest.mark.parametrize("value", [float("nan"), None, "12", True])
def test_what_is_not_a_number_is_not_shown_as_one(write_run, tmp_path, value):
    write_run("mine", "librispeech_lstm", 1986, other(1) | other_with(value))
    (row, *_) = Table(read_results(tmp_path)).rows()
    assert row.cells == ("missing",)


def other_with(value):
    return {"test-other": {"wer": value}}


def test_layer_weights_are_averaged_over_seeds(write_run, tmp_path):
    for seed, weights in ((1986, (0.2, 0.8)), (1987, (0.4, 0.6))):
        write_run("mine", "slurp_lstm", seed, slurp(80), weights=weights)
    write_run("log_mel", "slurp_lstm", 1986, slurp(80), weights=(1.0,))
    weights = mean_layer_weights(read_results(tmp_path))
    assert list(weights) == ["mine"]
    assert weights["mine"]["SLURP LSTM"] == pytest.approx([0.3, 0.7])


def test_rows_come_in_the_order_of_the_first_runs(write_run, tmp_path):
    write_run("b", "slurp_lstm", 1986, slurp(1), started="2024-01-02")
    write_run("a", "slurp_lstm", 1986, slurp(1), started="2024-01-03")
    write_run("c", "slurp_lstm", 1986, slurp(1), started="2024-01-01")
    assert [r.encoder for r in read_results(tmp_path)] == ["c", "b", "a"]


def test_a_record_of_an_unknown_task_is_passed_over(write_run, tmp_path):
    folder = write_run("b", "old_task", 1986, slurp(1))
    assert json.loads((folder / "run_all.json").read_text())
    assert read_results(tmp_path) == []


def test_numbers_of_the_paper(write_run, tmp_path):
    for task, split in PAPER_COLUMNS:
        if not (tmp_path / "mine" / task).is_dir():
            write_run("mine", task, 1986, {split: {}})
    rows = cells_of(Table(read_results(tmp_path)))
    assert rows["SummaryMixing [paper]"].cells == (
        *("17.3", "17.2", "45.7", "48.3", "41.4", "42.1"),
        *("80.5", "64.3", "2.4"),
    )
    assert rows["data2vec large [paper]"].cells[:3] == ("-", "6.5", "-")


def interval(accuracy, width):
    low, high = accuracy - width, accuracy + width
    return {"test": {"accuracy": accuracy, "accuracy_interval": [low, high]}}


def test_intervals_stand_below_the_means(write_run, tmp_path):
    write_run("mine", "slurp_lstm", 1986, interval(80.0, 2.0))
    write_run("mine", "slurp_lstm", 1987, interval(82.0, 3.0))
    table = Table(read_results(tmp_path))
    assert cells_of(table)["mine"].cells == ("81.0 ± 1.4\n[78.5, 83.5]",)
    assert "| **81.0" not in table.markdown()  # it is alone
    assert "| 81.0 ± 1.4<br>[78.5, 83.5] |" in table.markdown()
    table.write_csv(tmp_path / "table.csv")
    write_long_csv(tmp_path / "results.csv", table.results)
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        line = next(csv.DictReader(file))
    name = "slurp_lstm/test/accuracy"
    assert (line[f"{name}/low"], line[f"{name}/high"]) == ("78.5", "83.5")
    with open(tmp_path / "results.csv", encoding="utf-8") as file:
        lines = [r for r in csv.DictReader(file) if r["metric"] == "accuracy"]
    assert [(r["low"], r["high"]) for r in lines] == [
        ("78.0", "82.0"),
        ("79.0", "85.0"),
    ]


def test_the_note_says_what_is_drawn_for_an_interval(table):
    assert f"where they are {FEWEST_SPEAKERS} or more" in table.notes()[0]


def test_a_miniature_is_never_shown_as_the_corpus(write_run, tmp_path):
    write_run("a", "slurp_lstm", 1986, slurp(70), miniature=True)
    write_run("b", "slurp_lstm", 1986)  # failed
    write_run("a", "librispeech_lstm", 1986, other(20))
    table = Table(read_results(tmp_path))
    header, _, *lines = table.markdown().split("\n\n")[0].splitlines()
    assert "| miniature SLURP LSTM<br>" in header
    assert "| LibriSpeech LSTM<br>" in header
    assert lines[1].startswith("| b | - | 0 | missing | failed |")
    # No number of the paper stands in the column of the miniature.
    assert lines[2] == "| MHSA [paper] | 165 | - | 21.4 | - |"
    assert "synthetic speech" in table.markdown()
    assert list(mean_layer_weights(table.results)["a"]) == [
        "LS LSTM",
        "miniature SLURP LSTM",
    ]
    for write, name in (
        (table.write_csv, "table.csv"),
        (lambda p: write_long_csv(p, table.results), "results.csv"),
        (lambda p: write_layer_csv(p, table.results), "layers.csv"),
    ):
        write(tmp_path / name)
        assert "miniature slurp" in (tmp_path / name).read_text()


def test_a_table_of_miniatures_quotes_nothing(write_run, tmp_path):
    write_run("a", "slurp_lstm", 1986, slurp(70), miniature=True)
    text = Table(read_results(tmp_path)).markdown()
    assert "paper" not in text


def test_a_miniature_and_the_corpus_are_two_columns(write_run, tmp_path):
    write_run("a", "slurp_lstm", 1986, slurp(70), miniature=True)
    write_run("b", "slurp_lstm", 1986, slurp(60))
    rows = cells_of(Table(read_results(tmp_path)))
    assert sorted(rows["a"].cells) == ["70.0", "missing"]
    assert sorted(rows["b"].cells) == ["60.0", "missing"]
    assert sorted(rows["MHSA [paper]"].cells) == ["-", "78.1"]


def test_tasks_that_the_paper_has_not_stand_alone(write_run, tmp_path):
    tasks = benchmark_tasks().values()
    of_paper = {task.corpus for task in tasks if task.in_paper}
    task = next(task for task in tasks if task.corpus not in of_paper)
    write_run("mine", task.name, 1986, slurp(70.0))
    text = Table(read_results(tmp_path)).markdown()
    assert "| mine " in text and "paper" not in text
