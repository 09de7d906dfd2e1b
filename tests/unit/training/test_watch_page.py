"""The page about runs: what it says in words, and what it draws."""

import datetime
import html
import json
import math
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex

from summarymixing.html_page import COLOURS
from summarymixing.run.history import AUDIO, UPDATES, read_run
from summarymixing.training.watch_page import is_comparable, make_page
from summarymixing.training.watch_panels import (
    PANELS,
    UNHEALTHY,
    PanelDrawing,
    draw_panels,
    episodes_of,
    prepare,
)
from tests.conftest import ROOT

REFERENCE = ROOT / "recipes/pretraining/reference_tiny"
SETTINGS = """# Written on 2026-11-01 by:
# train.py tiny.yaml --learning_rate={rate}
learning_rate: {rate}
max_updates: 1000
num_layers: 3
num_groups: 2
num_codes: 64
num_negatives: 100
"""
RAISED = {
    "stage": "verdict",
    "update": 75,
    "name": "codebook_collapse",
    "event": "raised",
    "since": 25,
    "message": "9.8 of 128 codes are <in> use",
    "advice": "Raise --diversity_weight.",
}
CLEARED = {
    "stage": "verdict",
    "update": 100,
    "name": "codebook_collapse",
    "event": "cleared",
    "since": 25,
}
RETURNED = {
    "stage": "verdict",
    "update": 50,
    "name": "divergence",
    "event": "returned",
    "from_update": 90,
    "message": "went back from update 90 to 50",
}
ODD_NAME = "a <b> & $x_1$ é"


def train(update, **metrics):
    return {
        "stage": "train",
        "update": update,
        "loss": 4.0 - update / 100,
        "accuracy": 0.2,
        "chance": 0.01,
        "code_perplexity": 96.0,
        "negatives_excluded": 0.1,
        "masked_share": 0.65,
        "audio_hours": update / 4,
        "audio_hours_per_hour": 20.0,
        "seconds_training": 1125.0,
        "seconds_waited_for_data": 112.5,
        **metrics,
    }


def valid(update):
    numbers = {"loss": 3.0, "accuracy": 0.3, "code_perplexity": 90.0}
    ranks = {"latents_rank": 20.0, "layer_00_rank": 9.0, "layer_03_rank": 40.0}
    return {"stage": "valid", "update": update, **numbers, **ranks}


def write_run(folder, *entries, rate="0.001"):
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text("process 1 on a_machine\n")
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (folder / "log.jsonl").write_text("".join(lines))
    (folder / "hyperparams.yaml").write_text(SETTINGS.format(rate=rate))
    return read_run(folder)


@pytest.fixture
def write(tmp_path):
    return lambda name, *entries: write_run(tmp_path / name, *entries)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    updates = range(25, 125, 25)
    entries = [entry for n in updates for entry in (train(n), valid(n))]
    odd = write_run(folder / ODD_NAME, *entries, RAISED, rate="0.005")
    verdicts = RAISED, CLEARED, RETURNED
    other = write_run(folder / "other", *entries, *verdicts)
    return {ODD_NAME: odd, "other": other}


@pytest.fixture(scope="module")
def shown(runs):
    """Return what `page_of` does of two runs, made once."""
    healthy = [train(n) for n in range(25, 1025, 25)]
    folder = runs["other"].folder.with_name("healthy")
    return page_of(runs, write_run(folder, *healthy))


def page_of(runs, reference=None, seconds=60.0):
    """Return the page, its text without marks, and its figures by group."""
    written = max(run.modified for run in runs.values())
    now = datetime.datetime.fromtimestamp(written + seconds)
    page = make_page(runs, reference, now).html()
    groups = page.split('<div class="figures">')[1:]
    figures = [re.findall("<svg.*?</svg>", g, re.DOTALL) for g in groups]
    return page, html.unescape(re.sub(r"<[^>]*>", " ", page)), figures


