"""A file with the graph of an encoder: written, and compared with PyTorch."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from summarymixing import __version__
from summarymixing.cli.values import MEAN, find_mixer, read_layers
from summarymixing.data.audio import read_audio
from summarymixing.data.manifest import Row
from summarymixing.errors import UserError
from summarymixing.files import open_atomically
from summarymixing.lobes.encoders import FrozenEncoder, digest, open_encoder
from summarymixing.lobes.exporting import export_encoder
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder

SUFFIXES = (".onnx", ".pt2")
METADATA_NAME = "summarymixing.json"  # in a file of torch.export
INPUTS = ["wavs", "num_samples"]
MAX_BYTES = 2**31 - 2**24  # of a file of ONNX: protobuf holds no more
# What is compared: seconds, and the share of them that each utterance has.
COMPARED = ((1.0, (1.0,)), (7.31, (1.0, 0.61, 0.07)), (30.0, (1.0,)))
# float32 rounds; what is farther away, in deviations of a state, is wrong.
LARGEST_DIFFERENCE = 1e-3
REPEATS = 3

Runner = Callable[[Tensor, Tensor], Sequence[Tensor]]


class Comparison(NamedTuple):
    """How a graph differs from PyTorch for one batch."""

    seconds: float
    utterances: int
    largest: float  # difference of a value, in deviations of its state
    mean: float  # root of the mean square
    torch_ms: float
    graph_ms: float


def write_graph(options: Any) -> int:
    """Export what `summarymixing export` names.

    Arguments
    ---------
    options : Options
        Those of cli/export.py, which imports this module.

    Returns
    -------
    int
        The exit status, 0.
    """
    out: Path = options.out
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out} must end in {' or '.join(SUFFIXES)}")
    if options.int8 and out.suffix != ".onnx":
        raise UserError("--int8 is for ONNX alone: let OUT end in .onnx")
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} to write into")
    _check_packages(out.suffix)
    wav = _audio_to_compare(options.audio)
    encoder = open_encoder(options.encoder, mixer=find_mixer(options.mixer))
    if not isinstance(encoder, Wav2Vec2Encoder):
        raise UserError(
            f"{options.encoder} is not an encoder of this package; those of "
            "HuggingFace are exported by its package optimum"
        )
    layers = read_layers(options.layers, encoder.num_layers)
    names = [MEAN] if layers is None else [f"layer_{n}" for n in layers]
    frozen = FrozenEncoder(encoder)
    metadata = {
        "format": "summarymixing.graph",
        "version": "1",
        "encoder_digest": digest(frozen),
        "layers": ",".join(names),
        "frames_per_second": str(encoder.frames_per_second),
        "sample_rate_hz": str(encoder.sample_rate_hz),
        "weights": "int8" if options.int8 else "float32",
        "summarymixing_version": __version__,
    }
    program = export_encoder(encoder, layers)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as folder:
        aside = Path(folder) / out.name
        if out.suffix == ".onnx":
            _write_onnx(program, aside, [*names, "num_frames"], metadata)
            if options.int8:
                _quantise(aside)
            run = _load_onnx(aside)
        else:
            run = _write_and_load_pt2(program, aside, metadata)
        found = [
            _compare(frozen, layers, run, wav, seconds, shares)
            for seconds, shares in COMPARED
        ]
        _tell(out, aside.stat().st_size, found)
        worst = max(comparison.largest for comparison in found)
        if not (options.int8 or worst < LARGEST_DIFFERENCE):
            raise RuntimeError(
                f"{out} would differ from PyTorch by {worst:.1e} deviations of "
                "a state, more than rounding does, and is not written"
            )
        with aside.open("rb") as whole, open_atomically(out, binary=True) as to:
            shutil.copyfileobj(whole, to)
    return 0


def _check_packages(suffix: str) -> None:
    if suffix != ".onnx":
        return
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs the package {error.name}: "
            'pip install "summarymixing[onnx]"'
        ) from error


def _audio_to_compare(path: Path | None) -> Tensor:
    """Return (S,) samples, as many as the longest comparison takes."""
    needed = int(max(seconds for seconds, _ in COMPARED) * 16_000)
    if path is None:
        return 0.1 * torch.randn(
            needed, generator=torch.Generator().manual_seed(0)
        )
    wav = read_audio(Row("", str(path), (), 0.0))
    return wav.repeat(needed // len(wav) + 1)[:needed]


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back advice of exporters that a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _write_onnx(
    program: ExportedProgram,
    path: Path,
    outputs: list[str],
    metadata: dict[str, str],
) -> None:
    import onnx

    size = sum(4 * tensor.numel() for tensor in program.state_dict.values())
    if size > MAX_BYTES:
        raise UserError(
            f"the weights take {size / 2**30:.1f} GiB, and a file of ONNX "
            "holds less than 2; export to .pt2 instead"
        )
    with _silence():
        exported: Any = torch.onnx.export(
            program,
            input_names=INPUTS,
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
    model = exported.model_proto
    # It names sources by their place on this machine, for each operation.
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _write_and_load_pt2(
    program: ExportedProgram, path: Path, metadata: dict[str, str]
) -> Runner:
    extra = {METADATA_NAME: json.dumps(metadata)}
    with _silence():  # on tensors that are views, not on ours
        torch.export.save(program, path, extra_files=extra)
        return torch.export.load(path).module()


def _quantise(path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path).graph
    matrices = {w.name for w in graph.initializer if len(w.dims) == 2}
    # Convolutions stay: the spectrum has 80 dB, and 8 bits have 48. So do the
    # products of heads, for which ONNX Runtime knows one scale alone.
    chosen = [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices
    ]
    with _silence():  # it advises what to do with images
        quantize_dynamic(
            path,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=chosen,
        )


def _load_onnx(path: Path) -> Runner:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        path, settings, providers=["CPUExecutionProvider"]
    )

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = [tensor.numpy() for tensor in inputs]
        found = session.run(None, dict(zip(INPUTS, arrays, strict=True)))
        return [torch.from_numpy(array) for array in found]

    return run


def _compare(
    frozen: FrozenEncoder,
    layers: list[int] | None,
    run: Runner,
    wav: Tensor,
    seconds: float,
    shares: tuple[float, ...],
) -> Comparison:
    """Compare on utterances that begin at different places of `wav`."""
    length = int(seconds * 16_000)
    wavs = torch.stack([wav.roll(-7_000 * i) for i in range(len(shares))])
    wavs = wavs[:, :length].contiguous()
    num_samples = (torch.tensor(shares) * length).long()
    out = frozen(wavs, num_samples / length)
    states, valid = out.hidden_states, ~out.padding_mask
    if layers is None:
        states = [torch.stack(states).mean(0)]
    else:
        states = [states[layer] for layer in layers]
    *found, frames = run(wavs, num_samples)
    if not torch.equal(frames, valid.sum(1)):
        raise RuntimeError(f"frames {frames} in place of {valid.sum(1)}")
    differences = torch.stack(
        [
            (other - state)[valid] / state[valid].std()
            for state, other in zip(states, found, strict=True)
        ]
    )
    return Comparison(
        seconds,
        len(shares),
        differences.abs().max().item(),
        differences.square().mean().sqrt().item(),
        _time_ms(lambda: frozen(wavs, num_samples / length)),
        _time_ms(lambda: run(wavs, num_samples)),
    )


def _time_ms(call: Callable[[], Any]) -> float:
    """Return the shortest time of some calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def _tell(out: Path, size: int, found: Sequence[Comparison]) -> None:
    print(f"{out}: {size / 1e6:.1f} MB; compared with PyTorch:\n")
    print(
        "seconds  utterances  largest difference  mean difference  "
        "PyTorch ms  graph ms"
    )
    for row in found:
        print(
            f"{row.seconds:7.2f}  {row.utterances:10}  {row.largest:18.1e}  "
            f"{row.mean:15.1e}  {row.torch_ms:10.1f}  {row.graph_ms:8.1f}"
        )
    print(
        f"\nDifferences are in standard deviations of a state; times are the "
        f"best of {REPEATS} with {torch.get_num_threads()} threads."
    )
