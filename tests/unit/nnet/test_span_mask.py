"""Span masks: their rates, and that every utterance gets one."""

import numpy as np
import pytest
from speechbrain.lobes.models.wav2vec import compute_mask

from summarymixing.nnet.span_mask import (
    MASK_SCHEMES,
    filled_spans,
    overlapping_spans,
)

every_scheme = pytest.mark.parametrize("scheme", MASK_SCHEMES.values())


def rng(seed=0):
    return np.random.default_rng(seed)


def short_run_share(masked, num_frames, length=10):
    """Share of the masked frames that stand in runs shorter than a span."""
    flags = np.zeros(num_frames + 2, dtype=int)
    flags[masked + 1] = 1
    edges = np.flatnonzero(np.diff(flags))
    runs = edges[1::2] - edges[::2]
    return runs[runs < length].sum() / len(masked)


@every_scheme
@pytest.mark.parametrize("seed", range(5))
def test_every_length_gets_a_mask(scheme, seed):
    for num_frames in range(1, 201):
        frames = scheme(num_frames, rng(seed))
        assert frames.dtype == np.int64
        assert len(frames) >= 1
        assert frames[0] >= 0 and frames[-1] < num_frames
        assert (np.diff(frames) > 0).all()  # ascending and unique
        if num_frames > 1:  # something is left to look at
            assert len(frames) < num_frames


@pytest.mark.parametrize("num_frames", [10, 15, 40, 120])
def test_a_short_utterance_keeps_a_fifth_as_context(num_frames):
    for seed in range(50):
        frames = filled_spans(num_frames, rng(seed))
        assert len(frames) <= 0.8 * num_frames


@every_scheme
@pytest.mark.parametrize(("probability", "length"), [(0.1, 3), (0.9, 25)])
def test_every_length_gets_a_mask_with_other_settings(
    scheme, probability, length
):
    for num_frames in range(1, 120):
        frames = scheme(
            num_frames, rng(num_frames), probability=probability, length=length
        )
        assert 1 <= len(frames) <= max(num_frames - 1, 1)


@pytest.mark.parametrize("num_frames", [400, 1500, 3000])
def test_the_stock_scheme_has_the_rates_of_speechbrain(num_frames):
    ours = [filled_spans(num_frames, rng(seed)) for seed in range(60)]
    stock = [
        np.flatnonzero(compute_mask((1, num_frames), [num_frames], 0.65, 10))
        for _ in range(60)
    ]
    # Both draw one of two numbers of spans, 10 frames apart.
    assert {len(m) for m in ours} == {len(m) for m in stock}
    assert np.mean([len(m) for m in ours]) == pytest.approx(
        np.mean([len(m) for m in stock]), abs=3
    )
    assert np.mean([short_run_share(m, num_frames) for m in ours]) == (
        pytest.approx(
            np.mean([short_run_share(m, num_frames) for m in stock]), abs=0.03
        )
    )


def test_fairseqs_scheme_masks_half_in_whole_spans():
    masks = [overlapping_spans(1500, rng(seed)) for seed in range(100)]
    # 97.5 spans of 10 fall on 1491 starts without replacement.
    expected = 1 - (1 - 97.5 / 1491) ** 10
    assert np.mean([len(m) for m in masks]) / 1500 == pytest.approx(
        expected, abs=0.01
    )
    assert max(short_run_share(m, 1500) for m in masks) == 0


@every_scheme
def test_every_frame_is_masked_as_often_as_the_others(scheme):
    num_frames, repeats = 60, 3000
    counts = np.zeros(num_frames)
    for seed in range(repeats):
        counts[scheme(num_frames, rng(seed))] += 1
    rates = counts / repeats
    # Fewer spans reach the first and the last frames; the last one is
    # reached as often as the first.
    inner = rates[10:-10]
    assert inner.max() - inner.min() < 0.08
    assert rates[0] > 0.04 and rates[-1] > 0.04
    assert rates[:10].mean() == pytest.approx(rates[-10:].mean(), abs=0.04)


@every_scheme
def test_a_mask_is_a_function_of_the_generator(scheme):
    first, again, other = (scheme(500, rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
