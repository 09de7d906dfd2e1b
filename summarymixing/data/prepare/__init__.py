"""Corpus preparation: a corpus is one file here and one entry of `CORPORA`."""

from summarymixing.data.prepare import folder, librilight, librispeech

CORPORA = {
    corpus.name: corpus
    for corpus in (
        librilight.CORPUS,
        folder.CORPUS,
        librispeech.CORPUS,
    )
}
