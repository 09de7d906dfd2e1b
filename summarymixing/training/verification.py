"""Speaker verification for probes: learn to classify speakers, test on pairs.

Letters: B utterances, C speakers of the training split, E embedding width.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from speechbrain.nnet.losses import AdditiveAngularMargin
from torch import Tensor

from summarymixing.data.manifest import Manifest, Row
from summarymixing.data.trials import Trial, read_trials
from summarymixing.errors import UserError
from summarymixing.files import open_atomically
from summarymixing.lobes.heads import UtteranceOutput
from summarymixing.nnet.randomness import derive_seed
from summarymixing.nnet.verification import (
    cosine_scores,
    equal_error_interval,
    equal_error_rate,
    min_detection_cost,
)
from summarymixing.training.classification import ClassificationTask
from summarymixing.training.probe_task import ProbeTask

SAME_SPEAKER = "1"  # target of a trial
FEWEST_SPEAKERS = 10  # that are worth drawing from, for an interval
RECORDING = "recording_s"  # label: duration of the whole recording
RESOLUTION_S = 1 / 16_000  # of the start of a crop


class Embedded(NamedTuple):
    """The id and the speaker of an utterance; its embedding, (E,), float32."""

    id: str
    speaker: str
    embedding: Tensor


class VerificationTask(ClassificationTask):
    """Learn to tell the training speakers apart; test on pairs of others.

    Arguments
    ---------
    label : str
        The column of the speakers.
    trials : str or Path
        A CSV file with the columns target, enrol, test (`recipes/prepare.py
        voxceleb1` writes it); its ids are those of the test split.
    margin : float, optional
        The additive angular margin, for heads whose logits are cosines;
        None: cross entropy.
    scale : float
        The factor of the cosines, where there is a margin.
    crop_s : float, optional
        Train on a random window of so many seconds of the recording (column
        `recording_s`), another one in each epoch. None: the rows as they are.
    seed : int
        The seed of these windows.

    Example
    -------
    >>> VerificationTask(label="speaker", trials="trials.csv").metrics
    ('error_rate',)
    """

    name = "verification"

    def __init__(
        self,
        *,
        label: str,
        trials: str | Path,
        margin: float | None = None,
        scale: float = 30.0,
        crop_s: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(label=label)
        self.crop_s, self.seed = crop_s, seed
        self._test_task = TrialTask(label=label, trials=trials)
        self._margin: AdditiveAngularMargin | None = None
        if margin is not None:
            self._margin = AdditiveAngularMargin(margin=margin, scale=scale)

    def for_test(self) -> TrialTask:
        """Return the task of the trials."""
        return self._test_task

    def fit(self, train: Manifest, folder: Path) -> None:
        """Collect the speakers of the training utterances."""
        super().fit(train, folder)
        if self.crop_s is not None and RECORDING not in train.label_names:
            raise UserError(
                f"{train.path} has no column {RECORDING} with the duration "
                "of each whole recording. Prepare the corpus again, or train "
                "on whole rows with --task={crop_s: null}"
            )

    def adapts(self) -> bool:
        """Return whether training takes random windows."""
        return self.crop_s is not None

    def adapt(self, row: Row, epoch: int) -> Row:
        """Move the segment of a row to a random place of its recording."""
        if self.crop_s is None:
            return row
        recording_s = float(row.labels[RECORDING])
        room = max(recording_s - self.crop_s, 0.0)
        share = derive_seed(self.seed, "crop", epoch, row.id) / 2**63
        start = round(share * room / RESOLUTION_S) * RESOLUTION_S
        stop = min(start + self.crop_s, recording_s)
        return replace(row, segments=((start, stop),), duration=stop - start)

    def loss(
        self,
        predicted: UtteranceOutput,
        padding_mask: Tensor,
        rows: Sequence[Row],
    ) -> Tensor:
        """Cross entropy over the training speakers, with the margin, (B,)."""
        if self._margin is None:
            return super().loss(predicted, padding_mask, rows)
        cosines = predicted.logits.float()
        targets = self.targets(rows, cosines.device)
        # A speaker that training never saw is no output: all False.
        speakers = torch.arange(cosines.shape[1], device=cosines.device)
        is_speaker = targets.unsqueeze(1) == speakers
        logits = self._margin(cosines, is_speaker.to(cosines.dtype))
        predicted = predicted._replace(logits=logits)
        return super().loss(predicted, padding_mask, rows)


class TrialTask(ProbeTask):
    """Compare pairs of utterances by the cosine of their embeddings.

    Arguments
    ---------
    label : str
        The column of the speakers.
    trials : str or Path
        The file of the pairs; see `VerificationTask`.
    """

    name = "verification"
    metrics = ("eer", "min_dcf")

    def __init__(self, *, label: str, trials: str | Path) -> None:
        super().__init__(label=label)
        self.path = Path(trials)
        self.outputs: list[str] = []

    def fit(self, train: Manifest, folder: Path) -> None:
        """Do nothing: embeddings are compared as they are."""

    @cached_property
    def trials(self) -> list[Trial]:
        """The pairs; UserError if the file is missing or malformed."""
        return read_trials(self.path)

    def inspect(self, split: str, manifest: Manifest) -> dict[str, int]:
        """Check that every utterance of the trials is in the split."""
        present = {row.id for row in manifest}
        named = {t.enrol for t in self.trials} | {t.test for t in self.trials}
        missing = sorted(named - present)
        if missing:
            raise UserError(
                f"{len(missing)} of {len(named)} utterances in {self.path} "
                f"are not in {manifest.path}, for example {missing[0]}. "
                "Prepare the corpus again, so that both come from one run."
            )
        return {"utterances_without_trial": len(present - named)}

    def loss(
        self,
        predicted: UtteranceOutput,
        padding_mask: Tensor,
        rows: Sequence[Row],
    ) -> None:
        """Return None: the speakers are unknown to the classifier."""

    def score(
        self,
        predicted: UtteranceOutput,
        padding_mask: Tensor,
        rows: Sequence[Row],
    ) -> list[Embedded]:
        """Keep the embedding of each utterance."""
        embeddings = predicted.embeddings.float().cpu()
        # Cloned: a row of a batch would travel with all of its storage.
        return [
            Embedded(row.id, row.labels[self.label], embedding.clone())
            for row, embedding in zip(rows, embeddings, strict=True)
        ]

    def summarise(self, scores: Sequence[Embedded]) -> dict[str, float]:
        """Return the equal error rate in percent and the minimum cost."""
        similarities, is_target = self._similarities(scores), self._is_target()
        return {
            "eer": 100 * equal_error_rate(similarities, is_target),
            "min_dcf": min_detection_cost(similarities, is_target),
            "trials": len(self.trials),
            "target_trials": int(is_target.sum()),
            "speakers": len({score.speaker for score in scores}),
        }

    def intervals(self, scores: Sequence[Embedded]) -> dict[str, list[float]]:
        """Return the interval of the equal error rate, drawing speakers.

        Where they are fewer than `FEWEST_SPEAKERS`, no draw of them tells how
        others would do. Then utterances are drawn: the interval is that of
        further recordings of the same speakers.
        """
        speaker = {score.id: score.speaker for score in scores}
        pairs = [(speaker[t.enrol], speaker[t.test]) for t in self.trials]
        if len(set(chain.from_iterable(pairs))) < FEWEST_SPEAKERS:
            pairs = [(trial.enrol, trial.test) for trial in self.trials]
        names = sorted(set(chain.from_iterable(pairs)))
        number = {name: i for i, name in enumerate(names)}
        units = [[number[left], number[right]] for left, right in pairs]
        interval = equal_error_interval(
            self._similarities(scores), self._is_target(), torch.tensor(units)
        )
        return {"eer_interval": [100 * bound for bound in interval]}

    def write_report(
        self, folder: Path, split: str, scores: Sequence[Embedded]
    ) -> None:
        """Write `scores_SPLIT.csv`: target, enrol, test, score."""
        similarities = self._similarities(scores).tolist()
        with open_atomically(folder / f"scores_{split}.csv") as file:
            writer = csv.writer(file)
            writer.writerow([*Trial._fields, "score"])
            for trial, score in zip(self.trials, similarities, strict=True):
                writer.writerow([*trial, f"{score:.6f}"])

    def _is_target(self) -> Tensor:
        return torch.tensor([t.target == SAME_SPEAKER for t in self.trials])

    def _similarities(self, scores: Sequence[Embedded]) -> Tensor:
        index = {score.id: i for i, score in enumerate(scores)}
        return cosine_scores(
            torch.stack([score.embedding for score in scores]),
            torch.tensor([index[t.enrol] for t in self.trials]),
            torch.tensor([index[t.test] for t in self.trials]),
        )
