"""`summarymixing export`: other programs get the states that PyTorch gives."""

import json
import sys
from functools import partial

import pytest
import torch

from summarymixing import MultiHeadAttention, SummaryMixing, Wav2Vec2Encoder
from summarymixing.cli import graph_file, main
from summarymixing.lobes.encoders import FrozenEncoder, digest
from summarymixing.pretrained import save_encoder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MIXERS = {
    "summary": partial(SummaryMixing, num_heads=2),
    "attention": partial(MultiHeadAttention, num_heads=2),
}


@pytest.fixture(autouse=True)
def _short_comparisons(monkeypatch):
    shares = ((0.1, (1.0,)), (0.3, (1.0, 0.7, 0.01)), (1.0, (1.0,)))
    monkeypatch.setattr(graph_file, "COMPARED", shares)


@pytest.fixture(params=["summary"])
def encoder(request, tmp_path):
    encoder = Wav2Vec2Encoder(
        mixer=MIXERS[request.param],
        num_layers=1,
        d_model=8,
        d_ffn=16,
        num_mels=20,
        front_end_channels=6,
    )
    save_encoder(encoder, tmp_path / "encoder")
    return FrozenEncoder(encoder)


def export(tmp_path, out, *options):
    """Return the exit status."""
    with pytest.raises(SystemExit) as caught:
        main(
            ["export", str(tmp_path / "encoder"), str(tmp_path / out), *options]
        )
    return caught.value.code


def check(encoder, run, layers):
    """Compare on batches and lengths that were not seen in the export."""
    for batch, length in ((1, 320), (4, 9_999), (2, 160_000)):
        wavs = torch.rand(batch, length) - 0.5
        num_samples = torch.randint(1, length + 1, (batch,))
        out = encoder(wavs, num_samples / length)
        wavs[torch.arange(length) >= num_samples[:, None]] = torch.nan
        *states, frames = run(wavs, num_samples)
        assert torch.equal(frames, (~out.padding_mask).sum(1))
        expected = [out.hidden_states[layer] for layer in layers]
        for state, other in zip(expected, states, strict=True):
            torch.testing.assert_close(other, state, rtol=0, atol=1e-4)


def run_onnx(path):
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )

    def run(wavs, num_samples):
        inputs = {"wavs": wavs.numpy(), "num_samples": num_samples.numpy()}
        return map(torch.from_numpy, session.run(None, inputs))

    return session, run


def test_onnx_runtime_returns_the_states(encoder, tmp_path, capsys):
    assert export(tmp_path, "model.onnx") == 0
    session, run = run_onnx(tmp_path / "model.onnx")
    check(encoder, run, [0, 1])
    names = [output.name for output in session.get_outputs()]
    assert names == ["layer_0", "layer_1", "num_frames"]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["encoder_digest"] == digest(encoder)
    assert facts["layers"] == "layer_0,layer_1"
    assert facts["frames_per_second"] == "50"
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows[3:6]] == [
        ["0.10", "1"],
        ["0.30", "3"],
        ["1.00", "1"],
    ]
    assert all(float(row.split()[2]) < 1e-4 for row in rows[3:6])


def test_int8_is_near_and_leaves_convolutions_alone(encoder, tmp_path):
    assert export(tmp_path, "small.onnx", "--layers=1", "--int8") == 0
    nodes = onnx.load(tmp_path / "small.onnx").graph.node
    kinds = {node.op_type for node in nodes}
    assert {"MatMulInteger", "Conv"} <= kinds and "ConvInteger" not in kinds
    wavs = torch.rand(1, 16_000) - 0.5
    _, run = run_onnx(tmp_path / "small.onnx")
    states, _ = run(wavs, torch.tensor([16_000]))
    expected = encoder(wavs, torch.ones(1)).hidden_states[1]
    assert 0 < (states - expected).std() < 0.1 * expected.std()


@pytest.mark.parametrize("encoder", ["attention"], indirect=True)
def test_torch_export_of_some_layers(encoder, tmp_path, monkeypatch):
    program = graph_file.export_encoder(encoder.inner, [1, 0])
    monkeypatch.setattr(graph_file, "export_encoder", lambda *_: program)
    with monkeypatch.context() as strict:
        strict.setattr(graph_file, "LARGEST_DIFFERENCE", 0.0)
        with pytest.raises(RuntimeError, match="is not written"):
            export(tmp_path, "model.pt2", "--layers=1,0")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
    assert export(tmp_path, "model.pt2", "--layers=1,0") == 0
    facts = {"summarymixing.json": ""}
    loaded = torch.export.load(tmp_path / "model.pt2", extra_files=facts)
    check(encoder, loaded.module(), [1, 0])
    facts = json.loads(facts["summarymixing.json"])
    assert facts["layers"] == "layer_1,layer_0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.bin"], "must end in .onnx or .pt2"),
        (["model.pt2", "--int8"], "let OUT end in .onnx"),
        (["missing/model.pt2"], "no folder"),
        (["model.pt2", "--layers=3"], "layers 0"),
        (["model.pt2", "--audio=missing.wav"], "missing.wav"),
    ],
)
def test_mistakes(encoder, tmp_path, capsys, words, message):
    assert export(tmp_path, *words) == 2
    assert message in capsys.readouterr().err


def test_other_encoders_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", "log_mel", str(tmp_path / "model.pt2")])
    assert "not an encoder of this package" in capsys.readouterr().err


def test_the_missing_package_is_named(encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export(tmp_path, "model.onnx") == 2
    assert 'pip install "summarymixing[onnx]"' in capsys.readouterr().err
