"""What the tests of recipes share: corpora and scripts."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from summarymixing.data.prepare import CORPORA
from summarymixing.errors import exit_on_user_error
from summarymixing.miniature import build_librilight


@pytest.fixture(scope="session")
def pretraining_manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return manifests of a miniature Libri-Light of some minutes."""
    folder = tmp_path_factory.mktemp("librilight")
    corpus = build_librilight(folder / "corpus", hours=0.05, seed=1)
    CORPORA["librilight"].plan(corpus, folder / "manifests").run()
    return folder / "manifests"


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Import the entry point that a file of tests names as its SCRIPT."""
    path: Path = request.module.SCRIPT
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def type_command(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line of SCRIPT; return its status, output and errors."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        words = [str(script.__file__), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        status = 0
        try:
            exit_on_user_error(script.main)
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capfd.readouterr()

    return run
