"""Seeds: the same on every machine, different for different things."""

import pytest
import torch

from summarymixing.nnet.randomness import (
    derive_seed,
    random_bits,
    seeded_generator,
    splitmix64,
)


def test_a_seed_is_the_same_on_every_machine():
    # A changed value would change every mask of a run that is resumed.
    seed = derive_seed(1986, "train", 3, "84-121123-0001")
    assert seed == 8_360_896_377_760_352_917


def test_parts_cannot_be_confused():
    parts = [
        (1, "mask"),
        ("1", "mask"),
        (1, "mask", ""),
        (1, "ma", "sk"),
        ("1mask",),
        ("mask", 1),
        (11, "mask"),
        (),
    ]
    assert len({derive_seed(*p) for p in parts}) == len(parts)


def test_seeds_fit_every_generator_and_use_their_range():
    seeds = [derive_seed(index) for index in range(2000)]
    assert min(seeds) >= 0 and max(seeds) < 2**63
    assert max(seeds) > 2**62 and min(seeds) < 2**54
    assert len(set(seeds)) == 2000


def test_a_generator_of_its_own_leaves_the_global_stream_alone(device):
    before = torch.random.get_rng_state()
    first, again = (
        torch.rand(4, generator=seeded_generator(7, device), device=device)
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)


def draw(num_keys=4_000, num=64, bits=12, device="cpu"):
    """Draws of the keys of neighbouring seeds, the worst there are."""
    seeds = torch.arange(4, device=device)
    keys = splitmix64(seeds, num_keys // 4).flatten()
    return random_bits(keys, num, bits)


def chi_square(cells, num_cells):
    """Departure from uniform cells, in deviations of what chance makes."""
    counts = cells.flatten().bincount(minlength=num_cells).double()
    expected = cells.numel() / num_cells
    free = num_cells - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (statistic - free) / (2 * free) ** 0.5


def test_splitmix64_has_its_published_numbers(device):
    # https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    numbers = splitmix64(torch.tensor(1234567, device=device), 5)
    assert [number % 2**64 for number in numbers.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def slow_draw(seed, frame, place, bits):
    """The same by Python's integers, which never overflow."""
    wrap = 2**64

    def splitmix(seed, index):
        x = (seed + (index + 1) * 0x9E3779B97F4A7C15) % wrap
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % wrap
        x = (x ^ x >> 27) * 0x94D049BB133111EB % wrap
        return x ^ x >> 31

    x = splitmix(seed, frame) * (splitmix(0, place) | 1) % wrap
    signed = x - wrap if x >= wrap // 2 else x
    x = (x ^ signed >> 32) * 0x9E3779B97F4A7C15 % wrap
    return x >> 64 - bits


@pytest.mark.parametrize("bits", [1, 23, 31])
def test_draws_are_the_same_on_every_machine(bits, device):
    # A changed value would change every negative of a run that is resumed.
    seeds = [0, 3, 2**63 - 1]
    keys = splitmix64(torch.tensor(seeds, device=device), 4)
    assert random_bits(keys, 5, bits).tolist() == [
        [[slow_draw(s, t, k, bits) for k in range(5)] for t in range(4)]
        for s in seeds
    ]


def test_draws_use_their_range(device):
    drawn = draw(bits=31, device=device)
    assert 0 <= drawn.min() < 2**17 and 2**31 - 2**17 < drawn.max() < 2**31
    # Each bit is set in half of the draws: 256,000 have a deviation of 0.001.
    places = torch.arange(31, device=device)
    rates = (drawn.unsqueeze(-1) >> places & 1).double().mean(dim=(0, 1))
    assert (rates - 0.5).abs().max() < 0.005


@pytest.mark.parametrize("bits", [6, 12])
def test_draws_are_uniform(bits, device):
    assert chi_square(draw(bits=bits, device=device), 2**bits).abs() < 5


def test_places_keys_and_seeds_are_independent_in_pairs(device):
    drawn = draw(num=8, bits=4, device=device)
    seeds = drawn.view(4, -1, 8)
    pairs = {
        "places": (drawn[:, :-1], drawn[:, 1:]),
        "keys": (drawn[:-1], drawn[1:]),
        "seeds": (seeds[:-1], seeds[1:]),
    }
    for name, (first, second) in pairs.items():
        assert chi_square(first * 16 + second, 256).abs() < 5, name


def test_three_places_are_independent(device):
    """A product alone would put them on planes."""
    drawn = draw(num=12, bits=3, device=device)
    triples = drawn[:, 2:] * 64 + drawn[:, 1:-1] * 8 + drawn[:, :-2]
    assert chi_square(triples, 512).abs() < 5


def test_a_draw_depends_on_its_key_and_place_alone(device):
    drawn = draw(device=device)
    keys = splitmix64(torch.arange(4, device=device), 1000)
    assert torch.equal(
        random_bits(keys[2:3, 5:9], 7, 12)[0],
        drawn.view(4, 1000, 64)[2, 5:9, :7],
    )
    assert torch.equal(
        splitmix64(torch.tensor(2, device=device), 9), keys[2, :9]
    )
