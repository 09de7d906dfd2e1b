"""Whether a pre-training goes well, judged from the lines of its log.

Nothing but `log.jsonl` is read: a run judges itself while it trains, one that
is resumed judges its past again, and a page of an old run judges what it
draws. Every rule states its threshold and where that comes from. "Small runs"
are runs of `hparams/pretraining/tiny.yaml`'s size on some hours of real
speech, healthy ones and ones with the paper's settings, which collapse there.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Entry = dict[str, Any]  # of the log
History = Sequence[Entry]  # of stage "train", the last one being judged
Bounds = tuple[float | None, float | None]  # lowest and highest healthy value

# Entries that are remembered: best loss and usual speed are looked for there.
MEMORY = 100

# So many entries in a row raise a verdict, and so many clear it: one entry is
# noise, and a warning that comes and goes is not read.
PERSISTENCE = 3

# Share of the codes in use, from 0, one of each group, to 1. Healthy small runs
# keep 0.62 and more, a weak but stable one 0.39; the paper's settings fall to
# 0.09 in 200 updates and have 0.15 after 600, where accuracy means little.
COLLAPSE_SHARE = 0.2

# Share of the mean square of the latents that is variance. The front end ends
# in a norm: 0.75 at the start of small runs. At a hundredth of that, a frame
# differs from the next by a tenth of its length.
CONSTANT_SHARE = 0.01

# Share of the frames that are right beyond a blind guess. A model that has
# learned nothing has up to 0.02, for frames in sight tell of their neighbours;
# a healthy small run has 0.026 after 75 updates and 0.09 after 200.
CHANCE_MARGIN = 0.03

# Nats. A model that knows nothing can say so and pay the loss of a blind
# guess; healthy runs begin within 0.1 of it.
WORSE_THAN_BLIND = 0.5

# Share of the best gain over a blind guess, once that was MIN_GAIN nats. No
# healthy small run has lost a tenth of it.
LOST_GAIN = 0.5
MIN_GAIN = 0.5
# Gains are compared between entries whose codebooks are alike: where codes
# fall out of use, or come back, the task becomes another one.
ALIKE_CODES = 1.5

# Share of the updates of an entry that were left out as not finite. The loss
# scale of fp16 leaves out one in 2,000, its growth interval.
LEFT_OUT_SHARE = 0.5

# Share of the time. A choice: a fifth of the hours that a user pays for.
WAITED_SHARE = 0.2

# Own work of the slowest process over that of the median one; all wait for
# it. The batches of one step are equally long to a few percent, see
# `BatchPlan`. A choice: a third of the speed is then lost.
SLOW_RATIO = 1.5

# A checkpoint is written before the oldest one is deleted; a second one is
# for the time in which somebody reads the warning, the rest for log and
# encoder.
DISK_CHECKPOINTS = 2
DISK_REST_GIB = 1.0

# Share of the usual speed. A choice: updates then take twice as long.
SLOW_SHARE = 0.5
SPEED_ENTRIES = 5  # whose median is compared, since batches differ


class Finding(NamedTuple):
    """What a rule found in an entry."""

    value: float
    limit: float
    message: str


class Verdict(NamedTuple):
    """A name for what can go wrong, how it is found, and what helps."""

    find: Callable[[History], Finding | None]
    advice: str
    is_about_learning: bool = False  # so that going on may be a waste
    waits: bool = False  # a young run recovers from it by itself


def find_codebook_collapse(history: History) -> Finding | None:
    """Find few codes in use: negatives equal the positive and are left out."""
    entry = history[-1]
    groups = entry["code_groups"]
    limit = groups + COLLAPSE_SHARE * (entry["codes"] - groups)
    in_use = entry["code_perplexity"]
    if in_use >= limit or math.isnan(entry["loss"]):
        return None
    return Finding(
        in_use,
        limit,
        f"the codebook is collapsing: {in_use:.1f} of {entry['codes']} codes "
        f"are in use, and {entry['negatives_excluded']:.0%} of the negatives "
        "equal the positive, so accuracy means little",
    )


def find_constant_latents(history: History) -> Finding | None:
    """Find latents that are almost the same in all frames."""
    share = history[-1]["latent_variance_share"]
    if share >= CONSTANT_SHARE or math.isnan(share):
        return None
    return Finding(
        share,
        CONSTANT_SHARE,
        f"the latents are almost constant: {share:.2%} of their square is "
        "variance",
    )


def find_stuck_at_chance(history: History) -> Finding | None:
    """Find an accuracy that is that of a blind guess."""
    entry = history[-1]
    limit = entry["chance"] + CHANCE_MARGIN * (1 - entry["chance"])
    if entry["accuracy"] >= limit:
        return None
    return Finding(
        entry["accuracy"],
        limit,
        f"nothing is learned: accuracy is {entry['accuracy']:.3f}, and that "
        f"of a blind guess {entry['chance']:.3f}",
    )


def find_divergence(history: History) -> Finding | None:
    """Find updates that are not finite, or a loss that has run away."""
    entry = history[-1]
    before = history[-2] if len(history) > 1 else {}
    updates = entry["update"] - before.get("update", 0)
    left_out = entry["skipped_updates"] - before.get("skipped_updates", 0)
    if left_out > LEFT_OUT_SHARE * updates:
        return Finding(
            left_out / updates,
            LEFT_OUT_SHARE,
            f"{left_out:g} of {updates} updates had gradients that were not "
            "finite, and were left out",
        )
    loss = entry["contrastive_loss"]
    if not math.isfinite(loss):
        return None  # of single updates, which were left out
    blind = blind_loss(entry)
    if loss > blind + WORSE_THAN_BLIND:
        return Finding(
            loss,
            blind + WORSE_THAN_BLIND,
            f"the loss diverges: {loss:.2f}, and that of a blind guess is "
            f"{blind:.2f}",
        )
    if find_codebook_collapse(history):
        return None  # gains mean nothing
    codes = entry["code_perplexity"]
    gains = [
        blind_loss(e) - e["contrastive_loss"]
        for e in history
        if math.isfinite(e["contrastive_loss"])
        and codes / ALIKE_CODES <= e["code_perplexity"] <= codes * ALIKE_CODES
    ]
    best = max(map(statistics.median, _runs(gains, PERSISTENCE)), default=0.0)
    if best < MIN_GAIN or blind - loss >= LOST_GAIN * best:
        return None
    return Finding(
        blind - loss,
        LOST_GAIN * best,
        f"the loss diverges: it is {blind - loss:.2f} better than that of a "
        f"blind guess, and was {best:.2f} better",
    )


def find_starved_loader(history: History) -> Finding | None:
    """Find a model that waits for audio."""
    share = value_of("waited_share", history[-1])
    if share is None or share <= WAITED_SHARE:
        return None
    return Finding(
        share,
        WAITED_SHARE,
        f"the model waits for audio in {share:.0%} of the time, in the "
        "process that waits longest",
    )


def find_slow_rank(history: History) -> Finding | None:
    """Find one process that all others wait for."""
    entry = history[-1]
    ratio = entry.get("slowest_rank_ratio", 1.0)
    if ratio <= SLOW_RATIO:
        return None
    return Finding(
        ratio,
        SLOW_RATIO,
        f"rank {entry['slowest_rank']:g} takes {ratio:.1f} times as long as "
        "the others for the same work, and all wait for it",
    )


def find_disk_nearly_full(history: History) -> Finding | None:
    """Find too little room for the coming checkpoints."""
    entry = history[-1]
    free, checkpoint = entry["disk_free_gib"], entry["checkpoint_gib"]
    limit = DISK_CHECKPOINTS * checkpoint + DISK_REST_GIB
    if free >= limit:
        return None
    return Finding(
        free,
        limit,
        f"the disk is nearly full: {free:.1f} GiB are free, and a checkpoint "
        f"takes {checkpoint:.1f} GiB",
    )


def find_throughput_falling(history: History) -> Finding | None:
    """Find a speed far below the usual or the expected one."""
    recent, earlier = history[-SPEED_ENTRIES:], history[:-SPEED_ENTRIES]
    processes = history[-1]["processes"]
    speed = statistics.median(e["audio_hours_per_hour"] for e in recent)
    usual = [
        e["audio_hours_per_hour"]
        for e in earlier
        if e.get("processes") == processes
    ]
    expected, name = history[-1].get("expected_hours_per_hour"), "expected"
    if expected is None and len(usual) >= SPEED_ENTRIES:
        expected, name = statistics.median(usual), "usual"
    if expected is None or len(recent) < SPEED_ENTRIES:
        return None
    if any(e["processes"] != processes for e in recent):
        return None  # not all of them were made on what is there now
    if speed >= SLOW_SHARE * expected:
        return None
    return Finding(
        speed,
        SLOW_SHARE * expected,
        f"throughput is falling: {speed:.3g} hours of audio per hour, and "
        f"{expected:.3g} are {name}",
    )


# The order is that in which one of several verdicts is acted on.
VERDICTS = {
    "divergence": Verdict(
        find_divergence,
        "Lower --learning_rate or --max_gradient_norm, or give more "
        "--warmup_updates; with --precision=fp16 give bf16.",
        is_about_learning=True,
    ),
    "constant_latents": Verdict(
        find_constant_latents,
        "The front end has stopped to tell frames apart: lower "
        "--learning_rate or --front_end_gradient, raise --diversity_weight.",
        is_about_learning=True,
    ),
    "codebook_collapse": Verdict(
        find_codebook_collapse,
        "A large run recovers from this in its first thousands of updates; a "
        "small one needs --diversity_weight=1.0 --front_end_gradient=0.1, "
        "fewer --num_codes, or more audio in an update.",
        is_about_learning=True,
        waits=True,
    ),
    "stuck_at_chance": Verdict(
        find_stuck_at_chance,
        "Is --learning_rate far too low or too high, or the audio no speech? "
        "Listen to some files of train.csv.",
        is_about_learning=True,
    ),
    "disk_nearly_full": Verdict(
        find_disk_nearly_full,
        "Make room: a checkpoint that cannot be written costs the updates "
        "since the last one.",
    ),
    "slow_rank": Verdict(
        find_slow_rank,
        "Look at that machine: other jobs, heat, a card that is clocked down "
        "(nvidia-smi -q -d PERFORMANCE). It can be left out at a restart.",
    ),
    "starved_loader": Verdict(
        find_starved_loader,
        "Raise --num_workers, or see recipes/benchmark/feed.py: how many "
        "cores and what format the audio needs.",
    ),
    "throughput_falling": Verdict(
        find_throughput_falling,
        "Other jobs on the machine, a slow disk or a hot GPU may be why.",
    ),
}


def _runs(values: Sequence[float], length: int) -> Iterator[Sequence[float]]:
    """Yield all stretches of so many values."""
    for start in range(len(values) - length + 1):
        yield values[start : start + length]


def blind_loss(entry: Entry) -> float:
    """Return the contrastive loss of a blind guess, at most.

    The mean of ln(1 + negatives that are left) is at most the logarithm of
    the mean.
    """
    left = entry["negatives"] * (1 - entry["negatives_excluded"])
    return math.log1p(left)


def value_of(name: str, entry: Entry) -> float | None:
    """Return a number of an entry, or one that follows from it.

    Arguments
    ---------
    name : str
        A name of the log, or "waited_share".
    entry : dict
        An entry of the log.

    Returns
    -------
    float or None
        None where the entry does not tell.

    Example
    -------
    >>> entry = {"seconds_waited_for_data": 2.0, "seconds_training": 8.0}
    >>> value_of("waited_share", entry)
    0.25
    """
    if name != "waited_share":
        return entry.get(name)
    waited = entry.get("seconds_waited_for_data")
    seconds = entry.get("seconds_training")
    return waited / seconds if seconds and waited is not None else None


# What is healthy of a number, as bounds that may depend on its entry.
HEALTHY: dict[str, Callable[[Entry], Bounds]] = {
    "code_perplexity": lambda e: (
        e["code_groups"] + COLLAPSE_SHARE * (e["codes"] - e["code_groups"]),
        e["codes"],
    ),
    "latent_variance_share": lambda e: (CONSTANT_SHARE, None),
    "accuracy": lambda e: (
        e["chance"] + CHANCE_MARGIN * (1 - e["chance"]),
        None,
    ),
    "contrastive_loss": lambda e: (None, blind_loss(e) + WORSE_THAN_BLIND),
    "waited_share": lambda e: (None, WAITED_SHARE),
    "slowest_rank_ratio": lambda e: (None, SLOW_RATIO),
    "disk_free_gib": lambda e: (
        DISK_CHECKPOINTS * e["checkpoint_gib"] + DISK_REST_GIB,
        None,
    ),
}


def band_of(name: str, entry: Entry) -> Bounds:
    """Return the lowest and the highest healthy value; None is no bound.

    Arguments
    ---------
    name : str
        As in `value_of`; a number without bounds has none.
    entry : dict
        An entry of the log; one that lacks what a bound depends on has none.
    """
    try:
        return HEALTHY[name](entry)
    except KeyError:
        return None, None


@dataclass
class Episode:
    """A condition that holds, or has held until lately."""

    since: int  # the update after which it began
    entries: int = 0  # in a row in which it holds
    entries_without: int = 0  # in a row
    is_raised: bool = False


class Judge:
    """Reads a log line by line and says what is wrong.

    Arguments
    ---------
    patience_updates : int
        Updates before which nobody says that a run is stuck, and for which a
        collapse of the codebook may last before it is acted on.

    Example
    -------
    >>> judge = Judge()
    >>> low = {"disk_free_gib": 0.5, "checkpoint_gib": 2.0}
    >>> for update in (50, 100, 150):
    ...     verdicts = judge.read({"stage": "train", "update": update, **low})
    >>> [(v["name"], v["event"], v["since"]) for v in verdicts]
    [('disk_nearly_full', 'raised', 0)]
    """

    def __init__(self, patience_updates: int = 0) -> None:
        self.patience_updates = patience_updates
        self.history: deque[Entry] = deque(maxlen=MEMORY)
        self.episodes: dict[str, Episode] = {}

    def read(self, entry: Entry) -> list[Entry]:
        """Take an entry of the log; return verdicts that begin or end there.

        Entries of other stages than "train" are passed over, and rules whose
        numbers an entry lacks stay silent.
        """
        if entry["stage"] != "train":
            return []
        before = self.history[-1]["update"] if self.history else 0
        self.history.append(entry)
        changes = (
            self._follow(name, verdict, before)
            for name, verdict in VERDICTS.items()
        )
        return [change for change in changes if change is not None]

    def _follow(self, name: str, verdict: Verdict, before: int) -> Entry | None:
        finding = self._find(name, verdict)
        episode = self.episodes.get(name)
        line = {"stage": "verdict", "update": self.history[-1]["update"]}
        if finding is not None:
            episode = self.episodes.setdefault(name, Episode(since=before))
            episode.entries += 1
            episode.entries_without = 0
            if episode.is_raised or episode.entries < PERSISTENCE:
                return None
            episode.is_raised = True
            return line | {
                "name": name,
                "event": "raised",
                "since": episode.since,
                **finding._asdict(),
                "advice": verdict.advice,
            }
        if episode is None:
            return None
        episode.entries_without += 1
        if episode.is_raised and episode.entries_without < PERSISTENCE:
            return None
        del self.episodes[name]
        if not episode.is_raised:
            return None
        return line | {
            "name": name,
            "event": "cleared",
            "since": episode.since,
        }

    def _find(self, name: str, verdict: Verdict) -> Finding | None:
        update = self.history[-1]["update"]
        if name == "stuck_at_chance" and update <= self.patience_updates:
            return None
        try:
            return verdict.find(list(self.history))
        except KeyError:  # an entry of an earlier version
            return None

    def is_suspicious(self) -> bool:
        """Return whether a condition about learning holds, raised or not."""
        return any(VERDICTS[n].is_about_learning for n in self.episodes)

    def to_act_on(self) -> str | None:
        """Return the verdict about learning that a run need not go on with."""
        update = self.history[-1]["update"] if self.history else 0
        for name, verdict in VERDICTS.items():
            episode = self.episodes.get(name)
            if not (verdict.is_about_learning and episode):
                continue
            patience = self.patience_updates if verdict.waits else 0
            if episode.is_raised and update >= episode.since + patience:
                return name
        return None


def judge(entries: Iterable[Entry], patience_updates: int = 0) -> list[Entry]:
    """Return the verdicts that a log gives, as `Judge.read` returns them.

    Arguments
    ---------
    entries : iterable of dict
        `summarymixing.run.records.read_log` of a run.
    patience_updates : int
        See `Judge`.
    """
    reader = Judge(patience_updates)
    return [line for entry in entries for line in reader.read(entry)]
