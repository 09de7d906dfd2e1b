"""From a miniature LibriSpeech to a fine-tuned recogniser."""

import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from summarymixing import Wav2Vec2Encoder
from summarymixing.data.prepare import CORPORA
from summarymixing.errors import UserError
from summarymixing.miniature import build_librispeech
from summarymixing.pretrained import save_encoder
from summarymixing.run.hparams_file import load_hparams
from summarymixing.run.launch import run
from summarymixing.run.stopping import Stopped
from summarymixing.training import finetuning, task_brain
from summarymixing.training.finetuning import (
    FineTuningBrain,
    fine_tune,
    make_brain,
)
from summarymixing.training.recogniser import load_recogniser

UTTERANCES = {
    "train-clean-100": 4,
    "dev-clean": 2,
    "test-clean": 2,
    "test-other": 1,
}
# The file as it stands, but for a head and batches that a CPU can afford.
SMALL = {
    "head": {"hidden_size": 8},
    "max_batch_seconds": 12,
    "accumulation": 1,
    "num_workers": 0,
    "freeze_encoder_updates": 1,
    "warmup_updates": 1,
    "max_updates": 3,
}
RUN_OPTIONS = {"device": "cpu", "noprogressbar": True}
FIRST, LAST = {"input", "0", "0 mixer"}, {"1", "1 mixer", "norm"}
ALL = {"head"} | FIRST | LAST


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Return a folder with manifests of a miniature corpus and an encoder."""
    folder = tmp_path_factory.mktemp("librispeech")
    corpus = build_librispeech(folder / "corpus", utterances=UTTERANCES)
    CORPORA["librispeech"].plan(corpus, folder / "manifests").run()
    torch.manual_seed(0)
    encoder = Wav2Vec2Encoder(
        num_layers=2, d_model=16, d_ffn=32, front_end_channels=8, num_mels=20
    )
    save_encoder(encoder, folder / "encoder")
    return folder


def settings(material, output_folder, **overrides):
    return {
        **SMALL,
        "encoder": str(material / "encoder"),
        "manifests": str(material / "manifests"),
        "output_folder": str(output_folder),
        **overrides,
    }


def make_hparams(material, output_folder, **overrides):
    output_folder.mkdir(exist_ok=True)
    # JSON is YAML, so this is what a user could type.
    values = json.dumps(settings(material, output_folder, **overrides))
    return load_hparams("finetuning/librispeech100.yaml", values)


def run_recipe(material, output_folder, **overrides):
    """Fine-tune; return the metrics and the weights that are left behind."""
    hparams = make_hparams(material, output_folder, **overrides)
    with suppress(Stopped):
        fine_tune(hparams, RUN_OPTIONS)
    return outcome(output_folder)


def outcome(folder):
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else None
    weights = {
        f"{file.stem} {name}": tensor
        for file in sorted(folder.glob("**/*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    return metrics, weights


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.fixture(scope="module")
def straight_run(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, run_recipe(material, folder)


def test_command_leaves_a_recogniser(material, tmp_path):
    root = Path(__file__).resolve().parents[2]
    values = settings(material, tmp_path, precision="bf16", decoder="beam")
    run(
        fine_tune,
        [
            str(root / "hparams/finetuning/librispeech100.yaml"),
            *(f"--{key}={value}" for key, value in values.items()),
            *("--noprogressbar", "--device=cpu"),
        ],
    )
    metrics, weights = outcome(tmp_path)
    assert metrics["splits"].keys() == {"test-clean", "test-other"}
    assert metrics["splits"]["test-clean"]["utterances"] == 2
    assert metrics["updates"] == 3
    encoder = Wav2Vec2Encoder.from_pretrained(tmp_path / "encoder")
    assert encoder.config["layer_drop"] == 0.1
    # 8 x 16 + 8, 8 x 8 + 8 and the linear layer to the characters.
    outputs = metrics["outputs"]
    assert metrics["parameters"]["head"] == 136 + 72 + 9 * outputs
    heads = [t for name, t in weights.items() if name.startswith("head")]
    assert sum(t.numel() for t in heads) == metrics["parameters"]["head"]
    _, head, tokenizer = load_recogniser(tmp_path)
    assert torch.equal(head.linear.w.bias, weights["head linear.w.bias"])
    assert len(tokenizer.tokens) == outputs
    assert (tmp_path / "tokens.txt").exists()
    assert (tmp_path / "wer_test-other.txt").exists()


@pytest.mark.parametrize("num_updates", [1, 2])
@pytest.mark.parametrize("order", ["together", "top_down"])
def test_stopped_run_goes_on_where_it_was(
    material, tmp_path, straight_run, monkeypatch, num_updates, order
):
    """Also over the updates at which layers begin to learn."""
    options = {"unfreezing_order": order, "unfreeze_every_updates": 1}
    expected = straight_run[1]
    if order != "together":
        expected = run_recipe(material, tmp_path / "straight", **options)
    answers = iter([False] * (num_updates - 1) + [True])
    monkeypatch.setattr(
        task_brain, "stop_requested_anywhere", lambda: next(answers)
    )
    assert run_recipe(material, tmp_path / "run", **options) == (None, {})
    monkeypatch.undo()
    assert_same(run_recipe(material, tmp_path / "run", **options), expected)


def test_finished_run_is_only_tested_again(material, straight_run):
    folder, expected = straight_run
    assert_same(run_recipe(material, folder), expected)


def part_of(name):
    """Name the part of a FineTuned that a parameter belongs to."""
    if name.startswith("head"):
        return "head"
    words = name.removeprefix("encoder.").split(".")
    if words[:2] == ["conformer", "layers"]:
        return f"{words[2]} mixer" if words[3] == "mixer" else words[2]
    if words[:2] == ["conformer", "norm"]:
        return "norm"
    return "front end" if words[0] == "front_end" else "input"


class RecordingBrain(FineTuningBrain):
    """Remembers which parts every update has changed, and by how much."""

    def optimizers_step(self):
        before = {n: p.clone() for n, p in self.model.named_parameters()}
        super().optimizers_step()
        changes = defaultdict(float)
        for name, parameter in self.model.named_parameters():
            change = (parameter - before[name]).abs().max().item()
            part = part_of(name)
            changes[part] = max(changes[part], change)
        self.history.append(changes)


def history_of(material, folder, monkeypatch, **overrides):
    """Return the change of each part in each update."""
    monkeypatch.setattr(finetuning, "FineTuningBrain", RecordingBrain)
    overrides = {"schedule": "noam", "layer_drop": 0.0, **overrides}
    brain = make_brain(make_hparams(material, folder, **overrides), RUN_OPTIONS)
    brain.history = []
    brain.fit(brain.epochs(), brain.data.train, brain.data.valid)
    return brain.history


@pytest.mark.parametrize(
    "overrides, changed",
    [
        ({}, [{"head"}, ALL, ALL]),
        ({"freeze_encoder_updates": 2}, [{"head"}, {"head"}, ALL]),
        ({"freeze_encoder_updates": 0}, [ALL] * 3),
        (
            {"unfreezing_order": "top_down", "unfreeze_every_updates": 1},
            [{"head"}, {"head"} | LAST, ALL],
        ),
        (
            {"unfreezing_order": "bottom_up", "unfreeze_every_updates": 1},
            [{"head"}, {"head"} | FIRST, ALL],
        ),
        (
            {"mixer_learning_rate_factor": 0.0},
            [{"head"}] + [ALL - {"0 mixer", "1 mixer"}] * 2,
        ),
        ({"encoder_learning_rate": 0.0}, [{"head"}] * 3),
        ({"learning_rate": 0.0}, [set()] + [ALL - {"head"}] * 2),
        ({"train_front_end": True}, [{"head"}] + [ALL | {"front end"}] * 2),
    ],
)
def test_one_value_decides_what_learns(
    material, tmp_path, monkeypatch, overrides, changed
):
    history = history_of(material, tmp_path, monkeypatch, **overrides)
    found = [
        {part for part, change in update.items() if change > 0}
        for update in history
    ]
    assert found == changed


def test_rates_of_the_parts_keep_their_proportions(
    material, tmp_path, monkeypatch
):
    """Adam's first step changes a weight by the learning rate."""
    history = history_of(
        material,
        tmp_path,
        monkeypatch,
        freeze_encoder_updates=0,
        max_updates=1,
        weight_decay=0.0,
        learning_rate=1e-3,
        encoder_learning_rate=1e-4,
        mixer_learning_rate_factor=0.1,
    )
    assert history[0]["head"] == pytest.approx(1e-3, rel=0.01)
    assert history[0]["0"] == pytest.approx(1e-4, rel=0.01)
    assert history[0]["1 mixer"] == pytest.approx(1e-5, rel=0.01)


