"""Self-supervised speech pre-training in linear time, on SpeechBrain."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from summarymixing.lobes.conformer import (
        ConformerEncoder,
        ConformerEncoderLayer,
    )
    from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
    from summarymixing.nnet.attention import MultiHeadAttention
    from summarymixing.nnet.summary_mixing import SummaryMixing

__version__ = "0.1.0"
__all__ = [
    "ConformerEncoder",
    "ConformerEncoderLayer",
    "MultiHeadAttention",
    "SummaryMixing",
    "Wav2Vec2Encoder",
]

_HOMES = {
    "ConformerEncoder": "summarymixing.lobes.conformer",
    "ConformerEncoderLayer": "summarymixing.lobes.conformer",
    "MultiHeadAttention": "summarymixing.nnet.attention",
    "SummaryMixing": "summarymixing.nnet.summary_mixing",
    "Wav2Vec2Encoder": "summarymixing.lobes.wav2vec2",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    SpeechBrain takes seconds to import, and `prepare.py --help` needs none.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
