"""One page about runs of pre-training, while they go on and afterwards."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from summarymixing.errors import UserError
from summarymixing.files import open_atomically
from summarymixing.html_page import Page
from summarymixing.run.history import (
    AUDIO,
    CLOCK,
    ENDED,
    GOING_ON,
    HEADER,
    SETTINGS_NAME,
    SILENT,
    STOPPED,
    UPDATES,
    RunHistory,
    compare_settings,
    settings_of,
)
from summarymixing.run.output_folder import LOG_NAME
from summarymixing.run.yaml_trees import OUTPUT_FOLDER
from summarymixing.training.watch_panels import (
    PANELS,
    Episode,
    Shown,
    draw_panels,
    prepare,
)

# A reference tells something about runs that share these settings.
COMPARABLE = (
    "num_layers",
    "d_model",
    "num_groups",
    "num_codes",
    "num_negatives",
    "mask_scheme",
)
# What a reference keeps beside the numbers that are drawn: for the judge, and
# for the place on the axes.
BESIDE_DRAWN = (
    "audio_hours",
    "chance",
    "contrastive_loss",
    "negatives_excluded",
    "skipped_updates",
)
MANIFESTS = "manifests"
KEPT_BY = "# A run that `recipes/pretraining/watch.py --keep` has kept."
WORRYING = {
    SILENT: "it logs nothing any more: it was killed, or is stuck. The end of "
    "its log.txt may tell why.",
    ENDED: "it has ended before its last update; the end of its log.txt tells "
    "why.",
}
NUMBERS = {
    "audio_hours_per_hour": "audio, hours per hour",
    "audio_hours": "hours of audio",
    "gpu_hours": "GPU hours (clock x processes)",
    "processes": "processes",
    "skipped_updates": "updates skipped as not finite",
}
EXPLANATION = (
    "Strong lines are validations, with fixed masks and negatives; thin ones "
    "are training. Where a log is long they are means, and a band goes from "
    "the smallest to the largest value. Triangles: filled, a verdict begins; "
    "hollow, values beyond the axis. Shaded: not healthy."
)


def make_page(
    runs: Mapping[str, RunHistory],
    reference: RunHistory | None,
    now: datetime.datetime,
) -> Page:
    """Return a page about runs, which may have just begun.

    Arguments
    ---------
    runs : mapping
        Name -> run; at least one.
    reference : RunHistory, optional
        A healthy run, drawn in grey.
    now : datetime
        When the page is made.
    """
    all_shown = prepare(runs)
    page = Page(f"Pre-training: {', '.join(runs)}", wide=True)
    page.paragraph(f"Made on {now:%Y-%m-%d at %H:%M:%S}.")
    for shown in all_shown:
        _say_what_is_wrong(page, shown, now)
    sound = [s.name for s in all_shown if s.run.entries and not s.lasting]
    if sound:
        page.paragraph(f"No verdict holds for {', '.join(sound)}.")
    columns = [_standing(run, now) for run in runs.values()]
    # In the order of a run that has all of them, where there is one.
    most_first = sorted(columns, key=len, reverse=True)
    titles = dict.fromkeys(title for column in most_first for title in column)
    page.table(
        ["", *runs],
        [[t, *(column.get(t, "") for column in columns)] for t in titles],
    )
    page.heading("Curves")
    page.legend(
        [(s.name, s.colour, " ".join(map(str, s.dashes))) for s in all_shown]
    )
    explanation = EXPLANATION
    if reference is not None:
        explanation += (
            f" Grey: {reference.folder.name}, a healthy run; on other audio "
            "its numbers differ somewhat."
        )
    page.paragraph(explanation)
    page.choice(
        "over",
        {
            axis: draw_panels(all_shown, reference, axis)
            for axis in (UPDATES, AUDIO, CLOCK)
        },
    )
    _add_settings(page, runs)
    _add_commands(page, runs)
    return page


def is_comparable(run: RunHistory, reference: RunHistory) -> bool:
    """Return whether a reference has the model and objective of a run."""
    return bool(run.settings) and all(
        run.settings.get(key) == reference.settings.get(key)
        for key in COMPARABLE
    )


def keep_reference(run: RunHistory, folder: Path) -> None:
    """Write a small copy of a run, to be drawn in grey behind others.

    Arguments
    ---------
    run : RunHistory
        A healthy run. UserError where its settings are lost.
    folder : Path
        Is made. It gets the settings without the paths, and three digits of
        what is drawn and does not depend on the machine.
    """
    if not run.starts:
        raise UserError(f"{run.folder} has no hyperparams.yaml that is whole")
    settings = copy.deepcopy(run.starts[-1].settings)
    settings.override(
        {name: f"({name})" for name in (MANIFESTS, OUTPUT_FOLDER)}
    )
    patterns = [p.key for p in PANELS if not p.of_machine] + [*BESIDE_DRAWN]
    lines = []
    for entry in run.of_stage("train", "valid"):
        kept = {"stage": entry["stage"], "update": entry["update"]}
        for name, value in entry.items():
            if any(fnmatch(name, pattern) for pattern in patterns):
                kept[name] = float(f"{value:.3g}")
        lines.append(json.dumps(kept, separators=(",", ":")) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {
        LOG_NAME: "".join(lines),
        # The command names paths, too.
        SETTINGS_NAME: HEADER.sub(KEPT_BY, settings.as_text()),
    }.items():
        with open_atomically(folder / name) as file:
            file.write(text)


def _say_what_is_wrong(
    page: Page, shown: Shown, now: datetime.datetime
) -> None:
    """Say in words what is wrong with a run, and what was."""
    name, run = shown.name, shown.run
    if trouble := WORRYING.get(run.state(now.timestamp())):
        page.paragraph(f"{name}: {trouble}", is_warning=True)
    for episode in shown.lasting:
        page.paragraph(
            f"{name}: {episode.verdict} since update {episode.since:,.0f}. "
            f"{episode.text}",
            is_warning=True,
        )
    past = [_describe_past(e) for e in shown.episodes if e.until is not None]
    if past:
        page.paragraph(f"{name}, earlier: {', '.join(past)}.")


def _describe_past(episode: Episode) -> str:
    when = f"at update {episode.since:,.0f}"
    if episode.until != episode.since:
        when = f"updates {episode.since:,.0f} to {episode.until:,.0f}"
    return f"{episode.verdict} ({when})"


def _standing(run: RunHistory, now: datetime.datetime) -> dict[str, str]:
    """Return what a run has come to, by the titles of the rows."""
    state = run.state(now.timestamp())
    shown = {
        "state": run.stopped if state == STOPPED else state,
        "update": f"{run.update:,}",
    }
    if run.max_updates:
        share = 100 * run.update / run.max_updates
        shown["update"] += f" of {run.max_updates:,} ({_percent(share, 0)})"
    if run.modified:
        written = datetime.datetime.fromtimestamp(run.modified)
        shown["last entry"] = f"{written:%Y-%m-%d %H:%M}"
    left = run.hours_left()
    if left is not None and state == GOING_ON:
        end = now + datetime.timedelta(hours=left)
        long = f"{left / 24:.1f} days" if left >= 24 else f"{left:.1f} h"
        shown["left at this speed"] = f"{long}\nuntil {end:%Y-%m-%d %H:%M}"
    for stage, when in (("valid", "validation"), ("train", "training")):
        shown |= {
            f"{name}, {when}": text for name, text in _results(run, stage)
        }
    waited = run.series("train", "seconds_waited_for_data", "seconds_training")
    if len(waited.values):
        share = 100 * waited.values[-1]
        shown["time spent waiting for audio"] = _percent(share, 0)
    for key, title in NUMBERS.items():
        if (value := run.latest("train", key)) is not None:
            digits = ".4g" if abs(value) < 1000 else ",.0f"
            shown[title] = f"{value:{digits}}"
    return shown


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}%"


def _results(run: RunHistory, stage: str) -> list[tuple[str, str]]:
    """Return the latest numbers that tell how well a run learns."""
    keys = ("loss", "accuracy", "chance", "code_perplexity", "codes")
    loss, accuracy, chance, used, codes = (run.latest(stage, k) for k in keys)
    found = []
    if loss is not None:
        found.append(("loss", f"{loss:.3f}"))
    if accuracy is not None:
        blind = "" if chance is None else f" (chance {_percent(100 * chance)})"
        found.append(("accuracy", f"{_percent(100 * accuracy)}{blind}"))
    if used is not None:
        of_all = "" if codes is None else f" of {codes:.0f}"
        found.append(("codes in use", f"{used:.1f}{of_all}"))
    return found


def _add_settings(page: Page, runs: Mapping[str, RunHistory]) -> None:
    """Add the settings that differ, between runs and within each."""
    page.heading("Settings")
    known = {name: run for name, run in runs.items() if run.settings}
    if unknown := [name for name in runs if name not in known]:
        page.paragraph(f"Not known of {', '.join(unknown)}.")
    rows = compare_settings([run.settings for run in known.values()])
    if rows:
        page.paragraph("Those that differ:")
        page.table(["", *known], [[name, *values] for name, values in rows])
    elif len(known) > 1:
        page.paragraph("All runs have the same, but for their folders.")
    for name, run in known.items():
        all_settings = [settings_of(start) for start in run.starts]
        for pair in zip(all_settings, all_settings[1:], strict=False):
            changes = _describe_changes(pair)
            page.paragraph(f"{name} went on with other settings: {changes}")
    if not rows and len(known) == 1:
        (run,) = known.values()
        if len(run.starts) == 1:
            page.paragraph("The same from the start, see the command.")


def _describe_changes(pair: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(f"{k}: {a} -> {b}" for k, (a, b) in compare_settings(pair))


def _add_commands(page: Page, runs: Mapping[str, RunHistory]) -> None:
    page.heading("What was run")
    page.paragraph(
        "As each run has noted it; torchrun and its options stood before it."
    )
    page.commands(
        [
            line
            for name, run in runs.items()
            for start in run.starts
            for line in (f"# {name}, {start.date}", start.command)
        ]
    )
