"""What is typed for options that several sub-commands have."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch

from summarymixing.errors import UserError

MEAN = "mean"
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20}
UNITS |= {"GIB": 2**30, "": 1}


def read_memory(text: str) -> float:
    """Return the bytes that a text such as 2GB means.

    Example
    -------
    >>> read_memory("2GB"), read_memory("500 MiB")
    (2000000000.0, 524288000.0)
    """
    found = re.fullmatch(r"(\d+\.?\d*)\s*([KMG]I?B|)", text.strip().upper())
    number = float(found[1]) * UNITS[found[2]] if found else 0
    if number < 10e6:
        raise UserError(
            f"--memory={text} must be a size of 10MB or more, as in 2GB"
        )
    return number


def read_layers(text: str, num_layers: int) -> list[int] | None:
    """Return the layers that --layers names; None for their mean.

    Example
    -------
    >>> read_layers("all", 2), read_layers("2,0", 2), read_layers("mean", 2)
    ([0, 1, 2], [2, 0], None)
    """
    if text == MEAN:
        return None
    if text == "all":
        return list(range(num_layers + 1))
    words = text.split(",")
    layers = [int(word) for word in words if word.strip().isdecimal()]
    if len(layers) < len(words) or len(set(layers)) < len(layers):
        raise UserError(
            f"--layers={text} must be all, mean, or numbers as in 6,12"
        )
    if max(layers) > num_layers:
        raise UserError(
            f"--layers={text}: this encoder has the layers 0 (the input of "
            f"the first) to {num_layers}"
        )
    return layers


def choose_device(name: str | None, precision: str = "fp32") -> torch.device:
    """Return the device that --device names, or else a GPU if there is one.

    UserError where it cannot be used, or not in that precision.
    """
    found = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name or found)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device={name} cannot be used here ({error}); give cpu, cuda "
            "or cuda:INDEX, or leave it out"
        ) from error
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision=fp16 needs a GPU; give bf16 or fp32")
    return device


def find_mixer(name: str | None) -> Any:
    """Import the class of mixers that --mixer names."""
    if name is None:
        return None
    module, _, class_name = name.removeprefix("!name:").rpartition(".")
    try:
        return getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"--mixer={name} cannot be imported ({error}); give it as "
            "my_package.MyMixer, and put my_package on PYTHONPATH"
        ) from error
