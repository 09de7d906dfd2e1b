"""Training, resuming and testing a probe, in one process."""

import json
import math
import re
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count, repeat

import pytest
import torch
from speechbrain.nnet.schedulers import LinearScheduler

from summarymixing import Wav2Vec2Encoder
from summarymixing.errors import UserError
from summarymixing.lobes.encoders import digest, load_frozen_encoder
from summarymixing.pretrained import save_encoder
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.hparams_file import load_hparams
from summarymixing.run.records import read_metrics
from summarymixing.run.stopping import Stopped
from summarymixing.training import task_brain
from summarymixing.training.probe import ProbeBrain, make_brain, probe
from summarymixing.training.probe_task import ProbeTask

RUN_OPTIONS = {"device": "cpu", "noprogressbar": True}
SPLITS = {"train-clean-100": 5, "dev-clean": 3, "test-clean": 3}
TEXTS = ["AB", "BA BA", "BC", "AC", "C AB"]


@pytest.fixture(scope="module")
def material(tmp_path_factory, write_split):
    """Return a folder with an encoder and three manifests."""
    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    for split, num_utterances in SPLITS.items():
        texts = TEXTS[:num_utterances]
        write_split(folder, split, [{"transcript": text} for text in texts])
    encoder = Wav2Vec2Encoder(
        num_layers=2, d_model=16, d_ffn=32, front_end_channels=8, num_mels=20
    )
    save_encoder(encoder, folder / "encoder")
    return folder


def make_hparams(material, output_folder, **overrides):
    output_folder.mkdir(exist_ok=True)
    settings = {
        "encoder": str(material / "encoder"),
        "manifests": str(material),
        "output_folder": str(output_folder),
        "test_splits": ["test-clean"],
        "number_of_epochs": 2,
        "batch_size": 2,
        "num_workers": 0,
        "head": {"hidden_size": 8, "num_layers": 2, "dropout": 0.5},
    }
    # JSON is YAML, so this is what a user could type.
    return load_hparams(
        "mp3s/tiny_lstm.yaml", json.dumps({**settings, **overrides})
    )


def run_probe(material, output_folder, **overrides):
    with suppress(Stopped):
        probe(make_hparams(material, output_folder, **overrides), RUN_OPTIONS)
    path = output_folder / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture(scope="module")
