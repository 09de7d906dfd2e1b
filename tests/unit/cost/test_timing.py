"""Steps are timed in turns."""

import torch

from summarymixing.cost.timing import time_in_turns


def test_steps_take_turns_and_the_first_rounds_do_not_count():
    calls = []
    times = time_in_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        device=torch.device("cpu"),
        repeats=2,
        warmup=1,
    )
    assert calls == ["a", "b"] * 3
    assert times.keys() == {"a", "b"}
    assert all(t.low <= t.median <= t.high for t in times.values())
