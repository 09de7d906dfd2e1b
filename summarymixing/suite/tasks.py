"""The probes that run_all knows: each is a YAML file, and a column or two."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from summarymixing.errors import UserError
from summarymixing.run.hparams_file import (
    HPARAMS_FOLDER,
    HparamsFile,
    find_hparams_file,
)
from summarymixing.run.yaml_trees import nearest

# Table 2 of the paper: task and test split of each column.
PAPER_COLUMNS = (
    ("librispeech_lstm", "test-other"),
    ("librispeech_contextnet", "test-other"),
    ("commonvoice_cy_lstm", "dev"),
    ("commonvoice_cy_lstm", "test"),
    ("commonvoice_eu_lstm", "dev"),
    ("commonvoice_eu_lstm", "test"),
    ("slurp_lstm", "test"),
    ("iemocap_ecapa", "utterances"),
    ("voxceleb1_ecapa", "test"),
)
PAPER_TASKS = list(dict.fromkeys(name for name, _ in PAPER_COLUMNS))


@dataclass(frozen=True)
class BenchmarkTask:
    """A corpus with a head, as a YAML file describes it."""

    name: str  # of the file, without its suffix
    hparams: HparamsFile = field(compare=False, repr=False)
    test_splits: tuple[str, ...]  # all that are tested
    # What the file says under `table`; see hparams/shared/probe.yaml.
    corpus: str
    title: str
    short_title: str
    splits: tuple[str, ...]
    metric: str
    metric_label: str
    higher_is_better: bool
    script: str
    is_miniature: bool = False  # of the corpus that it is named after

    def as_miniature(self) -> BenchmarkTask:
        """Return the task on a miniature, which no table mixes with this."""
        return replace(
            self,
            corpus=f"miniature {self.corpus}",
            title=f"miniature {self.title}",
            short_title=f"miniature {self.short_title}",
            is_miniature=True,
        )

    @property
    def in_paper(self) -> bool:
        """Whether it is a column of the paper's table 2."""
        return self.name in PAPER_TASKS

    @property
    def valid_split(self) -> str:
        """The validation split's name, unless it is that of a test split."""
        name = str(self.hparams.tree["valid_split"])
        return "valid" if name in self.test_splits else name

    @property
    def metric_title(self) -> str:
        """The label of the metric, with an arrow to where it is better."""
        return f"{self.metric_label} {'↑' if self.higher_is_better else '↓'}"


@cache
def benchmark_tasks() -> dict[str, BenchmarkTask]:
    """Read the tasks of hparams/mp3s.

    Returns
    -------
    dict
        Tasks by name in the order of the table: the corpora of the paper,
        the second heads of each behind the paper's own, then the others.
    """
    paths = (HPARAMS_FOLDER / "mp3s").glob("*.yaml")
    files = [HparamsFile.read(path) for path in paths]
    tasks = [_describe(f) for f in files if f.tree["table"]["corpus"]]
    ranks = {name: rank for rank, name in enumerate(PAPER_TASKS)}
    corpora = {t.corpus: ranks[t.name] for t in tasks if t.in_paper}
    last = len(ranks)

    def place(task: BenchmarkTask) -> tuple[int, int, str]:
        corpus = corpora.get(task.corpus, last)
        return corpus, ranks.get(task.name, last), task.title

    return {task.name: task for task in sorted(tasks, key=place)}


def read_task(path: Path) -> BenchmarkTask:
    """Read a YAML file; UserError unless run_all can put it in its table.

    Arguments
    ---------
    path : Path
        One of hparams/mp3s, or the user's own.
    """
    path = find_hparams_file(path).resolve()
    hparams = HparamsFile.read(path)
    if "table" not in hparams.tree:
        raise UserError(
            f"{path} is not a probe: it has no key 'table'. Let it begin with "
            f"'base: {HPARAMS_FOLDER}/shared/probe.yaml'"
        )
    if not hparams.tree["table"]["corpus"]:
        raise UserError(
            f"{path} names no corpus; add 'table: {{corpus: NAME}}', where "
            "NAME stands in the corpora file"
        )
    task = _describe(hparams)
    for other in benchmark_tasks().values():
        if path == other.hparams.path:
            return other
        for what in ("name", "title"):
            if getattr(task, what) == getattr(other, what):
                raise UserError(
                    f"{path} has the {what} of {other.hparams.path}, "
                    f"{getattr(task, what)!r}; give it another one: rename "
                    "the file, or add 'table: {title: ...}'"
                )
    return task


def _describe(hparams: HparamsFile) -> BenchmarkTask:
    tree, name = hparams.tree, hparams.path.stem
    table = tree["table"]
    title = table["title"] or name
    about = {
        **table,
        "title": title,
        "short_title": table["short_title"] or title,
        "splits": tuple(table["splits"] or tree["test_splits"]),
    }
    return BenchmarkTask(name, hparams, tuple(tree["test_splits"]), **about)


def choose_tasks(
    text: str | None, corpora: Collection[str]
) -> list[BenchmarkTask]:
    """Return the tasks that were asked for, in the order of the table.

    Arguments
    ---------
    text : str, optional
        Names and YAML files with commas between, or "all" of MP3S. Without:
        the paper's tasks, and those of corpora beside MP3S, as far as their
        corpora are there.
    corpora : collection of str
        Names of the corpora that are there.

    Returns
    -------
    list of BenchmarkTask
        The user's own files come last. UserError for an unknown name, and
        for a task that was asked for and whose corpus is not there.

    Example
    -------
    >>> [task.name for task in choose_tasks(None, ["slurp", "librispeech"])]
    ['librispeech_lstm', 'librispeech_contextnet', 'slurp_lstm']
    """
    known = benchmark_tasks()
    of_paper = {task.corpus for task in known.values() if task.in_paper}
    if text is None:
        return [
            task
            for task in known.values()
            if (task.in_paper or task.corpus not in of_paper)
            and task.corpus in corpora
        ]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        names = [t.name for t in known.values() if t.corpus in of_paper]
    asked: dict[str, BenchmarkTask] = {}
    for name in names:
        if name not in known and not name.endswith(".yaml"):
            raise UserError(
                f"--tasks: no task '{name}'; {nearest(name, known)} A task of "
                "your own is named by its file, PATH/NAME.yaml"
            )
        task = known.get(name) or read_task(Path(name))
        other = asked.setdefault(task.name, task).hparams.path
        if other != task.hparams.path:
            raise UserError(
                f"--tasks: {other} and {task.hparams.path} both are named "
                f"'{task.name}'; rename one of the files"
            )
    if not asked:
        raise UserError("--tasks names no task; --list shows them")
    absent = {t.corpus: n for n, t in asked.items() if t.corpus not in corpora}
    if absent:
        raise UserError(
            "the corpora file names no folder for "
            + ", ".join(f"{corpus} ({name})" for corpus, name in absent.items())
            + f"; add a line '{next(iter(absent))}: FOLDER', or leave the "
            "tasks out of --tasks"
        )
    return [asked[name] for name in {**known, **asked} if name in asked]


def describe_tasks() -> str:
    """Return one line for each task."""
    lines = [
        f"{task.name:<24}{'paper' if task.in_paper else '':<7}"
        f"{task.metric_label:<6}{task.corpus:<17}{task.script}"
        for task in benchmark_tasks().values()
    ]
    header = f"{'task':<24}{'':<7}{'in %':<6}{'corpus':<17}script"
    return "\n".join([header, *lines])
