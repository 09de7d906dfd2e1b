"""What distinguishes one probe from another: labels, loss and metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from summarymixing.data.manifest import Manifest, Row

Role = Literal["train", "valid", "test"]  # what a split is used for


class ProbeTask(ABC):
    """A task that a probe learns; built from YAML, then given its labels.

    Arguments
    ---------
    label : str
        The column of the manifests that holds the labels.
    """

    name: str  # in metrics.json
    metrics: tuple[str, ...]  # of `summarise`; those where lower is better
    outputs: list[str]  # what each output of the head stands for, after `fit`

    def __init__(self, *, label: str) -> None:
        self.label = label

    @abstractmethod
    def fit(self, train: Manifest, folder: Path) -> None:
        """Take `outputs` from the training manifest; every process calls it.

        It says what is wrong with the training labels, too.

        Arguments
        ---------
        train : Manifest
            All utterances, before `keeps` has chosen.
        folder : Path
            The output folder of the run, for what is worth keeping.
        """

    def inspect(self, split: str, manifest: Manifest) -> dict[str, int]:
        """Count what is wrong with the labels of a split, for metrics.json."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Return what must stay when a run goes on, beside outputs, as JSON."""
        return {}

    def keeps(self, row: Row, role: Role) -> bool:
        """Return whether an utterance of a split is used."""
        return True

    def adapt(self, row: Row, epoch: int) -> Row:
        """Change a training utterance before it is read, for example cut it.

        What is random must come from its epoch and id alone. Called in the
        processes that load the data.
        """
        return row

    def adapts(self) -> bool:
        """Return whether `adapt` may change a row, in each epoch anew."""
        return type(self).adapt is not ProbeTask.adapt

    def for_test(self) -> ProbeTask:
        """Return the task of the test splits, where it is another one.

        Verification, for example, learns to classify speakers and is tested
        on pairs of others.
        """
        return self

    @abstractmethod
    def loss(
        self, predicted: Any, padding_mask: Tensor, rows: Sequence[Row]
    ) -> Tensor | None:
        """Compare a batch with its labels.

        Arguments
        ---------
        predicted : Tensor, (B, T, C), or UtteranceOutput
            What the head returned.
        padding_mask : Tensor, bool, (B, T)
            True on padding.
        rows : sequence of B Rows
            The utterances, with their labels.

        Returns
        -------
        Tensor, (B,), or None
            Loss of each utterance; their mean is minimised. None, in tests
            only, where utterances have none.
        """

    @abstractmethod
    def score(
        self, predicted: Any, padding_mask: Tensor, rows: Sequence[Row]
    ) -> list[Any]:
        """Judge a batch in evaluation; arguments as in `loss`.

        Returns
        -------
        list of B objects
            Whatever `summarise` needs of each utterance; they travel between
            processes, so keep them small.
        """

    @abstractmethod
    def summarise(self, scores: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of a split from the scores of all utterances."""

    def remark(
        self, metrics: Mapping[str, float], update: int, warmup: int
    ) -> str | None:
        """Return what the user should hear after a validation, if anything.

        Arguments
        ---------
        metrics : mapping
            What `summarise` returned.
        update : int
            The last update before the validation.
        warmup : int
            In how many updates the learning rate rises at the start.
        """
        return None

    def intervals(self, scores: Sequence[Any]) -> dict[str, list[float]]:
        """Return the 95 % interval of each error rate of a test.

        Arguments
        ---------
        scores : sequence of objects
            What `score` returned for all utterances.

        Returns
        -------
        dict
            Name of the metric with `_interval` behind -> [low, high], for
            metrics.json; see `summarymixing.nnet.bootstrap`.
        """
        return {}

    def write_report(
        self, folder: Path, split: str, scores: Sequence[Any]
    ) -> None:
        """Write details of a test split; the main process calls it."""
        return  # there are none, unless a task says otherwise
