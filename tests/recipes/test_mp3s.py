"""Every file of hparams/mp3s on the miniature of its corpus, as users do it.

Two updates and the whole evaluation, with smaller heads: their true sizes are
tested in tests/unit/lobes/test_heads.py.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from summarymixing import Wav2Vec2Encoder, miniature
from summarymixing.data.prepare import CORPORA
from summarymixing.lobes.encoders import SIGNAL_SAMPLES, FrozenEncoder
from summarymixing.pretrained import save_encoder
from summarymixing.run.launch import run
from summarymixing.suite.command_runner import TORCHRUN
from summarymixing.suite.tasks import benchmark_tasks
from summarymixing.training import probe as training_probe
from summarymixing.training.probe import probe, run_probe

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    path.stem: path
    for path in (ROOT / "hparams/mp3s").glob("*.yaml")
    if path.stem != "abx"  # trains nothing, see test_abx.py
}
UTTERANCES = {
    "train-clean-100": 5,
    "dev-clean": 2,
    "test-clean": 2,
    "test-other": 1,
}
FSDD = ROOT.parent / "shared" / "data" / "fsdd"
BUILDERS = {
    "librispeech": lambda dest: (
        miniature.build_librispeech(dest, utterances=UTTERANCES) / "LibriSpeech"
    ),
    "commonvoice_cy": lambda dest: next(
        miniature.build_commonvoice(dest, hours=0.01).glob("*/cy")
    ),
    "commonvoice_eu": lambda dest: next(
        miniature.build_commonvoice(dest, language="eu", hours=0.01).glob(
            "*/eu"
        )
    ),
    "slurp": lambda dest: miniature.build_slurp(dest, hours=0.01),
    "iemocap": lambda dest: miniature.build_iemocap(dest, hours=0.01),
    "voxceleb1": lambda dest: miniature.build_voxceleb1(dest, hours=0.01),
    "fsdd": lambda dest: FSDD,
}
PREPARE_OPTIONS = {"iemocap": {"expected_utterances": 0}}
# Heads that a CPU can afford.
SMALL_HEADS = {
    "lstm": "{hidden_size: 8}",
    "contextnet": "{num_blocks: 2, channels: [16, 16], out_channels: 16}",
    "linear": None,
    "ecapa": "{channels: [16, 16, 16, 16, 48]}",
    "xvector": "{channels: [16, 16, 16, 16, 48]}",
}
# The miniature has few transcripts for a tokenizer, the digits many tests.
FASTER = {
    "commonvoice_cy": ["--vocab_size=60"],
    "commonvoice_eu": ["--vocab_size=60"],
    "fsdd": ["--test_batch_size=50"],
}
METRICS = {
    "classification": ("accuracy", 0, 100),
    "verification": ("eer", 0, 100),
    "asr": ("wer", 0, 1000),
}
TASKS = benchmark_tasks()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    small = Wav2Vec2Encoder(
        num_layers=1, d_model=16, d_ffn=32, front_end_channels=8, num_mels=20
    )
    return save_encoder(small, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def manifests(tmp_path_factory):
    """Return a function that builds and prepares a corpus, once."""
    folder = tmp_path_factory.mktemp("corpora")

    def prepare(corpus):
        target = folder / corpus / "manifests"
        if not target.is_dir():
            if corpus == "fsdd" and not FSDD.is_dir():
                pytest.skip("the digits are not on this machine")
            source = BUILDERS[corpus](folder / corpus / "corpus")
            options = PREPARE_OPTIONS.get(corpus, {})
            name = corpus.partition("_")[0]
            CORPORA[name].plan(source, target, **options).run()
        return target

    return prepare


def corpus_of(stem):
    return TASKS[stem].corpus if stem in TASKS else "librispeech"


def command(stem, manifests, encoder, output_folder, *extra):
    head = SMALL_HEADS[stem.rpartition("_")[2]]
    words = [
        str(FILES[stem]),
        f"--encoder={encoder}",
        f"--manifests={manifests(corpus_of(stem))}",
        f"--output_folder={output_folder}",
        "--max_updates=2",
        "--num_workers=0",
        "--noprogressbar",
        "--device=cpu",
        *([f"--head={head}"] if head else []),
        *FASTER.get(corpus_of(stem), []),
        *extra,
    ]
    return words


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("stem", sorted(FILES))
def test_two_updates_and_the_evaluation(stem, manifests, encoder, tmp_path):
    run(run_probe, command(stem, manifests, encoder, tmp_path))
    metrics = read_metrics(tmp_path)
    assert metrics["updates"] == 2
    name, low, high = METRICS[metrics["task"]]
    for numbers in metrics["splits"].values():
        assert low <= numbers[name] <= high
        assert numbers["utterances"] > 0
        if numbers["utterances"] > 1:
            below, above = numbers[f"{name}_interval"]
            assert below <= numbers[name] <= above
    assert metrics["miniature"] == (corpus_of(stem) != "fsdd")
    assert (tmp_path / "layer_weights.png").stat().st_size > 0
    assert len(metrics["layer_weights"]) == 2


def test_every_file_is_of_a_known_corpus():
    assert {corpus_of(stem) for stem in FILES} == set(BUILDERS)


def test_intents_by_one_value(manifests, encoder, tmp_path):
    words = command("slurp_linear", manifests, encoder, tmp_path)
    run(probe, [*words, "--label=intent"])
    lines = (tmp_path / "predictions_test.csv").read_text().splitlines()[1:]
    assert all("_" in line.split(",")[1] for line in lines)


def test_all_folds_with_mean_and_deviation(manifests, encoder, tmp_path):
    words = command("iemocap_linear", manifests, encoder, tmp_path)
    run(run_probe, [*words, "--fold=all", "--max_updates=1"])
    metrics = read_metrics(tmp_path)
    folds = [
        read_metrics(tmp_path / f"fold_{n}")["splits"]["utterances"]
        for n in range(1, 11)
    ]
    joined = metrics["splits"]["utterances"]
    assert joined["utterances"] == sum(f["utterances"] for f in folds)
    accuracies = torch.tensor([f["accuracy"] for f in folds]).double()
    assert joined["accuracy"] == pytest.approx(accuracies.mean().item())
    assert joined["accuracy_std"] == pytest.approx(accuracies.std().item())
    low, high = joined["accuracy_interval"]
    assert low < joined["accuracy"] < high


def test_folds_and_seeds_encode_once(manifests, encoder, tmp_path, monkeypatch):
    """The numbers are those without stored states, bit for bit."""
    encode, encoded = FrozenEncoder.encode, []

    def spy(self, wav):
        if len(wav) != SIGNAL_SAMPLES:  # what tells encoders apart
            encoded.append(wav)
        return encode(self, wav)

    monkeypatch.setattr(FrozenEncoder, "encode", spy)
    monkeypatch.setattr(training_probe, "SPEAKERS", (1, 2))  # of ten folds

    def probe_folds(name, *extra):
        encoded.clear()
        folder = tmp_path / name
        words = command("iemocap_linear", manifests, encoder, folder)
        words = [w for w in words if w != "--max_updates=2"]
        states = f"--cache_folder={tmp_path / 'states'}"
        options = ["--fold=all", "--number_of_epochs=2", states, *extra]
        run(run_probe, [*words, *options])
        logs = [
            (folder / f"fold_{fold}" / "log.jsonl").read_text()
            for fold in (1, 2)
        ]
        return len(encoded), read_metrics(folder), logs

    table = manifests("iemocap") / "utterances.csv"
    total = len(table.read_text().splitlines()) - 1
    num_without, *without = probe_folds("off", "--cache_features=off")
    num_with, *stored = probe_folds("on", "--cache_features=on")
    assert stored == without
    assert num_without > 3 * total and num_with == total
    assert probe_folds("seed", "--seed=7")[0] == 0
    # Started again, a fold that is tested is left alone.
    monkeypatch.setattr(training_probe.ProbeBrain, "train_and_test", None)
    assert probe_folds("on", "--cache_features=on")[1:] == (*stored,)
    with pytest.raises(TypeError):
        probe_folds("on", "--cache_features=on", "--valid_batch_size=1")


def test_another_fold_needs_another_folder(
    manifests, encoder, tmp_path, capsys
):
    words = command("iemocap_linear", manifests, encoder, tmp_path)
    run(run_probe, [*words, "--fold=1"])
    with pytest.raises(SystemExit):
        run(run_probe, [*words, "--fold=2"])
    assert "fold" in capsys.readouterr().err


def test_mp3s_is_one_value(manifests, encoder, tmp_path):
    """Last epoch, encoder in train mode; short sentences left out."""
    counts = []
    for value in ("False", "True"):
        folder = tmp_path / value
        words = command("commonvoice_cy_linear", manifests, encoder, folder)
        run(probe, [*words, f"--reproduce_mp3s={value}"])
        counts.append(read_metrics(folder)["splits"]["test"]["utterances"])
        text = (folder / "hyperparams.yaml").read_text()
        assert f"reproduce_mp3s: {value.lower()}" in text
    assert counts[0] >= counts[1]


def test_features_without_an_encoder(manifests, tmp_path):
    run(probe, command("slurp_linear", manifests, "log_mel", tmp_path))
    metrics = read_metrics(tmp_path)
    assert metrics["parameters"]["encoder"] == 0
    assert metrics["layer_weights"] == [1.0]


def test_trials_of_another_corpus_end_before_training(
    manifests, encoder, tmp_path, capsys
):
    other = tmp_path / "trials.csv"
    other.write_text("target,enrol,test\n1,x,y\n0,x,z\n")
    task = f"--task={{trials: '{other}'}}"
    words = command("voxceleb1_ecapa", manifests, encoder, tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        run(probe, [*words, task])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "3 of 3 utterances" in message and "Traceback" not in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def read_scores(folder):
    """Return the trials of a test, and their scores."""
    lines = (folder / "scores_test.csv").read_text().splitlines()[1:]
    trials, scores = zip(*(line.rsplit(",", 1) for line in lines), strict=True)
    return trials, [float(score) for score in scores]


def test_two_processes_verify_as_one(manifests, encoder, tmp_path):
    """Batch norm, the margin and embeddings of unequal shares."""
    words = command("voxceleb1_ecapa", manifests, encoder, tmp_path)
    script = str(ROOT / "recipes/mp3s/verification.py")
    subprocess.run(
        [*TORCHRUN, "--nproc_per_node=2", script, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    metrics = read_metrics(tmp_path)
    trials, scores = read_scores(tmp_path)
    assert metrics["updates"] == 2
    run(probe, [*words, "--test_only"])
    alone = read_metrics(tmp_path)["splits"]["test"]
    both = metrics["splits"]["test"]
    interval = both.pop("eer_interval")
    assert alone.pop("eer_interval") == pytest.approx(interval, abs=1e-4)
    assert alone == pytest.approx(both, abs=1e-4)
    # Numbers of threads round differently.
    assert read_scores(tmp_path) == (trials, pytest.approx(scores, abs=1e-4))


@pytest.mark.parametrize(
    "change", ["--precision=bf16", "--max_batch_seconds=12"]
)
def test_one_value_makes_it_cheaper(change, manifests, encoder, tmp_path):
    words = command("voxceleb1_xvector", manifests, encoder, tmp_path)
    run(probe, [*words, change])
    assert 0 <= read_metrics(tmp_path)["splits"]["test"]["eer"] <= 100
