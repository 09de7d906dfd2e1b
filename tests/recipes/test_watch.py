"""The page about runs, as it is typed: written, and served while runs go on."""

import json
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from summarymixing.run.history import read_run
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.run.yaml_trees import flatten
from summarymixing.training.health import judge
from summarymixing.training.watch_page import COMPARABLE

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "pretraining" / "watch.py"
TINY = HparamsFile.read(Path("pretraining/tiny.yaml"))
TINY.override({"manifests": "/my/manifests"})


def add_entry(folder, update):
    entry = {"stage": "train", "update": update, "loss": 4.0, "accuracy": 0.1}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


@pytest.fixture
def run(tmp_path):
    """Return the folder of a run of tiny.yaml."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / ".lock").write_text("process 1 on a_machine\n")
    header = "# Written on 2026-11-01 by:\n# train.py --manifests=/my/audio\n"
    (folder / "hyperparams.yaml").write_text(header + TINY.as_text())
    add_entry(folder, 25)
    return folder


def test_the_page_is_written(type_command, run, tmp_path):
    page = tmp_path / "page.html"
    status, output, _ = type_command(run, f"--output={page}")
    assert status == 0 and output == f"Open {page.as_uri()}\n"
    text = page.read_text()
    assert "25 of 3,000" in text
    assert "Grey: reference_tiny" in text
    assert "fetch(" not in text


def test_what_cannot_be_read_or_written_is_one_message(
    type_command, run, tmp_path
):
    status, _, errors = type_command(run, tmp_path / "gone")
    assert status == 2 and errors.startswith("error: there is no folder")
    assert len(errors.splitlines()) == 1
    status, _, errors = type_command(run, f"--reference={tmp_path}")
    assert status == 2 and "is not the --output_folder of a run" in errors
    output = tmp_path / "gone" / "page.html"
    status, _, errors = type_command(run, f"--output={output}")
    assert status == 2 and f"error: {output}" in errors
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, errors = type_command(
            run, "--reference=none", f"--serve={port}"
        )
    assert status == 2
    assert errors.startswith(f"error: 127.0.0.1, port {port}: ")


def test_a_run_is_kept_small_and_without_its_paths(type_command, run, tmp_path):
    kept = tmp_path / "kept"
    entry = {"stage": "valid", "update": 50, "loss": 1.23456, "latents_rank": 9}
    machine = {"audio_hours_per_hour": 30.0, "layer_03_rank": float("nan")}
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps({**entry, **machine}) + "\n")
        verdict = {"stage": "verdict", "update": 50, "name": "slow_rank"}
        file.write(json.dumps({**verdict, "event": "raised"}) + "\n")
    status, _, errors = type_command(run, f"--keep={kept}")
    assert status == 0, errors
    lines = (kept / "log.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1]) == {
        "stage": "valid",
        "update": 50,
        "loss": 1.23,
        "latents_rank": 9.0,
        "layer_03_rank": pytest.approx(float("nan"), nan_ok=True),
    }
    settings = (kept / "hyperparams.yaml").read_text()
    assert "/my/" not in settings
    assert read_run(kept).settings["num_layers"] == "3"
    (run / "hyperparams.yaml").write_text("")
    status, _, errors = type_command(run, f"--keep={kept}")
    assert status == 2 and "hyperparams.yaml" in errors


def test_which_reference_is_drawn(script, run, monkeypatch):
    """Only the one that was chosen behind runs of another model."""
    monkeypatch.setattr(script, "make_page", lambda runs, drawn, now: drawn)
    assert script.Watch([run]).page().folder == script.REFERENCE
    assert script.Watch([run], None).page() is None
    text = TINY.as_text().replace("num_layers: 3", "num_layers: 4")
    (run / "hyperparams.yaml").write_text(text)
    assert script.Watch([run]).page() is None
    assert script.Watch([run], run).page().folder == run


def test_a_folder_given_twice_is_shown_once(script, run):
    same = run.parent / "mine" / ".." / "mine"
    assert script.Watch([run, same]).names == ["mine"]


@contextmanager
def serving(script, folders):
    """Serve a page about folders; yield a function that asks for a path."""
    watch = script.Watch(folders, reference=None)
    with script.Server(watch, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def get(path):
            address = f"http://127.0.0.1:{server.server_port}{path}"
            with urllib.request.urlopen(address, timeout=60) as answer:
                return answer.read().decode()

        yield get
        server.shutdown()


def test_a_served_page_is_renewed(script, run):
    with serving(script, [run]) as get:
        page, version = get("/"), get("/version")
        assert "25 of 3,000" in page
        assert f'"{version}"' in page and "location.reload" in page
        assert get("/") == page  # nothing is drawn again
        add_entry(run, 50)
        assert get("/version") != version
        assert "50 of 3,000" in get("/")


def test_nothing_else_is_served_and_a_lost_folder_ends_nothing(script, run):
    with serving(script, [run]) as get:
        for path in ("/log.jsonl", "/../mine/log.jsonl", "/version/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(path)
        away = run.rename(run.with_name("away"))
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get("/version")
        away.rename(run)
        assert get("/version")


def test_a_run_that_falls_silent_renews_the_page(script, run, monkeypatch):
    watch = script.Watch([run], reference=None)
    before = watch.version()
    written = (run / "log.jsonl").stat().st_mtime
    monkeypatch.setattr(script.time, "time", lambda: written + 86400)
    assert watch.version() != before


def test_the_reference_is_a_healthy_run_of_tiny(script):
    reference = read_run(script.REFERENCE)
    assert reference.update == reference.max_updates == 3000
    tiny = dict(flatten(TINY.tree))
    patience = int(tiny["health_patience_updates"])
    assert judge(reference.entries, patience) == []
    for key in COMPARABLE:
        assert reference.settings[key] == tiny[key], key
    assert reference.latest("train", "accuracy") > 0.35
    files = list(script.REFERENCE.iterdir())
    assert sum(file.stat().st_size for file in files) < 65_000
