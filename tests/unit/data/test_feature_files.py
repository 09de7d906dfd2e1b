"""Files of features: what readers of both formats find in them."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from summarymixing.data.feature_files import DTYPES, open_features
from summarymixing.errors import UserError


def write(path, states, **options):
    """Write layers (L, T, D) backwards, in blocks of two frames."""
    names = [f"layer_{n}" for n in range(len(states))]
    with open_features(path, names, *states.shape[1:], **options) as file:
        for index in reversed(range(len(states))):
            for start in range(0, states.shape[1], 2):
                file.write(index, start, states[index, start : start + 2])
    return names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("total", [1, 7])
def test_safetensors_hold_what_was_written(tmp_path, dtype, total):
    states, path = torch.randn(3, total, 5), tmp_path / "a" / "b.safetensors"
    names = write(path, states, dtype=dtype)
    content = load_file(path)
    assert sorted(content) == names
    for name, state in zip(names, states, strict=True):
        torch.testing.assert_close(
            content[name], state.to(DTYPES[dtype][0]), rtol=0, atol=0
        )
    with safe_open(path, "pt") as file:  # a part of one layer
        part = file.get_slice("layer_1")[total // 2 :]
    torch.testing.assert_close(part, content["layer_1"][total // 2 :])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_npy_can_be_mapped(tmp_path, dtype):
    states, path = torch.randn(2, 7, 5), tmp_path / "a.npy"
    write(path, states, dtype=dtype, format="npy")
    array = np.load(path, mmap_mode="r")
    np.testing.assert_array_equal(array, states.to(DTYPES[dtype][0]).numpy())


def test_npy_has_no_bf16(tmp_path):
    with pytest.raises(UserError, match="--format=safetensors"):
        write(tmp_path / "a", torch.ones(1, 2, 2), dtype="bf16", format="npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "message"), [(1e6, "--dtype=bf16"), (float("nan"), "NaN")]
)
def test_numbers_that_do_not_fit_leave_no_file(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "a", torch.full((1, 2, 2), value), dtype="fp16")
    assert not list(tmp_path.iterdir())


def test_half_a_file_is_a_defect_and_leaves_none(tmp_path):
    with (
        pytest.raises(RuntimeError, match="1 frames"),
        open_features(tmp_path / "a", ["x"], 2, 1, dtype="fp32") as file,
    ):
        file.write(0, 0, torch.ones(1, 1))
    assert not list(tmp_path.iterdir())