def straight_run(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, run_probe(material, folder)


def test_run_leaves_what_a_reader_needs(straight_run):
    folder, metrics = straight_run
    test = metrics["splits"]["test-clean"]
    assert test["utterances"] == SPLITS["test-clean"]
    assert {"wer", "cer", "loss", "unknown_tokens", "too_short"} < test.keys()
    assert (metrics["task"], metrics["epochs"]) == ("asr", 2)
    assert metrics["updates"] == 6  # 5 utterances, 2 in a batch, twice
    assert len(metrics["layer_weights"]) == 3
    assert sum(metrics["layer_weights"]) == pytest.approx(1)
    epochs = json.loads((folder / "layer_weights.json").read_text())["epochs"]
    assert [entry["epoch"] for entry in epochs] == [1, 2]
    assert epochs[0]["weights"] != epochs[1]["weights"]
    for name in ("wer_test-clean.txt", "layer_weights.png", "tokens.txt"):
        assert (folder / name).stat().st_size > 0
    saved = [path.name for path in folder.glob("checkpoints/*/*.ckpt")]
    assert "probe.ckpt" in saved
    assert not any("encoder" in name for name in saved)


def test_only_the_probe_learns(material, tmp_path):
    brain = make_brain(make_hparams(material, tmp_path), RUN_OPTIONS)
    encoder = brain.modules["encoder"]
    before = digest(encoder), digest(brain.model)
    brain.fit(brain.epochs(), brain.data.train, brain.data.valid)
    assert digest(encoder) == before[0]
    assert all(p.grad is None for p in encoder.parameters())
    assert digest(brain.model) != before[1]
    learned = [
        parameter
        for optimizer in brain.optimizers_dict.values()
        for group in optimizer.param_groups[:1]  # what SpeechBrain clips
        for parameter in group["params"]
    ]
    assert {id(p) for p in learned} == {id(p) for p in brain.model.parameters()}


def test_second_half_of_a_run_repeats_the_straight_run(
    material, tmp_path, straight_run
):
    run_probe(material, tmp_path, number_of_epochs=1)
    assert run_probe(material, tmp_path) == straight_run[1]


@pytest.mark.parametrize("num_updates", [1, 3, 5])
def test_stopped_run_goes_on_where_it_was(
    material, tmp_path, straight_run, monkeypatch, num_updates
):
    answers = iter([False] * (num_updates - 1) + [True])
    monkeypatch.setattr(
        task_brain, "stop_requested_anywhere", lambda: next(answers)
    )
    assert run_probe(material, tmp_path) is None
    monkeypatch.undo()
    assert run_probe(material, tmp_path) == straight_run[1]


@pytest.mark.parametrize("how", ["signal", "kill"])
@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("options", [{}, {"max_updates": 5}])
def test_end_during_a_validation_costs_that_validation_alone(
    material, tmp_path, monkeypatch, how, epoch, options
):
    options = {**options, "valid_batch_size": 1}
    calls = count(1)

    def is_in_validation():
        return next(calls) > (epoch - 1) * SPLITS["dev-clean"] + 1

    def killed(*arguments):
        if is_in_validation():
            raise SystemError
        return False

    monkeypatch.setattr(
        task_brain,
        "stop_requested",
        is_in_validation if how == "signal" else killed,
    )
    run = tmp_path / "run"
    if how == "kill":
        with pytest.raises(SystemError):
            run_probe(material, run, **options)
    else:
        assert run_probe(material, run, **options) is None
    monkeypatch.undo()
    trained = []
    start = ProbeBrain.on_fit_batch_start

    def note(self, batch, should_step):
        trained.append(self.optimizer_step + 1)
        start(self, batch, should_step)

    monkeypatch.setattr(ProbeBrain, "on_fit_batch_start", note)
    metrics = run_probe(material, run, **options)
    assert trained == list(range(3 * epoch + 1, metrics["updates"] + 1))
    assert metrics == run_probe(material, tmp_path / "straight", **options)
    assert read_metrics(run) == read_metrics(tmp_path / "straight")


def test_stop_during_the_test_leaves_only_the_test_to_do(
    material, straight_run, tmp_path, monkeypatch
):
    # The validations of two epochs are a batch each.
    answers = chain(repeat(False, 2), repeat(True))
    monkeypatch.setattr(task_brain, "stop_requested", lambda: next(answers))
    assert run_probe(material, tmp_path) is None
    monkeypatch.undo()
    assert run_probe(material, tmp_path) == straight_run[1]


def test_finished_run_is_only_tested_again(material, straight_run):
    folder, metrics = straight_run
    checkpoints = sorted(folder.glob("checkpoints/*"))
    assert run_probe(material, folder) == metrics
    assert sorted(folder.glob("checkpoints/*")) == checkpoints


def test_schedules_follow_the_validation(material, tmp_path):
    hparams = make_hparams(
        material, tmp_path, improvement_threshold=2.0, number_of_epochs=3
    )
    brain = make_brain(hparams, RUN_OPTIONS)
    brain.fit(brain.epochs(), brain.data.train, brain.data.valid)
    rates = {
        name: optimizer.param_groups[0]["lr"]
        for name, optimizer in brain.optimizers_dict.items()
    }
    # Never enough improvement: annealed after epochs 2 and 3.
    assert rates == pytest.approx(
        {"head_optimizer": 2e-3 * 0.8**2, "weights_optimizer": 1e-2 * 0.9**2}
    )


def test_max_updates_ends_a_run_early(material, tmp_path):
    metrics = run_probe(material, tmp_path, max_updates=4)
    assert (metrics["updates"], metrics["epochs"]) == (4, 2)


class FirstLetterTask(ProbeTask):
    """Which letter comes first? Trained on crops, tested on the last letter."""

    name = "letter"
    metrics = ("error_rate",)
    position = 0

    def fit(self, train, folder):
        self.outputs = sorted({self.letter(row) for row in train})

    def letter(self, row):
        return row.labels[self.label][self.position]

    def adapt(self, row, epoch):
        return replace(row, segments=((0.0, 0.1),), duration=0.1)

    def for_test(self):
        task = FirstLetterTask(label=self.label)
        task.outputs, task.position = self.outputs, -1
        return task

    def loss(self, predicted, padding_mask, rows):
        targets = [self.outputs.index(self.letter(row)) for row in rows]
        return torch.nn.functional.cross_entropy(
            predicted.mean(dim=1), torch.tensor(targets), reduction="none"
        )

    def score(self, predicted, padding_mask, rows):
        classes = predicted.mean(dim=1).argmax(dim=-1)
        return [
            self.outputs[c] != self.letter(row)
            for c, row in zip(classes, rows, strict=True)
        ]

    def summarise(self, scores):
        return {"error_rate": 100 * sum(scores) / len(scores)}


def test_another_task_is_a_class_of_its_own(material, tmp_path):
    hparams = make_hparams(material, tmp_path, anneal_on="epoch")
    task = FirstLetterTask(label="transcript")
    schedule = LinearScheduler(1e-3, 1e-4, 3)
    hparams |= {
        "task": task,
        "select_by": "error_rate",
        "head_schedule": schedule,
        "weights_schedule": None,
    }
    brain = make_brain(hparams, RUN_OPTIONS)
    batch = next(iter(brain.data.valid))
    assert batch.wavs.shape[1] > 1600
    brain.data.sampler.set_range(0, 1)
    assert next(iter(brain.data.train)).wavs.shape[1] == 1600
    brain.fit(brain.epochs(), brain.data.train, brain.data.valid)
    rate = brain.optimizers_dict["head_optimizer"].param_groups[0]["lr"]
    assert rate == pytest.approx(1e-4)  # for the third epoch
    # Always "B": right for the first letter of two of "AB", "BA BA", "BC",
    # but for the last letter of one.
    brain.model.head.linear.w.bias.data.copy_(torch.tensor([0.0, 50.0, 0.0]))
    brain.checkpointer.load_checkpoint = lambda _: None
    assert brain.test()["test-clean"]["error_rate"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    "accumulation, boundaries", [(1, [0, 3, 6]), (2, [0, 2, 3])]
)
def test_epochs_share_updates_without_repeating_batches(
    material, tmp_path, accumulation, boundaries
):
    hparams = make_hparams(material, tmp_path, accumulation=accumulation)
    data = make_brain(hparams, RUN_OPTIONS).data
    assert [data.first_update(e) for e in range(3)] == boundaries
    data.sampler.set_range(0, data.first_update(2))
    seen = [index for batch in data.sampler for _, index in batch]
    assert sorted(seen) == sorted([*range(5)] * 2)


def test_random_encoder_has_the_same_shape_and_other_weights(
    material, tmp_path
):
    given, drawn, again = (
        load_frozen_encoder(
            make_hparams(material, tmp_path, random_encoder=random)
        )
        for random in (False, True, True)
    )
    assert drawn.inner.config == given.inner.config
    assert digest(drawn) != digest(given)
    assert digest(drawn) == digest(again)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"encoder": "/nowhere"}, "/nowhere holds no encoder"),
        ({"manifests": "/nowhere"}, "no manifest /nowhere"),
        ({"test_splits": ["test-other"]}, "test-other.csv"),
        ({"task": {"label": "words"}}, "lacks the column words"),
        ({"num_outputs": 30}, "num_outputs is 30.*makes 6"),
        ({"precision": "int8"}, "precision must be one of fp32"),
        ({"select_by": "accuracy"}, "select_by must be one of .*wer"),
        ({"max_batch_seconds": 0.6}, "longer than a whole batch"),
        ({"accumulation": 9}, "3 batches, but one update takes 9"),
    ],
)
def test_mistakes_are_explained(material, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        make_brain(make_hparams(material, tmp_path, **overrides), RUN_OPTIONS)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"random_encoder": True}, "encoder: saved"),
        ({"seed": 7}, "seed: saved 1986, requested 7"),
        ({"batch_size": 1}, "batches_per_epoch was 3 and is 5"),
    ],
)
def test_another_run_does_not_go_on_in_the_same_folder(
    material, straight_run, overrides, message
):
    with pytest.raises(UserError, match=message):
        run_probe(material, straight_run[0], **overrides)


