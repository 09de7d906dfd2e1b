"""Self-supervised speech pre-training in linear time, on SpeechBrain."""

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
