"""Speech recognition for probes: CTC, greedy decoding, error rates.

Letters: B utterances, T frames (20 ms), C tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.logger import get_logger
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from summarymixing.data.manifest import Manifest, Row
from summarymixing.errors import UserError
from summarymixing.lobes.features import SAMPLE_RATE_HZ, num_frames
from summarymixing.training.probe_task import ProbeTask, Role
from summarymixing.training.tokenizers import TokenizerFactory

logger = get_logger(__name__)


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
        See `TokenizerFactory`; made from all training transcripts.
    max_train_s : float, optional
        Leave longer utterances out of training.
    min_words : int
        Leave shorter sentences out of training.
    min_words_everywhere : bool
        Leave them out of validation and tests as well, as MP3S does for
        Common Voice: short sentences are the hard ones.

    Example
    -------
    >>> from summarymixing.training.tokenizers import CharacterTokenizer
    >>> task = CtcTask(label="text", tokenizer=CharacterTokenizer)
    >>> task.metrics
    ('wer', 'cer')
    """

    name = "asr"
    metrics = ("wer", "cer")

    def __init__(
        self,
        *,
        label: str,
        tokenizer: TokenizerFactory,
        max_train_s: float | None = None,
        min_words: int = 0,
        min_words_everywhere: bool = False,
    ) -> None:
        super().__init__(label=label)
        self._make_tokenizer = tokenizer
        self.max_train_s = max_train_s
        self.min_words = min_words
        self.min_words_everywhere = min_words_everywhere

    def keeps(self, row: Row, role: Role) -> bool:
        """Apply the limits to an utterance."""
        longest = self.max_train_s if role == "train" else None
        if longest is not None and row.duration > longest:
            return False
        if role == "train" or self.min_words_everywhere:
            return len(self.text(row).split()) >= self.min_words
        return True

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

    def _encode(self, row: Row) -> list[int]:
        return self.tokenizer.encode(self.text(row))

    def _targets(self, row: Row) -> list[int]:
        """Return what CTC shall align: no blank, even if it means unknown."""
        blank = self.tokenizer.blank_id
        return [i for i in self._encode(row) if i != blank]

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
            ids = self._encode(row)
            unknown += ids.count(self.tokenizer.unknown_id)
            frames = int(num_frames(round(row.duration * SAMPLE_RATE_HZ)))
            too_short += frames < frames_needed(self._targets(row))
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
            torch.tensor(self._targets(row), dtype=torch.long) for row in rows
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
