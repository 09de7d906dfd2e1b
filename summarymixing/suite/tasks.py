"""The MP3S tasks: where each is run, and which of its numbers counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from summarymixing.errors import UserError
from summarymixing.run.yaml_trees import nearest

ASR = "recipes/mp3s/asr.py"
CLASSIFICATION = "recipes/mp3s/classification.py"
VERIFICATION = "recipes/mp3s/verification.py"


@dataclass(frozen=True)
class Metric:
    """The number that a task is judged by, in percent.

    Arguments
    ---------
    key : str
        In metrics.json.
    label : str
        In tables.
    lower_is_better : bool
    """

    key: str
    label: str
    lower_is_better: bool

    @property
    def title(self) -> str:
        """Return the label with the direction of the better."""
        return f"{self.label} {'↓' if self.lower_is_better else '↑'}"


WER = Metric("wer", "WER", lower_is_better=True)
ACCURACY = Metric("accuracy", "Acc.", lower_is_better=False)
EER = Metric("eer", "EER", lower_is_better=True)


@dataclass(frozen=True)
class Task:
    """A corpus with a head.

    Arguments
    ---------
    name : str
        Of the file in hparams/mp3s/.
    recipe : str
        Script, relative to the repository.
    corpus : str
        Key of the corpora file.
    title : str
        Corpus and head, in tables.
    short : str
        The same, under the columns of a figure.
    metric : Metric
    splits : tuple of str
        Test splits in the table; all others stand in the CSV files.
    curves : tuple of str
        Numbers of the validation that are worth a curve.
    valid_split : str
        What the validation set is called in results.csv.
    in_paper : bool
        Whether it is a column of the paper's table 2.
    in_mp3s : bool
        Whether "all" means it, too.
    """

    name: str
    recipe: str
    corpus: str
    title: str
    short: str
    metric: Metric
    splits: tuple[str, ...] = ("test",)
    curves: tuple[str, ...] = ("loss", "wer")
    valid_split: str = "valid"
    in_paper: bool = False
    in_mp3s: bool = True

    @property
    def yaml(self) -> str:
        """Return the recipe file, relative to the repository."""
        return f"hparams/mp3s/{self.name}.yaml"


def _librispeech(head: str, title: str) -> Task:
    return Task(
        name=f"librispeech_{head}",
        recipe=ASR,
        corpus="librispeech",
        title=f"LibriSpeech {title}",
        short=f"LS {title}",
        metric=WER,
        splits=("test-other",),
        valid_split="dev-clean",
        in_paper=True,
    )


def _commonvoice(code: str, language: str, head: str) -> Task:
    title = "LSTM" if head == "lstm" else head
    return Task(
        name=f"commonvoice_{code}_{head}",
        recipe=ASR,
        corpus=f"commonvoice_{code}",
        title=f"{language} {title}",
        short=f"{language} {title}",
        metric=WER,
        splits=("dev", "test"),
        in_paper=head == "lstm",
    )


def _slurp(head: str, title: str) -> Task:
    return Task(
        name=f"slurp_{head}",
        recipe=CLASSIFICATION,
        corpus="slurp",
        title=f"SLURP {title}",
        short=f"SLURP {title}",
        metric=ACCURACY,
        curves=("loss", "accuracy"),
        in_paper=head == "lstm",
    )


def _iemocap(head: str, title: str) -> Task:
    return Task(
        name=f"iemocap_{head}",
        recipe=CLASSIFICATION,
        corpus="iemocap",
        title=f"IEMOCAP {title}",
        short=f"IEMOCAP {title}",
        metric=ACCURACY,
        splits=("utterances",),
        curves=("loss", "accuracy"),
        in_paper=head == "ecapa",
    )


def _voxceleb1(head: str, title: str) -> Task:
    return Task(
        name=f"voxceleb1_{head}",
        recipe=VERIFICATION,
        corpus="voxceleb1",
        title=f"VoxCeleb1 {title}",
        short=f"Vox1 {title}",
        metric=EER,
        curves=("loss", "error_rate"),
        in_paper=head == "ecapa",
    )


# In the order of the paper's columns; a second head behind the paper's.
TASKS = {
    task.name: task
    for task in (
        _librispeech("lstm", "LSTM"),
        _librispeech("contextnet", "ContextNet"),
        _commonvoice("cy", "Welsh", "lstm"),
        _commonvoice("cy", "Welsh", "linear"),
        _commonvoice("eu", "Basque", "lstm"),
        _commonvoice("eu", "Basque", "linear"),
        _slurp("lstm", "LSTM"),
        _slurp("linear", "linear"),
        _iemocap("ecapa", "ECAPA"),
        _iemocap("linear", "linear"),
        _voxceleb1("ecapa", "ECAPA"),
        _voxceleb1("xvector", "x-vector"),
        Task(
            name="fsdd_linear",
            recipe=CLASSIFICATION,
            corpus="fsdd",
            title="Digits linear",
            short="Digits",
            metric=ACCURACY,
            curves=("loss", "accuracy"),
            in_mp3s=False,
        ),
        Task(
            name="fsdd_ecapa",
            recipe=VERIFICATION,
            corpus="fsdd",
            title="Digits' speakers ECAPA",
            short="Speakers",
            metric=EER,
            splits=("speakers_test",),
            curves=("loss", "error_rate"),
            valid_split="speakers_valid",
            in_mp3s=False,
        ),
    )
}


def choose_tasks(text: str | None, corpora: Iterable[str]) -> list[Task]:
    """Return the tasks that were asked for, in the order of the table.

    Arguments
    ---------
    text : str, optional
        Names with commas between, or "all" of MP3S. Without: the paper's
        tasks, and those of corpora beside MP3S, as far as they are there.
    corpora : iterable of str
        Corpora that are there.

    Returns
    -------
    list of Task
        UserError for an unknown name, and for a task that was asked for by
        name and whose corpus is not there.

    Example
    -------
    >>> [task.name for task in choose_tasks(None, ["slurp", "librispeech"])]
    ['librispeech_lstm', 'librispeech_contextnet', 'slurp_lstm']
    """
    corpora = list(corpora)
    if text is None:
        return [
            task
            for task in TASKS.values()
            if (task.in_paper or not task.in_mp3s) and task.corpus in corpora
        ]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        names = [task.name for task in TASKS.values() if task.in_mp3s]
    for name in names:
        if name not in TASKS:
            raise UserError(
                f"--tasks: no task '{name}'; {nearest(name, TASKS)}"
            )
    chosen = [task for task in TASKS.values() if task.name in names]
    if not chosen:
        raise UserError("--tasks names no task; --list shows them")
    absent = {t.corpus: t.name for t in chosen if t.corpus not in corpora}
    if absent:
        raise UserError(
            "the corpora file names no folder for "
            + ", ".join(f"{corpus} ({name})" for corpus, name in absent.items())
            + f"; add a line '{next(iter(absent))}: FOLDER', or leave the "
            "tasks out of --tasks"
        )
    return chosen


def describe_tasks() -> str:
    """Return one line for each task."""
    lines = [
        f"{task.name:<24}{'paper' if task.in_paper else '':<7}"
        f"{task.metric.label:<6}{task.corpus:<17}{task.recipe}"
        for task in TASKS.values()
    ]
    header = f"{'task':<24}{'':<7}{'metric':<6}{'corpus':<17}recipe"
    return "\n".join([header.replace("metric", "in %  "), *lines])