def test_untrained_probe_is_not_tested(material, tmp_path):
    brain = make_brain(make_hparams(material, tmp_path), RUN_OPTIONS)
    with pytest.raises(UserError, match="no checkpoint to test"):
        brain.test()


def test_unreadable_audio_ends_the_run_with_its_path(
    material, write_split, tmp_path
):
    write_split(tmp_path, "dev-clean", [{"transcript": TEXTS[0]}])
    for split in ("train-clean-100", "test-clean"):
        (tmp_path / f"{split}.csv").write_bytes(
            (material / f"{split}.csv").read_bytes()
        )
    (tmp_path / "dev-clean-0.wav").write_bytes(b"no audio")
    hparams = make_hparams(material, tmp_path, manifests=str(tmp_path))
    with pytest.raises(UserError, match="dev-clean-0.wav cannot be read"):
        probe(hparams, RUN_OPTIONS)


@pytest.fixture
def all_checkpoints_stay(monkeypatch):
    monkeypatch.setattr(
        AtomicCheckpointer, "delete_checkpoints", lambda *_, **__: None
    )


def damage(checkpoint):
    """Change the content of its meta data, but not the length."""
    path = checkpoint / "CKPT.yaml"
    path.write_text(re.sub(r"(?m)^epoch: \d", "epoch: 9", path.read_text()))