def test_the_page_says_in_words_how_the_runs_do(shown):
    page, text, _ = shown
    assert (
        f"{ODD_NAME}: codebook collapse since update 25. 9.8 of 128 codes are "
        "<in> use. Raise --diversity_weight." in text
    )
    assert "No verdict holds for other." in text
    assert (
        "other, earlier: divergence: went back (at update 50), codebook "
        "collapse (updates 25 to 100)." in text
    )
    for row in (
        ["state", "going on", "going on"],
        ["update", "100 of 1,000 (10 %)", "100 of 1,000 (10 %)"],
        ["accuracy, validation", "30.0 %", "30.0 %"],
        ["accuracy, training", *["20.0 % (chance 1.0 %)"] * 2],
        ["codes in use, training", "96.0 of 128", "96.0 of 128"],
        ["time spent waiting for audio", "10 %", "10 %"],
        ["audio, hours per hour", "20", "20"],
    ):
        cells = "</td><td>".join(row).replace(" %", "\N{NO-BREAK SPACE}%")
        assert f"<td>{cells}</td>" in page, row
    # 900 updates of the 1,000 are left, and 25 of them take 1,125 s.
    assert "11.2 h\nuntil" in page


def test_settings_that_differ_and_commands(shown):
    page, text, _ = shown
    assert "<td>learning_rate</td><td>0.005</td><td>0.001</td>" in page
    assert "<td>num_layers</td>" not in page
    assert f"# {ODD_NAME}, 2026-11-01\ntrain.py tiny.yaml" in text


def test_names_are_no_html_and_no_formulae(shown):
    page, _, figures = shown
    assert "<b>" not in page
    label = html.escape(ODD_NAME[:12], quote=False) + "…"
    assert label in figures[0][1]


