#!/usr/bin/env python3
"""Say what a pre-training needs, and which settings fit a GPU.

python recipes/plan.py hparams/pretraining/summarymixing_base.yaml \
    --gpu_memory=24 --gpus=1 [--manifests=MANIFESTS] [--key=value ...]

One update of the real model and optimiser is followed with tensors that have
no values, so no GPU is needed; --probe makes it on the device at hand. Hours
are those of the paper's A100 for each multiply-add, not a measurement of yours.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from summarymixing.cost.memory import (
    UpdateMemory,
    make_states,
    make_update,
    measure_peak,
)
from summarymixing.cost.operations import peak_flops, training_operations
from summarymixing.data.audio import SAMPLE_RATE_HZ
from summarymixing.data.manifest import Manifest
from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.lobes.features import num_frames
from summarymixing.run.brain import count_parameters, make_optimizer
from summarymixing.run.hparams_file import HparamsFile, read_value
from summarymixing.run.launch import split_command_line
from summarymixing.run.processes import choose_device
from summarymixing.training.pretraining import parameter_groups
from summarymixing.training.worst_update import WorstUpdate, autocast_of

GIB = 2**30
# Not measured: what the allocator cannot use, and CUDA's own part.
USABLE_SHARE, DRIVER_GIB = 0.95, 0.75
# Tried in this order, the fastest first: 0.4 computes no product twice.
BUDGETS = (1.0, 0.7, 0.4, 0.3, 0.1, 0.0)
# Smaller batches leave a GPU waiting and are filled less well; where a budget
# allows no more than this, the next one is tried.
ENOUGH_SECONDS = 120
# Of the peak of four A100, from Table 1 of the paper: 164 hours.
PAPER_SHARE_OF_PEAK = 0.104


@dataclass
class Choice:
    """Settings of a run, and what they take."""

    max_batch_seconds: float
    accumulation: int
    memory_budget: float
    memory: UpdateMemory

    def overrides(self) -> dict[str, float]:
        """Return the keys of hparams/shared/pretraining.yaml that it sets."""
        return {
            "max_batch_seconds": self.max_batch_seconds,
            "accumulation": self.accumulation,
            "memory_budget": self.memory_budget,
        }


class Planner(WorstUpdate):
    """Chooses settings by tracing updates; arguments as in `WorstUpdate`."""

    def choose(self, usable: float, update_seconds: float) -> Choice:
        """Return the fastest settings that fit in `usable` bytes.

        UserError where not even one utterance fits with a budget of 0.
        """
        most = int(update_seconds / self.gpus / self.longest_seconds)
        enough = math.ceil(ENOUGH_SECONDS / self.longest_seconds)
        for budget in BUDGETS:
            # The peak grows linearly: two points give it, a third is checked.
            one, three = (self.trace(budget, n).peak for n in (1, 3))
            each = (three - one) / 2
            fitting = 1 + math.floor((usable - one) / each)
            fitting = min(fitting, max(most, 1))
            wanted = 1 if budget == BUDGETS[-1] else min(enough, most)
            if fitting >= max(wanted, 1):
                return self._settle(budget, fitting, usable, update_seconds)
        raise UserError(
            f"one utterance of {self.longest_seconds:g} s takes "
            f"{one / GIB:.1f} GiB at least, and {usable / GIB:.1f} GiB of "
            "the GPU's memory are usable. Prepare "
            "the corpus with a smaller maximum length, lower --num_layers or "
            "--d_model, or take a GPU with more memory"
        )

    def _settle(
        self, budget: float, utterances: int, usable: float, update: float
    ) -> Choice:
        memory = self.trace(budget, utterances)
        while memory.peak > usable and utterances > 1:
            utterances -= 1
            memory = self.trace(budget, utterances)
        seconds = utterances * self.longest_seconds
        accumulation = max(round(update / self.gpus / seconds), 1)
        return Choice(seconds, accumulation, budget, memory)

    def probe(self, choice: Choice, device: torch.device) -> int:
        """Make the worst update on a device; return its peak in bytes."""
        hparams = self.build(choice.memory_budget)
        model = hparams["model"].to(device)
        optimizer = make_optimizer(
            hparams["optimizer"], parameter_groups(model)
        )
        make_states(optimizer)
        utterances = int(choice.max_batch_seconds / self.longest_seconds)
        batch = tree_map(
            lambda x: x.to(device) if isinstance(x, torch.Tensor) else x,
            self.worst_batch(utterances),
        )
        update = partial(
            make_update,
            model,
            optimizer,
            lambda: model(*batch, temperature=1.0).loss,
            accumulation=2,
            autocast=autocast_of(hparams),
            device_type=device.type,
        )
        return choice.memory.at_rest + measure_peak(update, device)


def estimate_gpu_hours(
    hparams: dict[str, Any], longest_seconds: float, update: float, flops: float
) -> float:
    """Return GPU hours of all updates at so many FLOP per second."""
    frames = num_frames(round(longest_seconds * SAMPLE_RATE_HZ))
    masked = round(hparams["mask_probability"] * frames)
    count = training_operations(hparams["model"])
    per_utterance = 2 * count(1, frames, masked, masked)
    utterances = hparams["max_updates"] * update / longest_seconds
    return utterances * per_utterance / flops / 3600


def command_of(
    file: str, gpus: int, overrides: dict[str, Any], given: list[str]
) -> str:
    """Return the command that starts the run."""
    start = f"torchrun --nproc_per_node={gpus}" if gpus > 1 else "python"
    given = [shlex.quote(word) for word in given]
    if not any(word.startswith("--manifests=") for word in given):
        given.append("--manifests=MANIFESTS")
    settings = [f"--{key}={value:g}" for key, value in overrides.items()]
    return " \\\n    ".join(
        [
            f"{start} recipes/pretraining/train.py {file}",
            " ".join(settings),
            " ".join([*given, "--output_folder=results/my_run"]),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print a plan."""
    options, keys = make_parser().parse_known_args(argv)
    flops = peak_flops(options.gpu)
    if flops is None:
        raise UserError(
            f"the peak of '{options.gpu}' is not known; give a GPU of "
            "summarymixing/cost/operations.py, such as --gpu=A100"
        )
    recipe = HparamsFile.read(options.file)
    _, given = split_command_line(keys)
    recipe.override(
        {key: read_value(v[0], f"--{key}") for key, v in given.items() if v}
    )
    hours, longest = options.hours, options.longest_seconds
    if "manifests" in given:
        train = Manifest.read(Path(given["manifests"][0]) / "train.csv")
        hours = float(train.durations.sum()) / 3600
        # Upwards, so that it fits.
        longest = math.ceil(10 * float(train.durations.max())) / 10
    recipe.override({"manifests": "MANIFESTS", "output_folder": "RESULTS"})
    # The paper's 1.6 h, unless the file or the command line says otherwise.
    update = options.update_seconds or (
        recipe.value("max_batch_seconds") * recipe.value("accumulation") * 4
    )
    usable = (options.gpu_memory * USABLE_SHARE - DRIVER_GIB) * GIB
    planner = Planner(recipe, longest, options.gpus)
    choice = planner.choose(usable, update)
    if options.write:
        options.write.write_text(preset(choice, options), encoding="utf-8")
    hparams = planner.build(choice.memory_budget)
    made = choice.max_batch_seconds * choice.accumulation * options.gpus
    total = made * hparams["max_updates"] / 3600
    gpu_hours = estimate_gpu_hours(
        hparams, longest, made, flops * options.share_of_peak
    )
    peak, at_rest = choice.memory.peak / GIB, choice.memory.at_rest / GIB
    lines = {
        "model": f"{count_parameters(hparams['model']) / 1e6:.1f} M "
        f"parameters, {hparams['precision']}",
        "memory": f"{peak:.1f} GiB at most, {at_rest:.1f} of it at rest; "
        f"{usable / GIB:.1f} of {options.gpu_memory:g} are usable",
        "batch": f"{choice.max_batch_seconds:g} s = "
        f"{round(choice.max_batch_seconds / longest)} x {longest:g} s, "
        f"memory_budget {choice.memory_budget:g}",
        "update": f"{options.gpus} GPU x {choice.max_batch_seconds:g} s x "
        f"{choice.accumulation} = {made:,.0f} s ({update:,.0f} wanted)",
        "audio": f"{total:,.0f} h"
        + (f", {total / hours:,.1f} times the {hours:,.1f} h" if hours else ""),
        "time": f"{gpu_hours:,.0f} GPU hours, "
        f"{gpu_hours / options.gpus / 24:,.1f} days, "
        f"{total / gpu_hours:,.0f} h of audio per GPU hour (an estimate: "
        f"{options.share_of_peak:.1%} of the peak of {options.gpu})",
        "energy": f"{gpu_hours * options.watts / 1000:,.0f} kWh at "
        f"{options.watts:g} W a GPU (an estimate)",
    }
    for name, text in lines.items():
        print(f"{name:<8}{text}")
    if options.probe:
        device = torch.device(choose_device(None))
        measured = planner.probe(choice, device) / GIB
        print(f"probe   {measured:.2f} GiB on {device}, {peak:.2f} predicted")
    print(command_of(str(options.file), options.gpus, choice.overrides(), keys))


