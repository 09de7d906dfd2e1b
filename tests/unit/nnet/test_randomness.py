"""Seeds: the same on every machine, different for different things."""

import torch

from summarymixing.nnet.randomness import derive_seed, seeded_generator


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