def test_damaged_checkpoint_does_not_say_where_the_run_goes_on(
    material, tmp_path, all_checkpoints_stay
):
    """The one before it was not yet validated, and that is made up for."""
    run_probe(material, tmp_path, number_of_epochs=1)
    brain = make_brain(make_hparams(material, tmp_path), RUN_OPTIONS)
    damage(brain.checkpointer.find_checkpoint().path)
    brain.on_fit_start()
    assert next(brain.epochs()) == 1


def test_report_is_about_the_checkpoint_that_was_tested(
    material, tmp_path, all_checkpoints_stay
):
    brain = make_brain(make_hparams(material, tmp_path), RUN_OPTIONS)
    brain.train_and_test()
    best = brain.checkpointer.find_checkpoint(min_key=brain.selected_by)
    damage(best.path)
    make_brain(make_hparams(material, tmp_path), RUN_OPTIONS).test()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["valid"]["epoch"] == 3 - best.meta["epoch"]


@pytest.mark.parametrize("bad", [1, 2])
def test_epoch_without_a_finite_loss_is_not_the_best(
    material, tmp_path, monkeypatch, bad
):
    summarise = ProbeBrain._summarise

    def diverged(self):
        broken = self.optimizer_step == 3 * bad
        return summarise(self) | ({"loss": math.nan} if broken else {})

    monkeypatch.setattr(ProbeBrain, "_summarise", diverged)
    metrics = run_probe(material, tmp_path, select_by="loss")
    assert metrics["valid"]["epoch"] == 3 - bad


def test_run_goes_on_at_the_constant_rate_that_is_asked_for(material, tmp_path):
    constant = {"weights_schedule": None, "number_of_epochs": 1}
    run_probe(material, tmp_path, **constant)
    constant |= {"number_of_epochs": 2, "weights_learning_rate": 0.5}
    run_probe(material, tmp_path, **constant)
    rates = [
        entry["weights_learning_rate"]
        for entry in read_metrics(tmp_path)
        if entry["stage"] == "train"
    ]
    assert rates == [0.01, 0.5]


def test_reached_limit_of_updates_leaves_the_log_alone(material, tmp_path):
    options = {**RUN_OPTIONS, "optimizer_step_limit": 2}
    logs = []
    for _ in range(2):
        probe(make_hparams(material, tmp_path), options)
        logs.append(read_metrics(tmp_path)[0])
    assert logs[0] == logs[1]
