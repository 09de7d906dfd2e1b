"""Classification of utterances for probes: SLURP, IEMOCAP and the like.

Letters: B utterances, C classes.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from speechbrain.utils.logger import get_logger
from torch import Tensor

from summarymixing.data.manifest import Manifest, Row
from summarymixing.errors import UserError
from summarymixing.files import open_atomically
from summarymixing.lobes.heads import UtteranceOutput
from summarymixing.nnet.bootstrap import ratio_interval
from summarymixing.training.probe_task import ProbeTask, Role

logger = get_logger(__name__)

# An utterance whose label training never saw: always wrong, without a loss.
UNSEEN = -100
SPEAKERS = range(1, 11)
ALL = "all"


class ClassScore(NamedTuple):
    """The id of an utterance, its class and the predicted one."""

    id: str
    label: str
    predicted: str


class LeaveOneSpeakerOut:
    """Divide one manifest by speaker, as MP3S divides IEMOCAP.

    Arguments
    ---------
    test_speaker : int or str
        1 to 10, or "all" for a run that goes through them. Speakers 2 s - 1
        and 2 s talk to each other in session s: validation is the other one,
        training the remaining eight.
    mp3s_speakers : bool
        Divide as MP3S does, which takes 65 utterances of women for those of
        the man they talk to (column `mp3s_speaker`).

    Example
    -------
    >>> fold = LeaveOneSpeakerOut(test_speaker=4)
    >>> [fold.role_of({"speaker": name}) for name in ("3", "4", "5")]
    ['valid', 'test', 'train']
    """

    def __init__(
        self, test_speaker: int | str, *, mp3s_speakers: bool = False
    ) -> None:
        if test_speaker != ALL and test_speaker not in SPEAKERS:
            raise ValueError(f"a fold is 1 to 10 or all, not {test_speaker!r}")
        self.test_speaker = test_speaker
        self.column = "mp3s_speaker" if mp3s_speakers else "speaker"

    def role_of(self, labels: Mapping[str, str]) -> Role:
        """Return what an utterance with such labels is used for."""
        speaker, test = int(labels[self.column]), int(self.test_speaker)
        if speaker == test:
            return "test"
        return "valid" if (speaker + 1) // 2 == (test + 1) // 2 else "train"


class ClassificationTask(ProbeTask):
    """Assign one class to each utterance.

    Classes are numbered in the order in which training shows them.

    Arguments
    ---------
    label : str
        The column of the classes.
    fold : LeaveOneSpeakerOut, optional
        Divides one manifest into training, validation and test.

    Example
    -------
    >>> ClassificationTask(label="scenario").metrics
    ('error_rate',)
    """

    name = "classification"
    metrics = ("error_rate",)

    def __init__(
        self, *, label: str, fold: LeaveOneSpeakerOut | None = None
    ) -> None:
        super().__init__(label=label)
        self.fold = fold

    def identity(self) -> dict[str, Any]:
        """Return the fold: two of them may have the same training rows."""
        if self.fold is None:
            return {}
        return {"fold": f"{self.fold.column} {self.fold.test_speaker}"}

    def keeps(self, row: Row, role: Role) -> bool:
        """Keep the utterances of the fold's speakers."""
        return self.fold is None or self.fold.role_of(row.labels) == role

    def fit(self, train: Manifest, folder: Path) -> None:
        """Collect the classes of the training utterances."""
        if self.fold and self.fold.column not in train.label_names:
            raise UserError(
                f"{train.path} has no column {self.fold.column}, which "
                "divides it into folds. Prepare the corpus again."
            )
        kept = (row for row in train if self.keeps(row, "train"))
        self.outputs = list(dict.fromkeys(r.labels[self.label] for r in kept))
        if len(self.outputs) < 2:
            raise UserError(
                f"column '{self.label}' of {train.path} has "
                f"{len(self.outputs)} class to train on: {self.outputs}. "
                "Prepare the whole corpus, or give another label."
            )
        self._index = {name: i for i, name in enumerate(self.outputs)}

    def inspect(self, split: str, manifest: Manifest) -> dict[str, int]:
        """Count the utterances whose label training never saw."""
        labels = Counter(row.labels[self.label] for row in manifest)
        unseen = {k: n for k, n in labels.items() if k not in self._index}
        num_unseen = sum(unseen.values())
        if unseen:
            shown = ", ".join(f"{k} ({n})" for k, n in sorted(unseen.items()))
            logger.warning(
                "%s: %d of %d utterances have a label that never occurs in "
                "training and count as errors: %s",
                *(split, num_unseen, len(manifest), shown),
            )
        return {"unseen_labels": num_unseen}

    def targets(self, rows: Sequence[Row], device: torch.device) -> Tensor:
        """Return the class of each row, (B,); `UNSEEN` where it has none."""
        indices = [self._index.get(r.labels[self.label], UNSEEN) for r in rows]
        return torch.tensor(indices, device=device)

    def loss(
        self,
        predicted: UtteranceOutput,
        padding_mask: Tensor,
        rows: Sequence[Row],
    ) -> Tensor:
        """Cross entropy, (B,); zero for a label that training never saw."""
        logits = predicted.logits.float()
        targets = self.targets(rows, logits.device)
        return F.cross_entropy(
            logits, targets, ignore_index=UNSEEN, reduction="none"
        )

    def score(
        self,
        predicted: UtteranceOutput,
        padding_mask: Tensor,
        rows: Sequence[Row],
    ) -> list[ClassScore]:
        """Compare the likeliest class with the label."""
        likeliest = predicted.logits.argmax(dim=1).tolist()
        return [
            ClassScore(row.id, row.labels[self.label], self.outputs[index])
            for row, index in zip(rows, likeliest, strict=True)
        ]

    def summarise(self, scores: Sequence[ClassScore]) -> dict[str, float]:
        """Return accuracy and error rate in percent."""
        right = sum(score.label == score.predicted for score in scores)
        accuracy = 100 * right / len(scores)
        return {"accuracy": accuracy, "error_rate": 100 - accuracy}

    def intervals(self, scores: Sequence[ClassScore]) -> dict[str, list[float]]:
        """Return the intervals of both metrics, drawing utterances."""
        wrong = [score.label != score.predicted for score in scores]
        interval = ratio_interval(wrong, [1] * len(wrong))
        return {
            "accuracy_interval": [100 - bound for bound in reversed(interval)],
            "error_rate_interval": interval,
        }

    def write_report(
        self, folder: Path, split: str, scores: Sequence[ClassScore]
    ) -> None:
        """Write `predictions_SPLIT.csv`: id, label and predicted class."""
        with open_atomically(folder / f"predictions_{split}.csv") as file:
            writer = csv.writer(file)
            writer.writerow(ClassScore._fields)
            writer.writerows(scores)
