"""Corpus preparation: a corpus is one file here and one entry of `CORPORA`."""

from summarymixing.data.prepare import (
    commonvoice,
    folder,
    fsdd,
    iemocap,
    librilight,
    librispeech,
    slurp,
    voxceleb1,
)

CORPORA = {
    corpus.name: corpus
    for corpus in (
        librilight.CORPUS,
        folder.CORPUS,
        librispeech.CORPUS,
        commonvoice.CORPUS,
        slurp.CORPUS,
        iemocap.CORPUS,
        voxceleb1.CORPUS,
        fsdd.CORPUS,
    )
}
