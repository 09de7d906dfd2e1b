"""What tests share: the device, one thread, scoped seeds, poisoned memory."""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# For `from tests.reference import ...`, here and in spawned processes.
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

SEED = 1986


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--device`, for the tests that run on any device."""
    parser.addoption("--device", default="cpu", help="cpu (default) or cuda")
    parser.addoption("--threads", default=1, type=int, help="of torch")


def pytest_configure(config: pytest.Config) -> None:
    """Keep torch to one thread: tests are small and run beside each other."""
    torch.set_num_threads(config.getoption("--threads"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device that was asked for on the command line."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _scoped_seed() -> Iterator[None]:
    """Give every test the same seeds, and the next one its own state back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        yield
    random.setstate(python)
    np.random.set_state(numpy)


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN, so that reading it unwritten shows."""
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, _filled(getattr(owner, name)))


def _filled(
    allocate: Callable[..., torch.Tensor],
) -> Callable[..., torch.Tensor]:
    def allocate_and_fill(*args: object, **kwargs: object) -> torch.Tensor:
        memory = allocate(*args, **kwargs)
        if memory.is_floating_point() and memory.device.type != "meta":
            memory.detach().fill_(float("nan"))
        return memory

    return allocate_and_fill
