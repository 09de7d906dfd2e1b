"""The four models of Table 1 have the sizes that the paper reports."""

import pytest
import torch

from summarymixing.run.hparams_file import load_hparams

MILLIONS = {
    "summarymixing_base": 155,
    "summarymixing_large": 308,
    "mhsa_base": 165,
    "mhsa_large": 329,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_the_model_has_as_many_parameters_as_in_the_paper(name):
    with torch.device("meta"):
        hparams = load_hparams(
            f"pretraining/{name}.yaml",
            {"manifests": "none", "output_folder": "none"},
        )
    parameters = sum(p.numel() for p in hparams["model"].parameters())
    assert parameters / 1e6 == pytest.approx(MILLIONS[name], rel=0.005)
