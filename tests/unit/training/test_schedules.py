"""Learning rates: SpeechBrain's values, as functions of the update."""

import pytest
import torch
from speechbrain.nnet.schedulers import NoamScheduler, WarmCoolDecayLRSchedule

from summarymixing.training.schedules import SCHEDULES, noam, warm_cool

PEAK = 5e-4


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)


@pytest.mark.parametrize("warmup", [1, 10, 37])
def test_noam_is_speechbrains(warmup, optimizer):
    stock = NoamScheduler(PEAK, warmup)
    rate = noam(peak=PEAK, warmup=warmup)
    for update in range(1, 200):
        _, expected = stock(optimizer)
        assert rate(update) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("warmup", "total"), [(10, 100), (32_000, 400_000), (7, 1_003)]
)
def test_warm_cool_is_that_of_the_stock_recipe(warmup, total, optimizer):
    stock = WarmCoolDecayLRSchedule(
        lr=PEAK, warmup=warmup, cooldown=total // 10, total_steps=total
    )
    rate = warm_cool(peak=PEAK, warmup=warmup, total=total)
    cool = total - total // 10
    edges = (1, warmup - 1, warmup, warmup + 1, cool - 1, cool, cool + 1, total)
    for update in (*edges, *range(1, total, max(total // 97, 1))):
        stock(optimizer, update)
        expected = optimizer.param_groups[0]["lr"]
        assert rate(update) == pytest.approx(expected, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_peak_is_at_the_end_of_the_warm_up(name):
    rate = SCHEDULES[name](peak=PEAK, warmup=50, total=1_000)
    rates = [rate(update) for update in range(1, 1_001)]
    assert max(rates) == rates[49] == pytest.approx(PEAK)
    assert rates[0] == pytest.approx(PEAK / 50)
    assert min(rates) >= 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 5, 40])
def test_a_run_shorter_than_its_warm_up_has_rates(name, total):
    rate = SCHEDULES[name](peak=PEAK, warmup=50, total=total)
    assert all(0 <= rate(update) <= PEAK for update in range(1, total + 1))


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_warm_up_starts_at_the_peak(name):
    rate = SCHEDULES[name](peak=PEAK, warmup=0, total=1_000)
    assert rate(1) <= PEAK
    assert rate(1) == pytest.approx(PEAK, rel=1e-3)
