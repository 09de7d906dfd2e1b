"""Miniature corpora and their manifests, built once for all recipes."""

from pathlib import Path

import pytest

from summarymixing.data.miniature import build_librilight
from summarymixing.data.prepare.librilight import plan_librilight


@pytest.fixture(scope="session")
def pretraining_manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return manifests of a miniature Libri-Light of some minutes."""
    folder = tmp_path_factory.mktemp("librilight")
    corpus = build_librilight(folder / "corpus", hours=0.05, seed=1)
    plan_librilight(corpus, folder / "manifests").run()
    return folder / "manifests"
