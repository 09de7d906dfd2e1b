"""An encoder as an upstream of S3PRL, the toolkit of SUPERB.

Its command, with an upstream `summarymixing` and `-k` for the encoder:

    python -m summarymixing.integrations.s3prl -m train -u summarymixing \
        -k results/base/encoder -d fluent_commands -c CONFIG -n NAME

and in Python `register()`, then `s3prl.nn.S3PRLUpstream("summarymixing",
path_or_url="results/base/encoder")`. S3PRL is installed with `pip install
--no-deps s3prl` and what it then says is missing: its own requirements would
replace torch. Letters: B utterances, S samples at 16 kHz, T frames (20 ms), D
width, L layers.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.lobes.features import FRAMES_PER_SECOND, SAMPLE_RATE_HZ
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.masking import zero_padding

NAME = "summarymixing"


class UpstreamExpert(nn.Module):
    """A `Wav2Vec2Encoder` with the interface of an S3PRL upstream.

    Arguments
    ---------
    ckpt : str
        A folder, or a name on the HuggingFace hub, as of
        `Wav2Vec2Encoder.from_pretrained`, with the same errors.
    **kwargs : Any
        `model_config` and `refresh`, which S3PRL gives to every upstream.

    Example
    -------
    >>> from summarymixing.pretrained import save_encoder
    >>> folder = save_encoder(
    ...     Wav2Vec2Encoder(num_layers=2, d_model=16, d_ffn=32),
    ...     getfixture("tmp_path"),
    ... )
    >>> states = UpstreamExpert(folder)([torch.rand(16_000), torch.rand(80)])
    >>> len(states["hidden_states"]), states["hidden_states"][0].shape
    (3, torch.Size([2, 51, 16]))
    """

    def __init__(self, ckpt: str | None = None, **kwargs: Any) -> None:
        super().__init__()
        if ckpt is None:
            raise UserError(
                f"the upstream {NAME} needs an encoder: -k FOLDER on the "
                "command line, path_or_url=FOLDER of S3PRLUpstream"
            )
        self.encoder = Wav2Vec2Encoder.from_pretrained(ckpt)

    def get_downsample_rates(self, key: str) -> int:
        """Return the samples of a frame, whatever is asked for."""
        return SAMPLE_RATE_HZ // FRAMES_PER_SECOND

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Encode B utterances, (S_b,) each.

        Returns
        -------
        dict
            `hidden_states`, L+1 tensors (B, T, D), zero on padding, and
            `last_hidden_state`, the last of them.
        """
        padded = pad_sequence(list(wavs), batch_first=True)
        lengths = torch.tensor([len(wav) for wav in wavs], device=padded.device)
        states, padding_mask = self.encoder(padded, lengths / padded.shape[1])
        states = [zero_padding(state, padding_mask) for state in states]
        return {"hidden_states": states, "last_hidden_state": states[-1]}


def register() -> None:
    """Make `summarymixing` one of the upstreams that S3PRL knows.

    UserError if S3PRL or a package that it needs is missing.
    """
    if find_spec("s3prl") is None:
        raise UserError("S3PRL is missing: pip install --no-deps s3prl")
    _restore_old_names()
    try:
        from s3prl import hub
    except ImportError as error:
        raise UserError(
            f"S3PRL cannot be imported ({error}); install what it misses with "
            "pip install --no-deps"
        ) from error
    setattr(hub, NAME, UpstreamExpert)


def _restore_old_names() -> None:
    """Add what S3PRL 0.4.18 imports and new packages no longer have.

    What exists stays. Without sox, tasks that change audio with it end in a
    message: keyword spotting, speaker verification, spoken term detection.
    """
    import huggingface_hub
    import torchaudio

    def no_sox(*_: Any, **__: Any) -> None:
        raise UserError(
            "this task of S3PRL needs torchaudio.sox_effects, which the "
            "torchaudio that is installed no longer has"
        )

    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda *_: None
    if find_spec("torchaudio.sox_effects") is None:
        sox: Any = ModuleType("torchaudio.sox_effects")
        sox.apply_effects_tensor = sox.apply_effects_file = no_sox
        sys.modules["torchaudio.sox_effects"] = torchaudio.sox_effects = sox
    if find_spec("torchcodec") is None:
        torchaudio.load = _load_audio
    for name in ("HfFolder", "Repository"):  # to publish what was trained
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, None)


def _load_audio(path: Any, **_: Any) -> tuple[Tensor, int]:
    """Read a file as `torchaudio.load` does: (channels, samples) and rate."""
    import soundfile

    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(wave.T.copy()), rate


def main() -> None:
    """Run S3PRL's `run_downstream.py` with our upstream."""
    register()
    # A module of S3PRL's own that has the command.
    runpy.run_module("s3prl.run_downstream", run_name="__main__")


if __name__ == "__main__":
    exit_on_user_error(main)
