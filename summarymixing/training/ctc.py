"""Speech recognition for probes: tokenizers, CTC, greedy decoding, WER.

Letters: B utterances, T frames (20 ms), C tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.logger import get_logger
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from summarymixing.data.manifest import Manifest, Row
from summarymixing.errors import UserError
from summarymixing.lobes.features import SAMPLE_RATE_HZ, num_frames
from summarymixing.training.probe_task import ProbeTask
from summarymixing.training.processes import on_main_process

logger = get_logger(__name__)

UNKNOWN = "\u2047"  # how an unknown token is shown, as in SentencePiece


class Tokenizer(Protocol):
    """Text to tokens and back.

    tokens : one text for each output; blank_id : of CTC; unknown_id : stands
    for what the tokenizer never saw (may be the same).
    """

    tokens: list[str]
    blank_id: int
    unknown_id: int

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
        self.unknown_id = self._encoder.encode_label(
            self._encoder.unk_label, allow_unk=False
        )
        self.tokens = [
            self._encoder.ind2lab[i] for i in range(len(self._encoder))
        ]
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


class TextScore(NamedTuple):
    """words, characters : SpeechBrain's details of the errors."""

    words: dict
    characters: dict


class CtcTask(ProbeTask):
    """Transcribe by CTC and greedy decoding; word and character error rates.

    Arguments
    ---------
    label : str
        Column of the transcripts. White space separates words.
    tokenizer : callable
        See `TokenizerFactory`.

    Example
    -------
    >>> task = CtcTask(label="text", tokenizer=CharacterTokenizer)
    >>> task.metrics
    ('wer', 'cer')
    """

    name = "asr"
    metrics = ("wer", "cer")

    def __init__(self, *, label: str, tokenizer: TokenizerFactory) -> None:
        super().__init__(label=label)
        self._make_tokenizer = tokenizer

    def fit(self, train: Manifest, folder: Path) -> None:
        """Make the tokenizer from the training transcripts."""
        texts = [self.text(row) for row in train]
        if not any(texts):
            raise UserError(
                f"all transcripts in column '{self.label}' of {train.path} "
                "are empty. Prepare the corpus again."
            )
        self.tokenizer = self._make_tokenizer(texts, folder)
        self.outputs = self.tokenizer.tokens

    def text(self, row: Row) -> str:
        """Return the transcript of a row, with single spaces."""
        return " ".join(row.labels[self.label].split())

    def inspect(self, split: str, manifest: Manifest) -> dict[str, int]:
        """Count what cannot be learned or recognised.

        Arguments
        ---------
        split : str
        manifest : Manifest

        Returns
        -------
        dict
            Tokens that are unknown, and utterances with too few frames for
            their transcript: training skips these.
        """
        unknown, too_short = 0, 0
        for row in manifest:
            ids = self.tokenizer.encode(self.text(row))
            unknown += ids.count(self.tokenizer.unknown_id)
            frames = int(num_frames(round(row.duration * SAMPLE_RATE_HZ)))
            too_short += frames < frames_needed(ids)
        if unknown or too_short:
            logger.warning(
                "%s: %d tokens never occur in the training transcripts; %d of "
                "%d utterances are too short for their transcript.",
                split,
                unknown,
                too_short,
                len(manifest),
            )
        return {"unknown_tokens": unknown, "too_short": too_short}

    def loss(
        self, predicted: Tensor, padding_mask: Tensor, rows: Sequence[Row]
    ) -> Tensor:
        """CTC loss for each token of a transcript, (B,).

        Arguments
        ---------
        predicted : Tensor, (B, T, C)
            Logits.
        padding_mask : Tensor, bool, (B, T)
            True on padding.
        rows : sequence of B Rows

        Returns
        -------
        Tensor, (B,)
            Zero where the utterance is too short for its transcript.
        """
        targets = [
            torch.tensor(
                self.tokenizer.encode(self.text(row)), dtype=torch.long
            )
            for row in rows
        ]
        lengths = torch.tensor([len(target) for target in targets])
        # SpeechBrain's ctc_loss divides by zero for an empty transcript.
        losses = F.ctc_loss(
            predicted.float().log_softmax(dim=-1).transpose(0, 1),
            pad_sequence(targets, batch_first=True).to(predicted.device),
            (~padding_mask).sum(dim=1),
            lengths.to(predicted.device),
            blank=self.tokenizer.blank_id,
            reduction="none",
            zero_infinity=True,
        )
        return losses / lengths.to(predicted.device).clamp(min=1)

    def score(
        self, predicted: Tensor, padding_mask: Tensor, rows: Sequence[Row]
    ) -> list[TextScore]:
        """Decode and compare with the transcripts; arguments as in `loss`."""
        references = [self.text(row).split() for row in rows]
        hypotheses = [
            text.split() for text in self.decode(predicted, padding_mask)
        ]
        words = ErrorRateStats()
        characters = ErrorRateStats(split_tokens=True, space_token=" ")
        for statistics in (words, characters):
            statistics.append([r.id for r in rows], hypotheses, references)
        for details in characters.scores:  # not reported, only counted
            details |= dict.fromkeys(("alignment", "ref_tokens", "hyp_tokens"))
        return [
            TextScore(*pair)
            for pair in zip(words.scores, characters.scores, strict=True)
        ]

    def decode(self, predicted: Tensor, padding_mask: Tensor) -> list[str]:
        """Return the B texts of the likeliest token of each frame."""
        valid = (~padding_mask).float().mean(dim=1)
        sequences = ctc_greedy_decode(
            predicted, valid, blank_id=self.tokenizer.blank_id
        )
        return [self.tokenizer.decode(ids) for ids in sequences]

    def summarise(self, scores: Sequence[TextScore]) -> dict[str, float]:
        """Return the word and character error rates in percent."""
        return {
            "wer": merged([s.words for s in scores]).summarize("WER"),
            "cer": merged([s.characters for s in scores]).summarize("WER"),
        }

    def write_report(
        self, folder: Path, split: str, scores: Sequence[TextScore]
    ) -> None:
        """Write `wer_SPLIT.txt` with the alignment of each utterance."""
        statistics = merged([score.words for score in scores])
        path = folder / f"wer_{split}.txt"
        with path.open("w", encoding="utf-8") as file:
            statistics.write_stats(file)


def merged(scores: list[dict]) -> ErrorRateStats:
    """Return SpeechBrain's statistics over the details of utterances."""
    statistics = ErrorRateStats()
    statistics.scores = scores
    statistics.summarize()
    return statistics


def frames_needed(ids: Sequence[int]) -> int:
    """Return how many frames CTC needs: a blank separates equal neighbours.

    Example
    -------
    >>> frames_needed([5, 5, 6])
    4
    """
    return len(ids) + sum(a == b for a, b in pairwise(ids))
