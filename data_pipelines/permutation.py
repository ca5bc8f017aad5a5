"""Random permutations of large ranges of integers, computed on demand without an array."""

import math

import numpy as np

ROUNDS = 4


def permuted(places: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Returns the values at some places, int64 [n], of permutations of the integers below `size`, each chosen by a key,
    int64 [n].

    This is a Feistel network over pairs (quotient and remainder by a number near the root of `size`), in which each
    half is shifted by a hash of the other. A result that is not below `size` goes through the network again until it is
    (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    found = _network(places.astype(np.uint64), size, keys.astype(np.uint64))
    while (outside := found >= size).any():
        found[outside] = _network(found[outside], size, keys[outside].astype(np.uint64))
    return found.astype(np.int64)


def _network(numbers: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Permutes the integers below the product of two numbers near the square root of `size`: uint64 [n]."""
    above = np.uint64(math.isqrt(size - 1) + 1)
    below = np.uint64(-(-size // int(above)))
    high, low = np.divmod(numbers, below)
    for number in range(ROUNDS):
        round_keys = hashed(keys + np.uint64(number + 1))
        high = (high + hashed(low ^ round_keys) % above) % above
        low = (low + hashed(high ^ ~round_keys) % below) % below
    return high * below + low


def hashed(numbers: np.ndarray) -> np.ndarray:
    """Returns well-mixed bits of each number: uint64 [n] (SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = (numbers + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
