"""Corpus preparation: `CORPORA` are the commands of `recipes/prepare.py`.

To add a corpus, write one module with a `CORPUS`: copy `fsdd.py`, which
explains itself. The module may stand anywhere:

    python recipes/prepare.py --corpus_module=my_corpus.py my_corpus SOURCE ...

To have it in this package, put it into this folder and its name into
`MODULES`.
"""

from importlib import import_module

from summarymixing.data.prepare.corpus import Corpus

MODULES = (
    "librilight",
    "folder",
    "librispeech",
    "commonvoice",
    "slurp",
    "iemocap",
    "voxceleb1",
    "fsdd",
)

CORPORA: dict[str, Corpus] = {
    name: import_module(f"{__name__}.{name}").CORPUS for name in MODULES
}
