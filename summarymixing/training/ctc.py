"""Speech recognition by CTC: loss, decoding, error rates.

Letters: B utterances, T frames (20 ms), C tokens.
"""

from __future__ import annotations

import copy
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from speechbrain.decoders import CTCBeamSearcher, ctc_greedy_decode
from speechbrain.decoders.ctc import CTCHypothesis
from speechbrain.utils.logger import get_logger
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from summarymixing.data.manifest import Manifest, Row
from summarymixing.errors import UserError
from summarymixing.files import open_atomically
from summarymixing.lobes.features import SAMPLE_RATE_HZ, num_frames
from summarymixing.nnet.bootstrap import ratio_interval
from summarymixing.run.processes import on_main_process
from summarymixing.training.probe_task import ProbeTask, Role
from summarymixing.training.tokenizers import (
    UNKNOWN,
    Tokenizer,
    TokenizerFactory,
)

logger = get_logger(__name__)

# What can be wrong with a label; the names of the counts in metrics.json.
EMPTY, TOO_SHORT, UNKNOWN_TOKENS = "empty_texts", "too_short", "unknown_tokens"
LABEL_PROBLEMS = {
    EMPTY: "without text",
    TOO_SHORT: "longer than CTC can place in their frames",
    UNKNOWN_TOKENS: "with characters that are no part of the vocabulary",
}
UNLEARNABLE = {EMPTY, TOO_SHORT}
MAX_LISTED = 1000  # utterances in the list of a split

# A plateau: hardly a letter comes out, whatever the audio.
PLATEAU_BLANKS, PLATEAU_CER = 0.9, 95.0
# How long it may last behind the warm-up until a run is told what to try.
# In the run of recipes/README.md, Fine-tuning, it ended with the warm-up.
USUAL_PLATEAU_UPDATES = 500

BadLabel = tuple[Row, dict[str, str]]  # kinds of what is wrong, with details


class TextScore(NamedTuple):
    """SpeechBrain's details of the errors of an utterance."""

    words: dict
    characters: dict
    num_blanks: int  # frames in which the blank is likeliest
    num_frames: int


class Decoder(Protocol):
    """Logits to texts."""

    def __call__(
        self, predicted: Tensor, padding_mask: Tensor, tokenizer: Tokenizer
    ) -> list[str]:
        """Return the B texts of logits (B, T, C) and a padding mask (B, T)."""


def decode_greedily(
    predicted: Tensor, padding_mask: Tensor, tokenizer: Tokenizer
) -> list[str]:
    """Return the texts of the likeliest token of each frame; see `Decoder`."""
    valid = (~padding_mask).float().mean(dim=1)
    sequences = ctc_greedy_decode(predicted, valid, blank_id=tokenizer.blank_id)
    return [tokenizer.decode(ids) for ids in sequences]