@pytest.mark.parametrize("freeze", [0, 1])
def test_one_norm_clips_all_groups(material, tmp_path, freeze):
    hparams = make_hparams(
        material,
        tmp_path,
        max_updates=1,
        freeze_encoder_updates=freeze,
        max_gradient_norm=1e-3,
    )
    brain = make_brain(hparams, RUN_OPTIONS)
    norms = []

    def record(optimizer, *_):
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        # Fused kernels divide by it while they step.
        norms.append((norm / getattr(optimizer, "grad_scale", 1)).item())

    handle = register_optimizer_step_pre_hook(record)
    brain.fit(brain.epochs(), brain.data.train, brain.data.valid)
    handle.remove()
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize(
    "key, value, place",
    [
        ("dropout", 0.3, "dropout"),
        ("layer_drop", 0.5, "layer_drop"),
        ("mixer_dropout", 0.2, "mixer"),
    ],
)
def test_regularisation_is_that_of_the_file(
    material, tmp_path, key, value, place
):
    config = {
        given: make_brain(
            make_hparams(material, tmp_path, **{key: given}), RUN_OPTIONS
        ).model.encoder.config
        for given in (value, None)
    }
    differing = {
        k for k in config[value] if config[value][k] != config[None][k]
    }
    assert differing == {place}
    found = config[value][place]
    assert (found["dropout"] if key == "mixer_dropout" else found) == value