def preset(choice: Choice, options: argparse.Namespace) -> str:
    """Return a YAML file that states a choice and how it was made."""
    settings = "".join(
        f"{key}: {value:g}\n" for key, value in choice.overrides().items()
    )
    return (
        f"# {options.file.stem} on {options.gpus} GPU of "
        f"{options.gpu_memory:g} GB: {choice.memory.peak / GIB:.1f} GiB, "
        "traced without compilation.\n"
        f"# Written by: python recipes/plan.py {options.file.name} "
        f"--gpu_memory={options.gpu_memory:g} --gpus={options.gpus}\n"
        f"base: {options.file.name}\n\n{settings}"
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that are not keys of the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.yaml")
    add("--gpu_memory", type=float, required=True, help="GiB of one GPU")
    add("--gpus", type=int, default=1, help="number of GPUs")
    add("--hours", type=float, help="hours of audio, without --manifests")
    add(
        "--longest_seconds",
        type=float,
        default=30.0,
        help="longest utterance, without --manifests (default: %(default)g)",
    )
    add(
        "--update_seconds",
        type=float,
        help="audio of an update (default: the file's on four GPUs, "
        "5,760 s in the paper)",
    )
    add("--gpu", default="A100", help="its name, for the time")
    add(
        "--share_of_peak",
        type=float,
        default=PAPER_SHARE_OF_PEAK,
        help="of the GPU's bf16 FLOP per second that is reached; the "
        "default, %(default)g, is that of the paper's run on A100",
    )
    add("--watts", type=float, default=400.0, help="of one GPU")
    add("--write", type=Path, metavar="YAML", help="write a preset, too")
    add(
        "--probe",
        action="store_true",
        help="make the worst update on this machine and compare",
    )
    return parser


if __name__ == "__main__":
    exit_on_user_error(main)
