"""Miniature corpora: synthetic speech in the layouts of the real corpora.

Anyone can build them in seconds, with a seed and a size. Tests and the demo
run on them; results on them say nothing about real speech.
"""

from summarymixing.miniature.commonvoice import build_commonvoice
from summarymixing.miniature.iemocap import build_iemocap
from summarymixing.miniature.librilight import build_librilight
from summarymixing.miniature.librispeech import build_librispeech
from summarymixing.miniature.slurp import build_slurp
from summarymixing.miniature.voxceleb1 import build_voxceleb1

__all__ = [
    "build_commonvoice",
    "build_iemocap",
    "build_librilight",
    "build_librispeech",
    "build_slurp",
    "build_voxceleb1",
]
