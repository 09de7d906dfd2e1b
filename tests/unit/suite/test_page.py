"""The files that are written from an output folder."""

import json

import pytest

from summarymixing.suite.page import write_outputs


@pytest.fixture
def written(write_run, tmp_path):
    """Write everything for one run that is done and one that failed."""
    done = write_run("mine", "slurp_lstm", 1986, {"test": {"accuracy": 80.0}})
    entries = [
        {"stage": "valid", "update": 5, "loss": 2.0, "accuracy": 70.0},
        {"stage": "valid", "update": 9, "loss": 1.0, "accuracy": 80.0},
    ]
    lines = "\n".join(map(json.dumps, entries))
    (done / "log.jsonl").write_text(lines)
    failed = write_run("mine", "iemocap_ecapa", 1986)
    (failed / "run_all.log").write_text("error: no <audio>\n" + "later\n" * 20)
    return {
        file.name: file for file in write_outputs(tmp_path, notes=["A note."])
    }


def test_all_files_are_there(written):
    assert list(written) == [
        "table.md",
        "table.csv",
        "results.csv",
        "layer_weights.csv",
        "layer_weights.png",
        "layer_weights.svg",
        "report.html",
    ]
    assert all(file.stat().st_size for file in written.values())


def test_text_in_the_figure_is_text(written):
    svg = written["layer_weights.svg"].read_text()
    assert ">SLURP LSTM</text>" in svg
    assert ">mine</text>" in svg


def test_the_page_has_table_figure_curves_failures_and_commands(written):
    page = written["report.html"].read_text()
    assert page.count("<svg") == 2
    assert "<td>80.0</td><td>failed</td>" in page
    assert "A note." in page and "Runs: 1 done, 1 failed." in page
    # Of the log: its last message of an error, and its end.
    assert "error: no &lt;audio&gt;\n...\nlater" in page
    command = "python &#x27;a recipe.py&#x27; --seed=1986"
    assert f"# done, 1 min 5 s\n{command}" in page
    assert f"# failed, 1 min 5 s\n{command}" in page


def test_nothing_to_show(tmp_path):
    assert write_outputs(tmp_path) == []


def test_the_curves_of_folds_are_found(write_run, tmp_path):
    folder = write_run("m", "iemocap_ecapa", 1986, {"utterances": {}})
    for fold in ("fold_1", "fold_2"):
        (folder / fold).mkdir()
        entry = {"stage": "valid", "update": 5, "loss": 2.0}
        (folder / fold / "log.jsonl").write_text(json.dumps(entry))
    page = write_outputs(tmp_path)[-1].read_text()
    assert "Validation: IEMOCAP ECAPA" in page