class BeamSearch:
    """SpeechBrain's beam search with a KenLM model of words; a `Decoder`.

    The settings are those of MP3S. Without a language model they find almost
    what greedy decoding finds: a token needs a probability of 0.3 or must be
    the likeliest.

    Arguments
    ---------
    kenlm_model : str or Path, optional
        Word model in KenLM's binary format, or ARPA; its words must be
        spelt like the transcripts. UserError where it, or a package that
        reads it, is missing.
    beam_size : int
        How many texts are kept at each frame.
    beam_prune_logp, token_prune_min_logp : float
        Texts that are less likely than the best by so much are given up;
        tokens below so much are not tried.
    alpha, beta : float
        Weight of the language model, and bonus for each word.

    Example
    -------
    >>> from summarymixing.training.tokenizers import CharacterTokenizer
    >>> tokenizer = CharacterTokenizer(["AB"])
    >>> likeliest = torch.tensor([[2, 0, 2, 3]])  # A, blank, A, B
    >>> logits = 9.0 * torch.eye(4)[likeliest]
    >>> BeamSearch()(logits, torch.zeros(1, 4) > 0, tokenizer)
    ['AAB']
    """

    def __init__(
        self,
        kenlm_model: str | Path | None = None,
        *,
        beam_size: int = 143,
        beam_prune_logp: float = -12.0,
        token_prune_min_logp: float = -1.2,
        alpha: float = 0.8,
        beta: float = 1.2,
    ) -> None:
        if kenlm_model is not None:
            _check_kenlm(Path(kenlm_model))
        self._settings = {
            "kenlm_model_path": kenlm_model and str(kenlm_model),
            "beam_size": beam_size,
            "beam_prune_logp": beam_prune_logp,
            "token_prune_min_logp": token_prune_min_logp,
            "alpha": alpha,
            "beta": beta,
        }
        self._searcher: CTCBeamSearcher | None = None
        self._tokens: list[str] = []  # of the searcher

    def __call__(
        self, predicted: Tensor, padding_mask: Tensor, tokenizer: Tokenizer
    ) -> list[str]:
        """Return the likeliest text of each utterance; see `Decoder`."""
        # One by one: SpeechBrain would truncate the product of relative
        # length and T, and a rounding error then costs the last frame.
        lengths = (~padding_mask).sum(dim=1).tolist()
        return [
            self._find(frames[:length], tokenizer).text
            for frames, length in zip(predicted, lengths, strict=True)
        ]

    def words(
        self, predicted: Tensor, tokenizer: Tokenizer
    ) -> list[tuple[str, int, int]]:
        """Return the words of logits (T, C), with their frames [start, stop).

        They are the words of `__call__`.
        """
        best = self._find(predicted, tokenizer)
        return [(word, *frames) for word, frames in best.text_frames]

    def _find(self, predicted: Tensor, tokenizer: Tokenizer) -> CTCHypothesis:
        scores = predicted.float().log_softmax(dim=-1).cpu().numpy()
        searcher = self._searcher_for(tokenizer)
        return searcher.decode_log_probs(scores, len(scores))[0]

    def _searcher_for(self, tokenizer: Tokenizer) -> CTCBeamSearcher:
        """Load the language model once."""
        tokens = list(tokenizer.tokens)
        if tokenizer.unknown_id != tokenizer.blank_id:
            tokens[tokenizer.unknown_id] = UNKNOWN
        if self._searcher is None or self._tokens != tokens:
            self._tokens = tokens
            try:
                self._searcher = CTCBeamSearcher(
                    blank_index=tokenizer.blank_id,
                    vocab_list=tokens,
                    space_token=" ",
                    **self._settings,
                )
            except OSError as error:  # what kenlm raises for another file
                raise UserError(
                    f"{self._settings['kenlm_model_path']} is no KenLM model "
                    f"({error}). Give one made by KenLM's build_binary, or "
                    "an ARPA file"
                ) from error
        return self._searcher


def _check_kenlm(model: Path) -> None:
    if not model.is_file():
        raise UserError(
            f"there is no language model {model}; give the path of a KenLM "
            "model, or leave it out"
        )
    for package in ("kenlm", "pygtrie"):  # SpeechBrain imports both
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"a language model needs the package {package}, which is not "
                "installed: pip install kenlm pygtrie; or leave it out"
            )


def make_decoder(name: str, kenlm_model: str | Path | None = None) -> Decoder:
    """Return the decoder of a name, greedy or beam, for YAML files.

    Arguments
    ---------
    name : str
        "greedy" or "beam"; UserError for another one.
    kenlm_model : str or Path, optional
        The language model of the beam search; see `BeamSearch`.
    """
    if name not in ("greedy", "beam"):
        raise UserError(f"decoder is greedy or beam, not {name!r}.")
    if name == "beam":
        return BeamSearch(kenlm_model)
    if kenlm_model is not None:
        raise UserError("a kenlm_model needs --decoder=beam; give both or none")
    return decode_greedily


