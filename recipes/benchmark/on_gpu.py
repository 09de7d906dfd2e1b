r"""Answer what only a GPU can answer, in half an hour, most important first.

python recipes/benchmark/on_gpu.py [--out=FOLDER] [--minutes=25] \
    [--parts=parity,table_1] [--manifests=FOLDER] [--list]

Each part is a process of its own and ends within eight minutes. What it found
is written at once to FOLDER/on_gpu.json and FOLDER/on_gpu.md; started again,
the command goes on with the parts that are missing or failed. A part that
fails is recorded with its message, and the others go on. --small --device=cpu
runs every part at sizes that mean nothing, as a test of itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from summarymixing.cost.timing import describe_machine, time_in_turns
from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.files import write_json
from summarymixing.lobes.conformer import ConformerEncoderLayer
from summarymixing.miniature import build_librilight
from summarymixing.nnet.attention import MultiHeadAttention, RotaryAttention
from summarymixing.nnet.depthwise import FORMS
from summarymixing.nnet.summary_mixing import SummaryMixing
from summarymixing.run.records import read_log

ROOT = Path(__file__).resolve().parents[2]
MINUTES_OF_A_PART = 8
MIXERS = {
    "SummaryMixing": SummaryMixing,
    "fused attention": MultiHeadAttention,
    "rotary attention": RotaryAttention,
}
# 30 M parameters.
REAL_SIZES = {"d_model": 336, "d_ffn": 1344, "num_heads": 8}
SMALL_SIZES = {"d_model": 32, "d_ffn": 32, "num_heads": 2, "num_layers": 2}


def as_markdown(report: dict[str, Any], folder: Path) -> str:
    """Write what every part found; scripts have left their tables behind."""
    lines = [f"# Measured on {report['machine']}", ""]
    for name, part in report["parts"].items():
        lines += [f"## {name} ({part['seconds']} s)", ""]
        table = folder / f"{name}.md"
        if "failure" in part:
            lines += ["failed:", "", "```", part["failure"].strip(), "```", ""]
        elif table.exists():
            lines += [f"##{table.read_text('utf-8')}"]
            lines += [f"- {x}" for x in part["result"].get("kernels", [])]
        else:
            found = part["result"].items()
            lines += [f"- {key}: {_one_line(value)}" for key, value in found]
        lines.append("")
    return "\n".join(lines)


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        shown = (f"{key} {_one_line(found)}" for key, found in value.items())
        return ", ".join(shown)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the parts that are still to be done, or the one that is named."""
    options = read_options()
    if options.run:
        PARTS[options.run](options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    stored = options.out / "on_gpu.json"
    report: dict[str, Any] = {"machine": describe_machine(options.device)}
    report["parts"] = {}
    if stored.exists():
        report = json.loads(stored.read_text("utf-8"))
    end = time.monotonic() + 60 * options.minutes
    for name in options.parts:
        left = min(60 * MINUTES_OF_A_PART, end - time.monotonic())
        if "result" in report["parts"].get(name, {}):
            continue
        if left < 30 and not options.small:
            print(f"{name}: no time left; start the command again")
            continue
        report["parts"][name] = run_part(name, options, left)
        write_json(stored, report)
        text = as_markdown(report, options.out)
        (options.out / "on_gpu.md").write_text(text, encoding="utf-8")
    print(as_markdown(report, options.out))


def read_options() -> Namespace:
    """Read the command line; --list ends the program."""
    parser = ArgumentParser(description="Answer what only a GPU can answer.")
    parser.add_argument("--out", type=Path, default=Path("results/on_gpu"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=[*PARTS]
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--manifests", type=Path, help="of real speech")
    parser.add_argument("--updates", type=int, default=1000)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=found)
    parser.add_argument("--run", help="run one part here", choices=[*PARTS])
    options = parser.parse_args()
    if options.list:
        for name, part in PARTS.items():
            about = str(part.__doc__).splitlines()[0]
            arguments = COSTS.get(name)
            print(f"{name}: {' '.join(arguments) if arguments else about}")
        sys.exit(0)
    if unknown := set(options.parts) - set(PARTS):
        raise UserError(f"{', '.join(unknown)} is none of {', '.join(PARTS)}")
    if options.device.type == "cpu" and not options.small:
        raise UserError(
            "there is no GPU (torch.cuda.is_available()); --small "
            "--device=cpu tries every part at sizes that mean nothing"
        )
    return options


def run_part(name: str, options: Namespace, limit: float) -> dict[str, Any]:
    """Run a part in a process of its own; returns its result or failure."""
    path = _result(name, options)
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], f"--run={name}"]
    start = time.monotonic()
    # With the scripts that it starts: they would go on to use the GPU.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        message = process.communicate(timeout=limit)[0][-2000:]
    except subprocess.TimeoutExpired:
        message = f"not ready after {limit:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    seconds = round(time.monotonic() - start)
    if not path.exists():
        return {"failure": message, "seconds": seconds}
    return {"result": json.loads(path.read_text("utf-8")), "seconds": seconds}


