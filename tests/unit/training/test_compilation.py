"""Compiled layers: where, how many graphs, and what if it fails."""

from functools import partialmethod

import pytest
import torch
import torch.distributed as dist
from speechbrain.core import Stage
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from summarymixing.errors import UserError
from summarymixing.lobes.conformer import ConformerEncoderLayer
from summarymixing.lobes.pretraining import gather_masked_frames
from summarymixing.training import compilation
from summarymixing.training.compilation import should_compile
from summarymixing.training.pretraining_data import PretrainingBatch
from tests.unit.training.test_pretraining import make_brain, make_model

SHAPES = [(3, 40), (2, 25), (5, 31), (1, 80), (4, 15), (1, 33), (7, 20)]
SHAPES += [(size, 7 * size + 10) for size in range(1, 14)]


def make_batch(size, num_frames):
    """Noise; the first utterance is the longest."""
    masked = [range(1, 6)] * size
    return PretrainingBatch(
        torch.randn(size, num_frames * 320),
        torch.linspace(1, 0.5, size),
        gather_masked_frames(masked, num_frames + 1, range(size)),
        seconds=1.0,
        frames=size * (num_frames + 1),
        utterances=size,
        unreadable=[],
    )


@pytest.fixture(params=[False, True], ids=["alone", "in a group"])
def processes(request, monkeypatch):
    """Join a group of one process, whose buckets hold a single weight."""
    if not request.param:
        yield
        return
    wrap = partialmethod(DistributedDataParallel.__init__, bucket_cap_mb=1e-4)
    monkeypatch.setattr(DistributedDataParallel, "__init__", wrap)
    monkeypatch.setenv("RANK", "0")  # SpeechBrain logs where it is 0
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compile_by(monkeypatch, backend):
    torch._dynamo.reset()
    counters.clear()
    compile_layer = partialmethod(torch.nn.Module.compile, backend=backend)
    monkeypatch.setattr(ConformerEncoderLayer, "compile", compile_layer)


def test_four_graphs_serve_all_shapes(tmp_path, monkeypatch, processes):
    counter = CompileCounterWithBackend("eager")
    compile_by(monkeypatch, counter)
    brain = make_brain(tmp_path, make_model(), compile=True)
    brain.on_fit_start()
    assert counter.frame_count == 4
    assert all(p.grad is None for p in brain.model.parameters())
    for stage in (Stage.TRAIN, Stage.VALID):
        brain.on_stage_start(stage)
        brain.modules.train(stage == Stage.TRAIN)
        for shape in SHAPES:
            batch = make_batch(*shape)
            if stage == Stage.TRAIN:
                brain.fit_batch(batch)
            else:
                brain.evaluate_batch(batch, stage)
    assert brain.optimizer_step == len(SHAPES) == 20
    assert counter.frame_count == 4
    assert not counters["graph_break"]


def test_a_compiler_that_fails_costs_the_graphs_alone(
    tmp_path, monkeypatch, caplog, processes
):
    def fail(graph, inputs):
        raise RuntimeError("no space left for kernels")

    compile_by(monkeypatch, fail)
    brain = make_brain(tmp_path, make_model(), compile=True, memory_budget=0.5)
    brain.on_fit_start()
    assert "no space left for kernels" in caplog.text
    assert "the layers are not compiled; the run goes on" in caplog.text
    brain.on_stage_start(Stage.TRAIN)
    brain.fit_batch(make_batch(2, 20))
    assert brain.optimizer_step == 1


@pytest.mark.parametrize(
    ("setting", "device", "installed", "expected", "told"),
    [
        (True, "cpu", {}, True, ""),
        (False, "cuda", {"triton", "gcc"}, False, ""),
        ("auto", "cpu", {"triton", "gcc"}, False, "this runs on the CPU"),
        ("auto", "cuda", {"triton", "clang"}, True, "the layers are compiled"),
        ("auto", "cuda", {"gcc"}, False, "Triton is not installed"),
        ("auto", "cuda", {"triton"}, False, "there is no C compiler"),
    ],
)
def test_auto_compiles_where_it_pays_and_says_so(
    monkeypatch, caplog, setting, device, installed, expected, told
):
    def find(name):
        return name if name in installed else None

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compilation.importlib.util, "find_spec", find)
    monkeypatch.setattr(compilation.shutil, "which", find)
    caplog.set_level("INFO")
    assert should_compile(setting, device) is expected
    assert told in caplog.text if told else not caplog.text


def test_another_word_is_refused():
    with pytest.raises(UserError, match="auto, True or False, not 'yes'"):
        should_compile("yes", "cpu")
