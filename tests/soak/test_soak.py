"""A quick version of `python -m tests.soak`, through the same functions."""

import json
from dataclasses import asdict

import pytest
import torch

from tests.soak.__main__ import as_markdown, prepare_audio
from tests.soak.bad_audio import break_audio
from tests.soak.kills import SMALL, differences, soak, unequal

QUICK = {
    **SMALL,
    "num_workers": 0,
    "accumulation": 1,
    "max_updates": 16,
    "checkpoint_every_updates": 2,
    "log_every_updates": 1,
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    return prepare_audio(tmp_path_factory.mktemp("audio"), None, hours=0.02)


def test_a_run_that_is_killed_ends_as_a_straight_one(manifests, tmp_path):
    done = soak(
        "quick",
        tmp_path,
        manifests,
        QUICK,
        processes=1,
        kills=2,
        aims=("saving", "update"),
    )
    assert done.passed, done
    assert [kill.victims for kill in done.kills] == ["all"] * 2
    assert sum(round_["starts"] for round_ in done.rounds) >= 3
    straight, killed = (
        tmp_path / f"quick-{which}" for which in ("straight", "killed-1")
    )
    # What is not equal is found.
    log = killed / "log.jsonl"
    first, *others = log.read_text().splitlines(keepends=True)
    entry = json.loads(first)
    entry["loss"] += 1e-15 * entry["loss"]
    log.write_text("".join([json.dumps(entry) + "\n", *others]))
    (difference,) = differences(straight, killed)
    assert difference.startswith("log[0].loss: ")
    done.rounds[0]["differences"] = [difference]
    assert not done.passed
    part = {**asdict(done), "minutes": 1.0}
    report = {"minutes": 1, "audio": "", "runs": {"a": part}, "passed": False}
    assert f"- FAILED: {difference}" in as_markdown(report)


def test_damaged_audio_does_what_is_documented(manifests, tmp_path):
    checks = break_audio(tmp_path / "damaged", manifests, one_by_one=False)
    assert len(checks) == 5
    assert all(check["passed"] for check in checks), checks


@pytest.mark.parametrize(
    ("other", "places"),
    [
        ({"a": [torch.tensor([float("nan"), 0.0])], "b": 1}, []),
        ({"a": [torch.tensor([float("nan"), -0.0])], "b": 1}, ["x.a[0]"]),
        ({"a": [], "b": 2}, ["x.a: 1 and 0 of them", "x.b: 1 and 2"]),
        ({"a": [torch.zeros(2)]}, ["x: ['b']"]),
    ],
)
def test_equal_means_equal_to_the_bit(other, places):
    value = {"a": [torch.tensor([float("nan"), 0.0])], "b": 1}
    assert unequal("x", value, other) == places
