"""Plans: the presets fit, a probe agrees, what cannot fit says what would."""

import re

import pytest

from recipes import plan
from summarymixing.errors import UserError
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.training.worst_update import WorstUpdate
from tests.conftest import ROOT

FOLDER = ROOT / "hparams/pretraining"
PRESETS = sorted(FOLDER.glob("*gb.yaml"), key=lambda path: len(path.name))


def usable(gpu_memory):
    return (gpu_memory * plan.USABLE_SHARE - plan.DRIVER_GIB) * plan.GIB


@pytest.mark.parametrize("file", PRESETS, ids=lambda path: path.stem)
def test_presets_fit_and_fill_their_gpu(file):
    text = file.read_text("utf-8")
    memory = float(re.search(r"--gpu_memory=(\S+)", text)[1])
    gpus = int(re.search(r"--gpus=(\S+)", text)[1])
    assert file.stem.endswith(f"_{memory:g}gb")
    recipe = HparamsFile.read(file)
    recipe.override({"manifests": "M", "output_folder": "O"})
    value = recipe.value
    planner = plan.Planner(recipe, 30.0, gpus)
    utterances = value("max_batch_seconds") // 30
    peak = planner.trace(value("memory_budget"), utterances).peak
    assert 0.75 * usable(memory) < peak <= usable(memory)
    seconds = value("max_batch_seconds") * value("accumulation") * gpus
    assert seconds == pytest.approx(5760, rel=0.03)


def test_the_batch_of_the_paper_fits_into_8_gib():
    recipe = HparamsFile.read(FOLDER / "summarymixing_base.yaml")
    recipe.override({"manifests": "M", "output_folder": "O"})
    update = WorstUpdate(recipe, longest_seconds=30.0, gpus=4).trace(0.3, 12)
    assert update.peak < 8 * plan.GIB


def test_a_plan_is_printed_written_and_probed(tmp_path, capsys):
    file = tmp_path / "small.yaml"
    file.write_text(f"# small\nbase: {FOLDER / 'tiny.yaml'}\nnum_layers: 2\n")
    arguments = [
        str(file),
        "--gpu_memory=1.06",
        "--update_seconds=400",
        "--longest_seconds=10",
        "--hours=100",
        "--d_model=64",
        "--num_heads=2",
        "--probe",
        f"--write={tmp_path / 'preset.yaml'}",
    ]
    plan.main(arguments)
    printed = capsys.readouterr().out
    found, predicted = map(
        float, re.findall(r"(\d\.\d\d)(?: GiB| pre)", printed)
    )
    assert found == pytest.approx(predicted, rel=0.1)
    settings = re.search(
        r"--max_batch_seconds=(\d+) --accumulation=(\d+) --memory_budget=\S+",
        printed,
    )
    assert int(settings[1]) * int(settings[2]) == pytest.approx(400, rel=0.15)
    assert "--d_model=64" in printed
    preset = HparamsFile.read(tmp_path / "preset.yaml")
    preset.override({"manifests": "M", "output_folder": "O"})
    assert preset.value("max_batch_seconds") == int(settings[1])
    assert preset.value("num_layers") == 2


def test_what_does_not_fit_says_what_would(monkeypatch):
    monkeypatch.setattr(plan, "BUDGETS", (1.0, 0.0))
    recipe = HparamsFile.read(FOLDER / "tiny.yaml")
    recipe.override({"manifests": "M", "output_folder": "O"})
    planner = plan.Planner(recipe, 10.0, 1)
    with pytest.raises(UserError, match="lower --num_layers"):
        planner.choose(30e6, 60.0)
    choice = planner.choose(50e6, 60.0)
    assert choice.memory_budget == 0
    assert choice.memory.peak <= 50e6