def test_the_page_needs_nothing_else(shown):
    page, _, _ = shown
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)|url\((?!#)", page)
    assert "<link" not in page and "@import" not in page
    # Names of namespaces load nothing.
    assert page.count("http") == page.count('="http://www.w3.org')
    assert "fetch(" not in page


def test_every_axis_has_every_panel(shown):
    _, _, figures = shown
    assert len(figures) == 3
    assert len({len(group) for group in figures}) == 1
    for group, axis in zip(figures, ("updates", "audio", "clock"), strict=True):
        assert all(axis in figure for figure in group)


def test_a_run_that_has_just_begun_and_one_that_is_silent(write):
    runs = {"new": write("new")}
    page, _, figures = page_of(runs)
    assert "<td>nothing logged yet</td>" in page
    assert figures == [[], [], []]
    _, text, _ = page_of(runs, seconds=2 * 86400)
    assert "new: it logs nothing any more" in text


def test_a_log_of_version_0_1_0_is_judged_by_its_numbers(write):
    names = ("masked_share", "seconds_training", "chance")
    entries = [train(n, code_perplexity=3.0) for n in range(25, 150, 25)]
    for entry in entries:
        for name in names:
            del entry[name]
    (episode,) = episodes_of(write("old", *entries))
    assert episode.verdict == "codebook collapse" and episode.until is None
    # The same numbers of a run that judges itself: what it logs counts.
    entries[0]["masked_share"] = 0.65
    assert episodes_of(write("new", *entries)) == []


def panel(key):
    (found,) = (panel for panel in PANELS if panel.key == key)
    return found


def draw(key, *runs, axis=UPDATES):
    """Return a finished panel of runs."""
    drawing = PanelDrawing(
        panel(key), prepare({f"run {n}": r for n, r in enumerate(runs)}), axis
    )
    drawing.finish()
    return drawing


def points_of(drawing, marker):
    """Return the places with a marker, by its colour."""
    return {
        line.get_color(): np.asarray(line.get_xdata()).tolist()
        for line in drawing.axes.lines
        if line.get_marker() == marker and len(line.get_xdata())
    }


def test_curves_end_where_their_names_stand(runs):
    drawing = draw("accuracy", *runs.values())
    names = {t.get_text(): t.get_color() for t in drawing.axes.texts}
    assert names == {"run 0": COLOURS[0], "run 1": COLOURS[1]}
    low, high = sorted(t.get_position()[1] for t in drawing.axes.texts)
    assert high - low >= 0.079  # both end at 30 %
    lines = [line for line in drawing.axes.lines if len(line.get_xdata()) > 1]
    values = [line.get_ydata()[-1] for line in lines[:2]]
    assert values == pytest.approx([20.0, 30.0])


def test_the_output_is_the_last_layer(runs):
    drawing = draw("layer_*_rank", *runs.values())
    assert drawing.axes.lines[0].get_ydata()[0] == 40.0


def test_verdicts_stand_on_every_axis(runs):
    odd = runs[ODD_NAME]
    assert points_of(draw("loss", odd), "v") == {COLOURS[0]: [25.0]}
    over_audio = draw("loss", odd, axis=AUDIO)
    assert points_of(over_audio, "v") == {COLOURS[0]: [6.25]}
    figure, _ = next(draw_panels(prepare(runs), None, AUDIO))
    bars = [list(line.get_xdata()) for line in figure.axes[0].lines]
    assert bars == [[6.25, 25.0], [12.5, 12.5], [6.25, 25.0]]


def test_values_that_are_not_finite_are_marked(write):
    run = write(
        "run", train(25), train(50, loss=math.nan), train(75, loss=None)
    )
    drawing = draw("loss", run)
    assert points_of(drawing, "x") == {COLOURS[0]: [50.0, 75.0]}
    assert "not finite" in drawing.caption
    only = draw("loss", write("run", train(25, loss=math.nan)))
    assert not only.is_empty


def test_a_spike_neither_flattens_the_rest_nor_is_lost(write):
    entries = [train(n, loss=3.0 + n % 2) for n in range(1, 2001)]
    entries[999]["loss"] = 1e6
    drawing = draw("loss", write("long", *entries))
    bottom, top = drawing.axes.get_ylim()
    assert 0 < bottom < 3.0 and 4.0 < top < 1e5
    (beyond,) = points_of(drawing, "^").values()
    assert beyond == [pytest.approx(1000, abs=20)]
    most = max(len(line.get_xdata()) for line in drawing.axes.lines)
    assert most <= 200


def test_what_is_not_healthy_is_shaded(write):
    low = draw("code_perplexity", write("run", train(1, code_perplexity=6.4)))
    (shade,) = low.axes.patches
    edge = shade.get_y() + shade.get_height()
    assert edge == pytest.approx(100 * (2 + 0.2 * 126) / 128)
    waiting = draw("seconds_waited_for_data", write("run", train(1)))
    assert not waiting.axes.patches  # 10 % is healthy, 20 % is not seen
    entry = train(1, seconds_waited_for_data=900.0)
    waiting = draw("seconds_waited_for_data", write("run", entry))
    assert waiting.axes.patches[0].get_y() == pytest.approx(20.0)


def test_bounds_of_their_own_have_the_colours_of_the_runs(write):
    """Of a blind guess: the same but for the batch, and ten times as good."""
    first = train(1, accuracy=0.0, chance=0.0100)
    alike = write("alike", {**first, "chance": 0.0101})
    other = write("other", {**first, "chance": 0.1})
    one = draw("accuracy", write("first", first), alike).axes.patches
    two = draw("accuracy", alike, write("high", train(1)), other).axes.patches
    colours = [[to_hex(p.get_facecolor()) for p in ps] for ps in (one, two)]
    assert colours == [[UNHEALTHY], [COLOURS[0], COLOURS[2]]]


def test_a_reference_is_drawn_as_far_as_the_runs_have_come(write, runs, shown):
    updates = range(25, 1025, 25)
    healthy = write("healthy", *map(train, updates), *map(valid, updates))
    run = runs["other"]
    drawing = PanelDrawing(panel("loss"), prepare({"run": run}), UPDATES)
    before = len(drawing.axes.lines)
    drawing.add_reference(healthy)
    grey = drawing.axes.lines[before:]
    assert len(grey) == 2
    assert all(line.get_xdata()[-1] == 100.0 for line in grey)
    _, text, _ = shown
    assert "Grey: healthy, a healthy run" in text


def test_a_reference_is_of_the_same_model(write):
    healthy, other = write("healthy", train(25)), write("other", train(25))
    assert is_comparable(other, healthy)
    text = SETTINGS.format(rate=1).replace("num_codes: 64", "num_codes: 320")
    (other.folder / "hyperparams.yaml").write_text(text)
    assert not is_comparable(read_run(other.folder), healthy)
    (other.folder / "hyperparams.yaml").unlink()
    assert not is_comparable(read_run(other.folder), healthy)


def test_more_runs_than_colours(write):
    many = [write(f"run_{n}", train(25)) for n in range(9)]
    shown = prepare({run.folder.name: run for run in many})
    looks = {(one.colour, one.dashes) for one in shown}
    assert len(looks) == 9
    assert not draw("loss", *many).axes.texts  # the legend has the names


@pytest.mark.parametrize(
    "key",
    [p.key for p in PANELS if not p.of_machine and p.key != "abx_across"],
)
def test_a_real_run_logs_what_is_drawn(key):
    """The shipped reference is the log of one, without times or items."""
    assert not draw(key, read_run(REFERENCE)).is_empty
