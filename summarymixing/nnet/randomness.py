"""Randomness as a function of what is computed, not of what came before.

Masks, negatives, noise and orders come from a seed derived from names and
numbers: (run seed, epoch, utterance) or (run seed, update, rank). An exact
resume needs no stored state, and an utterance gets the same mask whatever
else is in its batch. What a model draws on its device is a hash of counters:
the same integers on every device, by a fixed number of kernels.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Mix numbers and names into one seed of 63 bits, the same everywhere.

    Example
    -------
    >>> derive_seed(1, "mask", "utt") == derive_seed(1, "mask", "utt")
    True
    >>> derive_seed(1, "mask") == derive_seed(2, "mask")
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(
    seed: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a new generator, so that no global one changes."""
    return torch.Generator(device=device).manual_seed(seed)


def splitmix64(seeds: Tensor, num: int) -> Tensor:
    """Return the first numbers of SplitMix64 for each seed.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators" (2014). Number i is a hash of seed and i, so all come at once.

    Arguments
    ---------
    seeds : Tensor, int64, (...)
        A generator for each seed; products wrap around.
    num : int
        How many numbers of each.

    Returns
    -------
    Tensor, int64, (..., num)
        All 64 bits are random, the sign among them.

    Example
    -------
    >>> splitmix64(torch.tensor(1234567), 2)
    tensor([6457827717110365317, 3203168211198807973])
    """
    counter = torch.arange(1, num + 1, device=seeds.device)
    # `^ 0` keeps a compiler from taking the product for an index, which it
    # may compute in 32 bits.
    x = seeds.unsqueeze(-1) + (counter ^ 0) * -0x61C8864680B583EB
    # A mask after each shift: that of int64 repeats the sign.
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def random_bits(keys: Tensor, num: int, bits: int) -> Tensor:
    """Draw integers of so many random bits: (...) keys to (..., num).

    The product of a random key and of a random odd number that belongs to
    the place of the draw, and one round of mixing. This costs a third of
    SplitMix64, which makes the keys and the odd numbers, and counts where
    some million numbers are drawn for each batch.

    Arguments
    ---------
    keys : Tensor, int64, (...)
        Numbers of `splitmix64`: not small or similar ones.
    num : int
        Draws for each key.
    bits : int
        1 to 32; the result is below 2 ** bits.

    Example
    -------
    >>> random_bits(splitmix64(torch.tensor(7), 2), 3, bits=4).shape
    torch.Size([2, 3])
    """
    zero = torch.zeros((), dtype=torch.int64, device=keys.device)
    places = splitmix64(zero, num) | 1
    x = keys.unsqueeze(-1) * places
    x ^= x >> 32
    x *= -0x61C8864680B583EB
    x >>= 64 - bits
    x &= (1 << bits) - 1
    return x