class CtcTask(ProbeTask):
    """Transcribe by CTC; word and character error rates.

    Arguments
    ---------
    label : str
        The column of the transcripts, in which white space separates words.
    tokenizer : callable
        Called with all training transcripts; see `TokenizerFactory`.
    max_train_s : float, optional
        Leave longer utterances out of training.
    min_words : int
        Leave shorter sentences out of training.
    min_words_everywhere : bool
        Leave them out of validation and tests as well, as MP3S does for
        Common Voice: short sentences are the hard ones.
    decoder : callable
        How tests decode; see `Decoder`. Validation is greedy, since it is
        done after every epoch.

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
        decoder: Decoder = decode_greedily,
    ) -> None:
        super().__init__(label=label)
        self._make_tokenizer = tokenizer
        self.max_train_s = max_train_s
        self.min_words = min_words
        self.min_words_everywhere = min_words_everywhere
        self._test_decoder = decoder
        self._decoder: Decoder = decode_greedily
        # Of the plateau of blanks: when to speak of it again, and whether
        # there was text since.
        self._next_remark = 0
        self._has_text = False

    def for_test(self) -> CtcTask:
        """Return the same task with the decoder of the tests."""
        task = copy.copy(self)
        task._decoder = self._test_decoder
        return task

    def keeps(self, row: Row, role: Role) -> bool:
        """Apply the limits; training takes no label that CTC cannot learn."""
        longest = self.max_train_s if role == "train" else None
        if longest is not None and row.duration > longest:
            return False
        if role == "train" and UNLEARNABLE & self._problems(row).keys():
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
        self._folder = folder
        self.inspect(train.path.stem, train, role="train")
        if not any(self.keeps(row, "train") for row in train):
            raise UserError(
                f"no utterance in {train.path} can be learned: texts are "
                "empty, too short, or longer than their audio allows. Do they "
                "belong to this audio?"
            )

    def text(self, row: Row) -> str:
        """Return the transcript of a row, with single spaces."""
        return " ".join(row.labels[self.label].split())

    def _encode(self, row: Row) -> list[int]:
        return self.tokenizer.encode(self.text(row))

    def _targets(self, ids: list[int]) -> list[int]:
        """Return what CTC shall align: no blank, even if it means unknown."""
        blank = self.tokenizer.blank_id
        return [i for i in ids if i != blank]

    def _problems(self, row: Row) -> dict[str, str]:
        """Return what is wrong with a label: the kind, and the detail."""
        ids = self._encode(row)
        if not ids:
            return {EMPTY: "empty text"}
        found = {}
        needed = frames_needed(self._targets(ids))
        frames = int(num_frames(round(row.duration * SAMPLE_RATE_HZ)))
        if frames < needed:
            found[TOO_SHORT] = f"{frames} frames, the text needs {needed}"
        unknown_id = self.tokenizer.unknown_id
        if unknown_id in ids:
            found[UNKNOWN_TOKENS] = " ".join(
                character
                for character in dict.fromkeys(self.text(row))
                if unknown_id in self.tokenizer.encode(character)
            )
        return found

    def inspect(
        self, split: str, manifest: Manifest, role: Role = "test"
    ) -> dict[str, int]:
        """Count and name what cannot be learned or recognised.

        Texts that are empty or longer than their frames allow are left out
        of training. A training text with a token that became none of the
        vocabulary is learned without it. In other splits all of them stay,
        and count as errors. `label_problems_SPLIT.tsv` lists them.
        """
        everything = ((row, self._problems(row)) for row in manifest)
        bad = [(row, found) for row, found in everything if found]
        path = self._folder / f"label_problems_{split}.tsv"
        on_main_process(lambda: self._list_problems(path, bad))
        if bad:
            logger.warning(
                "%s: %d of %d labels are bad: %s. %s. %s lists them.",
                *(split, len(bad), len(manifest)),
                _describe_problems(bad),
                "Training leaves out those that are empty or too long"
                if role == "train"
                else "They are kept, and count as errors",
                path,
            )
        kinds = Counter(chain.from_iterable(found for _, found in bad))
        unknown_id = self.tokenizer.unknown_id
        return {
            UNKNOWN_TOKENS: sum(
                self._encode(row).count(unknown_id) for row, _ in bad
            ),
            TOO_SHORT: kinds[TOO_SHORT],
            EMPTY: kinds[EMPTY],
        }

    def _list_problems(self, path: Path, bad: Sequence[BadLabel]) -> None:
        if not bad:
            path.unlink(missing_ok=True)
            return
        with open_atomically(path) as file:
            file.write("id\tproblem\tdetail\ttext\n")
            for row, found in bad[:MAX_LISTED]:
                for kind, detail in found.items():
                    cells = row.id, kind, detail, self.text(row)
                    file.write("\t".join(cells) + "\n")
            if len(bad) > MAX_LISTED:
                file.write(f"and {len(bad) - MAX_LISTED} more\n")

    def loss(
        self, predicted: Tensor, padding_mask: Tensor, rows: Sequence[Row]
    ) -> Tensor:
        """Return the CTC loss divided by the length of the transcript, (B,).

        It is zero where the utterance is too short for its transcript.

        Arguments
        ---------
        predicted, padding_mask, rows
            As in `ProbeTask`; logits, (B, T, C).
        """
        targets = [
            torch.tensor(self._targets(self._encode(row)), dtype=torch.long)
            for row in rows
        ]
        lengths = torch.tensor(list(map(len, targets))).to(predicted.device)
        # SpeechBrain's ctc_loss divides by zero for an empty transcript.
        losses = F.ctc_loss(
            predicted.float().log_softmax(dim=-1).transpose(0, 1),
            pad_sequence(targets, batch_first=True).to(predicted.device),
            (~padding_mask).sum(dim=1),
            lengths,
            blank=self.tokenizer.blank_id,
            reduction="none",
            zero_infinity=True,
        )
        return losses / lengths.clamp(min=1)

    def score(
        self, predicted: Tensor, padding_mask: Tensor, rows: Sequence[Row]
    ) -> list[TextScore]:
        """Decode and compare with the transcripts; arguments as in `loss`."""
        references = [self.text(row).split() for row in rows]
        decoded = self.decode(predicted, padding_mask)
        hypotheses = [text.split() for text in decoded]
        words = ErrorRateStats()
        characters = ErrorRateStats(split_tokens=True, space_token=" ")
        for statistics in (words, characters):
            statistics.append([r.id for r in rows], hypotheses, references)
        for details in characters.scores:  # not reported, only counted
            details |= dict.fromkeys(("alignment", "ref_tokens", "hyp_tokens"))
        valid_mask = ~padding_mask
        blanks = (predicted.argmax(-1) == self.tokenizer.blank_id) & valid_mask
        counts = blanks.sum(1).tolist(), valid_mask.sum(1).tolist()
        return list(map(TextScore, words.scores, characters.scores, *counts))

    def decode(self, predicted: Tensor, padding_mask: Tensor) -> list[str]:
        """Return the B texts of logits (B, T, C)."""
        return self._decoder(predicted, padding_mask, self.tokenizer)

    def summarise(self, scores: Sequence[TextScore]) -> dict[str, float]:
        """Return error rates in percent, and the share of blank frames."""
        rates = {
            name: merged(details).summarize("WER")
            for name, details in _by_metric(scores).items()
        }
        num_frames = sum(score.num_frames for score in scores)
        blank = sum(score.num_blanks for score in scores) / max(num_frames, 1)
        return {**rates, "blank_share": blank}

    def remark(
        self, metrics: Mapping[str, float], update: int, warmup: int
    ) -> str | None:
        """Say that all frames are blank, whether that is usual, and its end.

        CTC first learns that most frames are blank, and letters only later.
        """
        blank, cer = metrics["blank_share"], metrics["cer"]
        if cer < PLATEAU_CER:
            was_blank, self._next_remark = self._next_remark > 0, 0
            self._has_text = True
            if was_blank:
                return f"update {update}: the first text (CER {cer:.1f} %)."
            return None
        # Letters at random are what an untrained head says.
        if blank < PLATEAU_BLANKS or update < self._next_remark:
            return None
        usual = warmup + USUAL_PLATEAU_UPDATES
        self._next_remark = max(usual + 1, 2 * update)
        state = f"update {update}: {100 * blank:.1f} % of the frames are blank"
        if self._has_text:
            return (
                f"{state} again, after there was text: lower the learning "
                "rate, or give a longer warm-up."
            )
        if update <= usual:
            return (
                f"{state}, and no text comes out. This is usual at the start "
                f"of CTC. With 18 minutes of speech it lasted as long as the "
                f"warm-up (recipes/README.md, Fine-tuning); wait until update "
                f"{usual}."
            )
        return (
            f"{state}, and no text comes out. This is longer than usual. "
            "Try a learning rate of three "
            "times as much, then of a third; a smaller vocabulary, such as "
            "letters of one case without punctuation; and look at the order "
            "of the labels: does each text belong to its audio?"
        )

    def intervals(self, scores: Sequence[TextScore]) -> dict[str, list[float]]:
        """Return the intervals of both rates, drawing utterances."""
        return {
            f"{name}_interval": ratio_interval(
                [one["num_edits"] for one in details],
                [one["num_ref_tokens"] for one in details],
            )
            for name, details in _by_metric(scores).items()
        }

    def write_report(
        self, folder: Path, split: str, scores: Sequence[TextScore]
    ) -> None:
        """Write `wer_SPLIT.txt` with the alignment of each utterance."""
        path = folder / f"wer_{split}.txt"
        with path.open("w", encoding="utf-8") as file:
            merged(_by_metric(scores)["wer"]).write_stats(file)


def _by_metric(scores: Sequence[TextScore]) -> dict[str, list[dict]]:
    return {
        "wer": [score.words for score in scores],
        "cer": [score.characters for score in scores],
    }


def merged(scores: list[dict]) -> ErrorRateStats:
    """Return SpeechBrain's statistics over the details of utterances."""
    statistics = ErrorRateStats()
    statistics.scores = scores
    statistics.summarize()
    return statistics


def _describe_problems(bad: Sequence[BadLabel]) -> str:
    """Count each kind of problem, with an example."""
    examples: dict[str, list[str]] = {}
    for row, found in bad:
        for kind, detail in found.items():
            examples.setdefault(kind, []).append(f"{row.id}: {detail}")
    return "; ".join(
        f"{len(names)} {LABEL_PROBLEMS[kind]} ({names[0]})"
        for kind, names in examples.items()
    )


def frames_needed(ids: Sequence[int]) -> int:
    """Return how many frames CTC needs: a blank separates equal neighbours.

    Example
    -------
    >>> frames_needed([5, 5, 6])
    4
    """
    return len(ids) + sum(a == b for a, b in pairwise(ids))
