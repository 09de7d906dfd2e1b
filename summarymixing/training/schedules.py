"""Learning rates as functions of the update, so that nothing is stored.

SpeechBrain's schedulers count their own calls (or save their settings over
an edited YAML); a pure function is right after any resume and for any edit.
The values are theirs, which a test holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from summarymixing.run.hparams_file import check_choices

Schedule = Callable[[int], float]


def noam(*, peak: float, warmup: int, total: int = 0) -> Schedule:
    """Linear warm-up to the peak, then 1 / sqrt(update).

    Arguments
    ---------
    peak : float
        Learning rate at update `warmup`.
    warmup : int
        Updates.
    total : int
        Ignored: the schedule has no end.

    Returns
    -------
    callable
        Learning rate of an update, the first of which is 1.

    Example
    -------
    >>> lr = noam(peak=1.0, warmup=100)
    >>> lr(50), lr(100), lr(400)
    (0.5, 1.0, 0.5)
    """
    del total
    warmup = max(warmup, 1)
    return lambda update: (
        peak * min(update / warmup, math.sqrt(warmup / update))
    )


def warm_cool(*, peak: float, warmup: int, total: int) -> Schedule:
    """Linear warm-up, slow decay, linear cool-down over the last tenth.

    The schedule of SpeechBrain's stock wav2vec 2.0 recipe
    (`WarmCoolDecayLRSchedule`: decay 0.75 in 100k updates). Arguments as in
    `noam`, but `total` is the last update, where the rate reaches zero.

    Example
    -------
    >>> lr = warm_cool(peak=1.0, warmup=10, total=100)
    >>> lr(5), lr(10), lr(100)
    (0.5, 1.0, 0.0)
    """
    cooldown = max(total // 10, 1)
    power = math.log(0.75) / 100_000

    def rate(update: int) -> float:
        if update < warmup:
            return peak * update / warmup
        if update <= total - cooldown:
            return peak * math.exp(power * (update - warmup))
        top = peak * math.exp(power * (total - cooldown))
        return top * max(total - update, 0) / cooldown

    return rate


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "noam": noam,
    "warm_cool": warm_cool,
}


def make_schedule(
    name: str | Callable[..., Schedule], *, peak: float, warmup: int, total: int
) -> Schedule:
    """Make the schedule that a YAML file names.

    Arguments
    ---------
    name : str or callable
        A key of `SCHEDULES`, or what is called with the other arguments, for
        example `!name:my_package.cosine`.
    peak : float
        The highest learning rate.
    warmup : int
        Updates until the peak is reached.
    total : int
        Updates of the whole run.

    Returns
    -------
    callable
        Learning rate of an update, the first of which is 1. UserError for an
        unknown name.
    """
    if isinstance(name, str):
        check_choices({"schedule": name}, {"schedule": tuple(SCHEDULES)})
        name = SCHEDULES[name]
    return name(peak=peak, warmup=warmup, total=total)
