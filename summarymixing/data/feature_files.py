"""Files of features: written block by block, mapped into memory by readers.

Letters: T frames, D width, L layers that are stored.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from summarymixing.errors import UserError
from summarymixing.files import open_atomically

# Our name, torch's type, and those of the two formats; npy has no bfloat16.
DTYPES = {
    "fp32": (torch.float32, "F32", "<f4"),
    "fp16": (torch.float16, "F16", "<f2"),
    "bf16": (torch.bfloat16, "BF16", None),
}
FORMATS = ("safetensors", "npy")


class FeatureFile:
    """A file that takes the frames of its layers in any order.

    Arguments
    ---------
    file : IO
        Open for writing, empty.
    names : sequence of L str
        The layers; the names of the tensors in safetensors.
    total, width : int
        T and D.
    dtype, format : str
        A key of `DTYPES`, and one of `FORMATS`. UserError for bf16 in npy.
    """

    def __init__(
        self,
        file: IO[bytes],
        names: Sequence[str],
        total: int,
        width: int,
        *,
        dtype: str,
        format: str = "safetensors",
    ) -> None:
        self._file, self._dtype = file, DTYPES[dtype][0]
        self._row = width * self._dtype.itemsize
        self._layer = total * self._row
        make_header = {"safetensors": _safetensors_header, "npy": _npy_header}
        header = make_header[format](names, total, width, dtype)
        file.write(header)
        self._first = len(header)
        self._missing = len(names) * total

    def write(self, index: int, start: int, frames: Tensor) -> None:
        """Write frames (n, D) of a layer, the first of which is `start`.

        UserError if a number is too large for the type of the file.
        """
        rounded = frames.to("cpu", self._dtype).contiguous()
        if not rounded.isfinite().all():
            raise UserError(
                "a feature is not finite"
                + (
                    " as fp16, which ends at 65,504; give --dtype=bf16 or fp32"
                    if frames.isfinite().all()
                    else ": the encoder returned NaN or infinity. Its weights "
                    "are damaged, or --precision=fp16 is too narrow for it"
                )
            )
        self._file.seek(self._first + index * self._layer + start * self._row)
        self._file.write(rounded.view(-1).view(torch.uint8).numpy().data)
        self._missing -= len(frames)

    def check_complete(self) -> None:
        """Raise RuntimeError where frames were left out or written twice."""
        if self._missing:
            raise RuntimeError(f"{self._missing} frames were not written")


@contextmanager
def open_features(
    path: Path,
    names: Sequence[str],
    total: int,
    width: int,
    *,
    dtype: str,
    format: str = "safetensors",
    durable: bool = True,
) -> Iterator[FeatureFile]:
    """Write a file of features that is whole or not there.

    Arguments
    ---------
    path, durable
        As of `open_atomically`; the folder is made.
    names, total, width, dtype, format
        As of `FeatureFile`.

    Example
    -------
    >>> from safetensors.torch import load_file
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> with open_features(path, ["layer_3"], 2, 4, dtype="fp16") as file:
    ...     file.write(0, 0, torch.ones(2, 4))
    >>> load_file(path)["layer_3"].dtype
    torch.float16
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path, binary=True, durable=durable) as file:
        features = FeatureFile(
            file, names, total, width, dtype=dtype, format=format
        )
        yield features
        features.check_complete()


def _safetensors_header(
    names: Sequence[str], total: int, width: int, dtype: str
) -> bytes:
    torch_type, name_of_type, _ = DTYPES[dtype]
    size = total * width * torch_type.itemsize
    entries = {
        name: {
            "dtype": name_of_type,
            "shape": [total, width],
            "data_offsets": [index * size, (index + 1) * size],
        }
        for index, name in enumerate(names)
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text


def _npy_header(
    names: Sequence[str], total: int, width: int, dtype: str
) -> bytes:
    descr = DTYPES[dtype][2]
    if descr is None:
        raise UserError(
            f"npy has no {dtype}; give --dtype=fp16 or --format=safetensors"
        )
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": descr,
            "fortran_order": False,
            "shape": (len(names), total, width),
        },
    )
    return header.getvalue()
