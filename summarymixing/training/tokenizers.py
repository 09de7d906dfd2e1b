"""Text to tokens and back, for CTC."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import sentencepiece
from speechbrain.dataio.encoder import CTCTextEncoder

from summarymixing.errors import UserError
from summarymixing.run.processes import on_main_process

logger = logging.getLogger(__name__)
UNKNOWN = "\u2047"  # how an unknown token is shown, as in SentencePiece


class Tokenizer(Protocol):
    """Text to tokens and back."""

    tokens: list[str]  # one text for each output of the head
    blank_id: int  # the blank of CTC
    unknown_id: int  # what the tokenizer never saw; may be the blank

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; never fails."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without blanks."""


# Called on every process with the training texts and the folder of the run.
TokenizerFactory = Callable[[Sequence[str], Path], Tokenizer]


class CharacterTokenizer:
    """Characters, in the order in which the training text shows them.

    Token 0 is the blank, 1 stands for unknown characters.

    Arguments
    ---------
    texts : iterable of str
        Training transcripts.
    folder : Path, optional
        Where to write `tokens.txt`; every process must make the tokenizer.

    Example
    -------
    >>> tokenizer = CharacterTokenizer(["BAD", "CAB"])
    >>> tokenizer.encode("ABE")
    [3, 2, 1]
    >>> tokenizer.decode([2, 3, 4])
    'BAD'
    """

    def __init__(
        self, texts: Iterable[str], folder: Path | None = None
    ) -> None:
        self._encoder = CTCTextEncoder()
        self._encoder.add_blank()
        self._encoder.add_unk()
        characters = dict.fromkeys(chain.from_iterable(texts))
        self._encoder.update_from_iterable(characters, sequence_input=False)
        self._encoder.ignore_len()  # any set of characters will do
        self.blank_id = self._encoder.get_blank_index()
        self.unknown_id = self._encoder.lab2ind[self._encoder.unk_label]
        indices = range(len(self._encoder))
        self.tokens = [self._encoder.ind2lab[i] for i in indices]
        if folder is not None:
            on_main_process(lambda: self._encoder.save(folder / "tokens.txt"))

    def encode(self, text: str) -> list[int]:
        """Return the token of each character."""
        return self._encoder.encode_sequence(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return "".join(
            UNKNOWN if i == self.unknown_id else self.tokens[i] for i in ids
        )


BPE_NAME = "bpe.model"  # in the folder of a run
# Units that are not characters: the blank, the mark of a space, one to spare.
SPARE_UNITS = 3
# Of the units, where there are too many characters; the rest is for pairs.
KEPT_CHARACTERS = 0.75
MAX_RARE_SHARE = 1e-3


class BpeTokenizer:
    """Byte-pair encoding by SentencePiece, trained on the transcripts.

    Token 0 is the blank and stands for unknown characters too, as in MP3S:
    the recogniser can never emit it. Where there are more characters than
    units, the rarest are unknown, if they are less than a thousandth of the
    text, and a warning names them.

    Arguments
    ---------
    texts : iterable of str
        Training transcripts.
    folder : Path, optional
        Where to write `bpe.model`; every process must make the tokenizer.
    vocab_size : int
        How many tokens there are, the blank included.

    Example
    -------
    >>> tokenizer = BpeTokenizer(["da iawn", "da da"], vocab_size=9)
    >>> tokenizer.decode(tokenizer.encode("iawn da"))
    'iawn da'
    """

    blank_id = unknown_id = 0

    def __init__(
        self,
        texts: Iterable[str],
        folder: Path | None = None,
        *,
        vocab_size: int = 100,
    ) -> None:
        texts = list(texts)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=_coverage(texts, vocab_size),
                # Decoding must give back what stands in the transcripts: by
                # default "…" would become "..." and count as an error.
                normalization_rule_name="identity",
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(
                f"SentencePiece cannot make {vocab_size} units of the "
                f"training transcripts ({error}). Give another number with "
                "--vocab_size=..., or more transcripts."
            ) from error
        self._set_model(model.getvalue())
        if folder is not None:
            path = folder / BPE_NAME
            on_main_process(lambda: path.write_bytes(model.getvalue()))

    @classmethod
    def load(cls, folder: Path) -> BpeTokenizer:
        """Read the tokenizer of a run; OSError, RuntimeError if it cannot."""
        tokenizer = cls.__new__(cls)
        tokenizer._set_model((folder / BPE_NAME).read_bytes())
        return tokenizer

    def _set_model(self, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(
            model_proto=model
        )
        numbers = list(range(self._processor.get_piece_size()))
        self.tokens = self._processor.id_to_piece(numbers)

    def encode(self, text: str) -> list[int]:
        """Return the units of a text."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of units."""
        return self._processor.decode(list(ids))


def _coverage(texts: Sequence[str], vocab_size: int) -> float:
    """Return the share of the text whose characters become units.

    Punctuation and loan words may have more characters than there are units.
    """
    counts = Counter(chain.from_iterable(texts))
    if len(counts) <= vocab_size - SPARE_UNITS:
        return 1.0
    num_kept = round(vocab_size * KEPT_CHARACTERS)
    rare = dict(counts.most_common()[num_kept:])
    share = sum(rare.values()) / counts.total()
    if share > MAX_RARE_SHARE:
        return 1.0  # which SentencePiece refuses, and says why
    logger.warning(
        "%d of the %d different characters in the training transcripts are "
        "too rare for %d units, and unknown to the recogniser: %s",
        *(len(rare), len(counts), vocab_size, " ".join(sorted(rare))),
    )
    return 1 - share