@pytest.mark.parametrize(
    "overrides, time, channels",
    [
        ({}, True, True),
        ({"time_mask_ratio": 0}, False, True),
        ({"channel_mask_ratio": 0}, True, False),
    ],
)
def test_masks_follow_update_and_utterance(
    material, tmp_path, overrides, time, channels
):
    hparams = make_hparams(
        material, tmp_path, channel_mask_length=2, **overrides
    )
    brain = make_brain(hparams, RUN_OPTIONS)
    brain.data.sampler.set_range(0, 1)
    batch = next(iter(brain.data.train))
    masks = brain.draw_masks(batch)
    assert bool(masks.span_mask.any()) == time
    assert bool(masks.channel_mask.any()) == channels
    again = brain.draw_masks(batch)
    assert all(map(torch.equal, masks, again))
    brain.optimizer_step = 1
    later = brain.draw_masks(batch)
    assert torch.equal(later.span_mask, masks.span_mask) != time
    brain.modules.eval()
    # Evaluation shows all, whatever the position.
    stage = task_brain.sb.Stage.VALID
    first = brain.compute_forward(batch, stage)[0]
    brain.optimizer_step = 0
    assert torch.equal(brain.compute_forward(batch, stage)[0], first)
    expected, _ = brain.model(batch.wavs, batch.wav_lens)
    assert torch.equal(first, expected)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"encoder": "/nowhere"}, "/nowhere holds no encoder"),
        ({"unfreezing_order": "sideways"}, "unfreezing_order must be one of"),
        ({"schedule": "newbob"}, "schedule must be one of noam, warm_cool"),
        (
            {"unfreeze_every_updates": 0},
            "unfreeze_every_updates must be at least 1",
        ),
        ({"max_batch_seconds": None}, "max_batch_seconds must be at least 1"),
        ({"layer_drop": 1.5}, "cannot be built with .*layer_drop"),
        ({"kenlm_model": "words.bin"}, "needs --decoder=beam"),
    ],
)
def test_mistakes_are_explained(material, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        make_brain(make_hparams(material, tmp_path, **overrides), RUN_OPTIONS)


def test_the_pretrained_encoder_is_not_replaced(material):
    with pytest.raises(UserError, match="would replace"):
        make_brain(make_hparams(material, material), RUN_OPTIONS)
