"""The report page: self-contained, escaped, and drawn from the log."""

import re

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from summarymixing.html_page import (
    COLOURS,
    COLUMN_WIDTH,
    PAGE_WIDTH,
    Page,
    draw_curves,
    draw_layer_weights,
    save_figure,
)


def make_page() -> Page:
    page = Page("A <run>")
    page.heading("Numbers & more")
    page.table(["encoder", "WER"], [["<b>mine</b>", 12.34567]])
    page.commands(["python a.py --x='1 < 2'"])
    return page


def test_text_is_escaped():
    text = make_page().html()
    assert "<b>mine</b>" not in text
    assert "A &lt;run&gt;" in text
    assert "1 &lt; 2" in text
    assert "12.35" in text


def test_page_loads_nothing_from_elsewhere(tmp_path):
    page = make_page()
    log = [
        {"stage": "valid", "update": update, "loss": 5.0 - update}
        for update in range(3)
    ]
    page.figure(
        draw_curves({"a": [log], "b": [log]}, {"loss": "loss"}), "curve"
    )
    page.figure(draw_layer_weights({"a": {"ASR": [0.2, 0.8]}}), "weights")
    text = page.write(tmp_path / "page.html").read_text("utf-8")
    assert text.count("<svg") == 2
    loaded = re.findall(r"(?:src|href)=[\"'](?!#|data:)[^\"']+", text)
    assert loaded == []


def test_figures_take_their_colours_from_the_page():
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([0, 1], [0.00015, 0.00025], color=COLOURS[1])
    axes.set_title("0.00015 is < 0.00025")
    page = Page("A run")
    page.choice("over", {"updates": [(figure, "caption")]})
    (svg,) = re.findall("<svg.*</svg>", page.html(), flags=re.DOTALL)
    assert "stroke: var(--colour1)" in svg and "fill: var(--paper)" in svg
    assert not re.search("#[0-9a-f]{6}", svg)
    # Coordinates are short, and texts are as they were written.
    assert ">0.00015 is &lt; 0.00025</text>" in svg
    assert "system-ui, sans-serif;" in svg and "DejaVu" not in svg
    coordinates = re.findall(r" d=\"(.*?)\"", svg, flags=re.DOTALL)
    assert coordinates
    assert not re.search(r"\d\.\d{2}", "".join(coordinates))


def test_one_group_of_figures_is_seen_at_a_time():
    page = Page("A run", wide=True)
    groups = {
        name: [(Figure(figsize=(1, 1)), f"over {name}")]
        for name in ("updates", "<hours>")
    }
    page.choice("over", groups)
    page.choice("in", groups)
    text = page.html()
    assert text.count("<figure>") == 4
    assert text.count(" checked>") == 2  # without a script, too
    names = re.findall(r'<input type="radio" name="(.*?)"', text)
    assert len(set(names)) == 2
    assert text.count('value="&lt;hours&gt;"') == 2
    assert text.count("<script>") == 1  # for both
    assert '<body class="wide">' in text


def test_a_legend_names_lines():
    page = Page("A run")
    page.legend([("<mine>", COLOURS[0], ""), ("other", COLOURS[1], "6 2")])
    text = page.html()
    assert "&lt;mine&gt;</span>" in text
    assert 'stroke="var(--colour1)" stroke-dasharray="6 2"' in text


def test_a_warning_stands_out():
    page = Page("A run")
    page.paragraph("1 < 2", is_warning=True)
    assert '<p class="warning">1 &lt; 2</p>' in page.html()


def test_curves_show_validations():
    log = [
        {"stage": "train", "update": 1, "loss": 9.0},
        {"stage": "valid", "update": 1, "loss": 4.0},
        {"stage": "valid", "update": 2, "loss": 3.0},
    ]
    figure = draw_curves({"run": [log]}, {"loss": "loss"})
    line, _ = figure.axes[0].lines
    assert line.get_ydata().tolist() == [4.0, 3.0]


def test_runs_of_a_group_share_a_colour_and_a_name():
    log = [{"stage": "valid", "update": 1, "loss": 4.0}]
    figure = draw_curves({"a": [log, log], "b": [log]}, {"loss": "loss"})
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    first, second, other = (line.get_color() for line in drawn)
    assert first == second != other
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["a", "b"]


def test_a_wide_table_may_be_scrolled_and_cells_may_stand_out():
    page = Page("A run")
    page.table(["a\nb"] * 9, [["<1>"] * 9], bold=[(0, 2)])
    text = page.html()
    assert '<div class="wide"><table>' in text
    assert text.count("<td><b>&lt;1&gt;</b></td>") == 1
    assert text.count("<td>&lt;1&gt;</td>") == 8
    assert "<th>a\nb</th>" in text and "pre-line" in text


def panel(layers, *tasks):
    return {task: np.full(layers, 1 / layers) for task in tasks}


def test_panels_share_columns_and_scale():
    figure = draw_layer_weights(
        {
            "base": {"ASR": [0.2, 0.8], "ER": [0.5, 0.5]},
            "mhsa": {"ASV": [0.9, 0.1]},
        },
        tasks=["ASR", "ASV", "ER"],
    )
    base, mhsa, bar = figure.axes
    for axes in (base, mhsa):
        (image,) = axes.images
        assert image.get_clim() == (0, 0.9)
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert names == ["ASR", "ASV", "ER"]
        assert axes.images[0].origin == "lower"
    np.testing.assert_equal(
        base.images[0].get_array().filled(-1), [[0.2, -1, 0.5], [0.8, -1, 0.5]]
    )
    assert bar.get_ylabel() == "weight"


@pytest.mark.parametrize(
    ("layers", "tasks", "width", "rows"),
    [
        ([13], "abcdefg", COLUMN_WIDTH, 1),
        ([13, 13], "abcdefg", COLUMN_WIDTH, 1),
        ([13, 25, 13], "abcdefg", PAGE_WIDTH, 1),
        ([13] * 5, "abcdefg", PAGE_WIDTH, 2),
        ([13, 13], "abcdefghijkl", PAGE_WIDTH, 1),
    ],
)
def test_figures_have_the_width_of_a_column_or_a_page(
    layers, tasks, width, rows
):
    panels = {
        str(number): panel(count, *tasks) for number, count in enumerate(layers)
    }
    figure = draw_layer_weights(panels)
    assert figure.get_figwidth() == width
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == len(layers)
    assert shown[0].get_gridspec().nrows == rows
    for axes, count in zip(shown, layers, strict=True):
        assert axes.get_ylim() == (-0.5, count - 0.5)


def test_long_names_leave_room_for_the_layers():
    names = ["miniature LibriSpeech ContextNet", "b"]
    figure = draw_layer_weights({"a": panel(4, *names), "b": panel(4, *names)})
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert box.height / figure.dpi > 0.5


def test_figures_are_saved_for_print_and_for_editing(tmp_path):
    figure = draw_layer_weights({"mine": panel(3, "ASR")})
    png, svg = save_figure(figure, tmp_path / "v1.2_weights")
    assert png.name == "v1.2_weights.png"
    before = svg.read_text()
    save_figure(
        draw_layer_weights({"mine": panel(3, "ASR")}), png.with_suffix("")
    )
    assert svg.read_text() == before
    pixels = matplotlib.image.imread(png)
    assert pixels.shape[1] == round(300 * COLUMN_WIDTH)
    assert ">ASR</text>" in svg.read_text()