def _result(name: str, options: Namespace) -> Path:
    return options.out.resolve() / f"{name}.json"


def parity(options: Namespace) -> None:
    """Differences of bf16 and of this device from float32 on the CPU."""
    width, frames = (32, 50) if options.small else (768, 1000)
    result = {}
    for name, mixer in MIXERS.items():
        torch.manual_seed(1)
        modules = {
            name: mixer(width),
            f"layer of {name}": ConformerEncoderLayer(
                width, mixer=mixer, dropout=0.0
            ),
        }
        x = torch.randn(2, frames, width)
        padding_mask = torch.zeros(2, frames, dtype=torch.bool)
        padding_mask[1, frames // 2 :] = True
        for what, module in modules.items():
            exact = values_and_gradients(module, x, padding_mask, None)
            module.to(options.device)
            for dtype in (None, torch.bfloat16):
                found = values_and_gradients(
                    module,
                    x.to(options.device),
                    padding_mask.to(options.device),
                    dtype,
                )
                precision = "float32" if dtype is None else "bf16"
                result[f"{what}, {precision}"] = {
                    kind: float((a - b).norm() / b.norm())
                    for kind, a, b in zip(
                        ("output", "input gradient", "weight gradient"),
                        found,
                        exact,
                        strict=True,
                    )
                }
    write_json(_result("parity", options), result)


def values_and_gradients(
    module: nn.Module,
    x: Tensor,
    padding_mask: Tensor,
    autocast: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, gradient of the input and of all weights, on the CPU."""
    x = x.clone().requires_grad_()
    enabled = autocast is not None
    with torch.autocast(x.device.type, autocast, enabled=enabled):
        output = module(x, padding_mask)
    # Not a plain sum, whose gradient behind a norm is zero.
    factor = torch.linspace(-1, 1, output.numel(), device=x.device)
    loss = (output.float() * factor.view_as(output)).sum()
    of_input, *of_weights = torch.autograd.grad(loss, [x, *module.parameters()])
    weights = torch.cat([grad.flatten() for grad in of_weights])
    return output.detach().float().cpu(), of_input.cpu(), weights.cpu()


def convolution(options: Namespace) -> None:
    """Milliseconds of each form of the depthwise convolution, both ways."""
    batch, frames, width = (2, 50, 32) if options.small else (12, 1501, 768)
    on_gpu = options.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    make = partial(torch.randn, device=options.device, dtype=dtype)
    x = make(batch, frames, width, requires_grad=True)
    weight = make(width, 1, 31, requires_grad=True)
    bias = make(width, requires_grad=True)
    forms: dict[str, Callable[..., Tensor]] = dict(FORMS)
    if on_gpu:
        forms |= {
            f"{name}, compiled": torch.compile(FORMS[name])
            for name in ("transposed", "channels_last", "shifted")
        }

    def step(form: Callable[..., Tensor]) -> None:
        form(x, weight, bias).sum().backward()

    times = time_in_turns(
        {name: partial(step, form) for name, form in forms.items()},
        device=options.device,
        repeats=2 if options.small else 30,
        warmup=3,
    )
    result = {name: 1000 * found.median for name, found in times.items()}
    write_json(_result("convolution", options), result)


def cost(name: str, options: Namespace) -> None:
    """Rows of training_cost.py: time, speed, share of peak, memory."""
    sizes = ["--full"]
    if options.small:
        text = ", ".join(f"{key}: {n}" for key, n in SMALL_SIZES.items())
        sizes = [f"--override={{{text}}}", "--repeats=1"]
        sizes += ["--batch_seconds=4", "--lengths=2"]
    out = _result(name, options)
    run_script("training_cost.py", options, out, *COSTS[name], *sizes)


def scaling(options: Namespace) -> None:
    """Time and memory from 10 s to an hour, see scaling.py."""
    sizes = ["--seconds=1,2", "--stages=inference", "--mixers=SummaryMixing"]
    if not options.small:
        sizes = ["--full", "--minutes=7", "--point_seconds=20"]
    run_script("scaling.py", options, _result("scaling", options), *sizes)


def run_script(
    script: str, options: Namespace, out: Path, *arguments: str
) -> None:
    """Run a script of this folder that writes its result to `out`."""
    path = str(Path(__file__).with_name(script))
    places = [f"--device={options.device}", f"--out={out}"]
    subprocess.run([sys.executable, path, *arguments, *places], check=True)


def real_runs(options: Namespace) -> None:
    """Two short runs of a 30 M model, SummaryMixing and attention."""
    manifests = options.manifests
    if manifests is None:
        manifests = options.out.resolve() / "manifests"
        if not manifests.exists():
            make_manifests(options.out.resolve(), manifests)
    sizes = SMALL_SIZES if options.small else REAL_SIZES
    settings = {
        **sizes,
        "manifests": manifests,
        "max_updates": 2 if options.small else options.updates,
        "checkpoint_every_updates": 2 if options.small else options.updates,
        "log_every_updates": 1 if options.small else 50,
        "warmup_updates": max(options.updates // 10, 1),
        "max_batch_seconds": 60 if options.small else 120,
        "accumulation": 1,
        "front_end_gradient": 0.1,
        "diversity_weight": 1.0,
    }
    if options.device.type == "cpu":
        settings["precision"] = "fp32"
    result = {}
    for name in ("summarymixing_base", "mhsa_base"):
        folder = options.out.resolve() / name
        command = [
            sys.executable,
            str(ROOT / "recipes/pretraining/train.py"),
            str(ROOT / f"hparams/pretraining/{name}.yaml"),
            *(f"--{key}={value}" for key, value in settings.items()),
            f"--output_folder={folder}",
            f"--device={options.device}",
        ]
        subprocess.run(command, check=True)
        log = read_log(folder)
        valid = [entry for entry in log if entry["stage"] == "valid"][-1]
        train = [entry for entry in log if entry["stage"] == "train"][-1]
        result[name] = {
            "accuracy": valid["accuracy"],
            "code_perplexity": valid["code_perplexity"],
            "audio_hours_per_hour": train["audio_hours_per_hour"],
            "seconds_waited_for_data": train["seconds_waited_for_data"],
            "peak_memory_gib": train["peak_memory_gib"],
        }
    write_json(_result("real_runs", options), result)


def make_manifests(folder: Path, manifests: Path) -> None:
    """Write a miniature Libri-Light and its manifests."""
    from summarymixing.data.prepare import CORPORA

    hours = 0.05
    corpus = build_librilight(folder / "corpus", hours=hours, seed=1)
    CORPORA["librilight"].plan(corpus, manifests).run()


COSTS = {
    "table_1": [
        "--contestants=SummaryMixing,fused attention",
        "--lengths=30",
        "--compile",
    ],
    "eager": [
        "--contestants=SummaryMixing,fused attention",
        "--lengths=30",
        "--profile",
    ],
    "compiled_budget_0.5": [
        "--contestants=SummaryMixing",
        "--lengths=30",
        "--compile",
        "--memory_budget=0.5",
    ],
    "compiled_budget_0.2": [
        "--contestants=SummaryMixing",
        "--lengths=30",
        "--compile",
        "--memory_budget=0.2",
    ],
    "baselines": ["--lengths=15,30"],
}
PARTS: dict[str, Callable[[Namespace], None]] = {
    "parity": parity,
    "table_1": partial(cost, "table_1"),
    "convolution": convolution,
    "eager": partial(cost, "eager"),
    "compiled_budget_0.5": partial(cost, "compiled_budget_0.5"),
    "compiled_budget_0.2": partial(cost, "compiled_budget_0.2"),
    "baselines": partial(cost, "baselines"),
    "real_runs": real_runs,
    "scaling": scaling,
}


if __name__ == "__main__":
    exit_on_user_error(main)
