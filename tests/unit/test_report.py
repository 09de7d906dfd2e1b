"""The report page: self-contained, escaped, and drawn from the log."""

import re

from summarymixing.report import Report, draw_curves, draw_layer_columns


def make_report() -> Report:
    report = Report("A <run>")
    report.heading("Numbers & more")
    report.table(["encoder", "WER"], [["<b>mine</b>", 12.34567]])
    report.commands(["python a.py --x='1 < 2'"])
    return report


def test_text_is_escaped():
    page = make_report().html()
    assert "<b>mine</b>" not in page
    assert "A &lt;run&gt;" in page
    assert "1 &lt; 2" in page
    assert "12.35" in page


def test_page_loads_nothing_from_elsewhere(tmp_path):
    report = make_report()
    log = [
        {"stage": "valid", "update": update, "loss": 5.0 - update}
        for update in range(3)
    ]
    report.figure(draw_curves({"a": log, "b": log}, {"loss": "loss"}), "curve")
    report.figure(draw_layer_columns({"ASR": [0.2, 0.8]}), "weights")
    page = report.write(tmp_path / "report.html").read_text("utf-8")
    assert page.count("<svg") == 2
    loaded = re.findall(r"(?:src|href)=[\"'](?!#|data:)[^\"']+", page)
    assert loaded == []


def test_curves_show_one_stage():
    log = [
        {"stage": "train", "update": 1, "loss": 9.0},
        {"stage": "valid", "update": 1, "loss": 4.0},
        {"stage": "valid", "update": 2, "loss": 3.0},
    ]
    figure = draw_curves({"run": log}, {"loss": "loss"})
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [4.0, 3.0]
