"""Random permutations that are computed element by element instead of being stored."""

import numpy as np

ROUNDS = 6  # four rounds of pseudo-random functions suffice for a Feistel network (Luby and Rackoff 1988)
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, whose multiples are spread evenly


def mix(x: np.ndarray) -> np.ndarray:
    """A bijective hash of 64-bit numbers: the finaliser of SplitMix64 (https://doi.org/10.1145/2660193.2660195)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: np.ndarray = x ^ (x >> np.uint64(31))
    return out


def key_of(*numbers: int) -> np.uint64:
    """Combine integers, in order, into one 64-bit key."""
    key = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        key = mix(key + np.array([number + GOLDEN & MASK], dtype=np.uint64))
    return np.uint64(key[0])


def permuted(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """The image of each position in the permutation of 0 .. size - 1 that its key selects.

    A Feistel network permutes the numbers of 2k bits. Images of ``size`` or more are permuted again until they are
    below it (cycle walking), so that the map is a permutation of 0 .. size - 1.

    Args:
        positions: (n,) numbers from 0 to size - 1
        size: number of items, at least 1
        keys: (n,) uint64 key of each position
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    out = positions.astype(np.uint64)
    outside = np.arange(len(out))
    while len(outside):
        left, right = out[outside] >> half, out[outside] & low
        for number in range(ROUNDS):
            scrambled = mix(right + keys[outside] + np.uint64(number * GOLDEN & MASK))
            left, right = right, left ^ (scrambled & low)
        out[outside] = left << half | right
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)
