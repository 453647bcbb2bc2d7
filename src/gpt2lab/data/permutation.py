"""A shuffle that is computed, not stored: a keyed bijection of {0, ..., n-1} that needs no memory.

An index x is split into two digits, x = left * b + right, with a * b just above n. A Feistel network mixes them: each
round adds to one digit a keyed hash of the other, which can be undone, so the whole is a bijection of {0, ..., ab - 1}
whatever the hash is:

    left  <- (left  + F_i(right)) mod a
    right <- (right + F_{i+1}(left)) mod b

An image that is n or more is mixed again until it falls below n ("cycle walking"), which leaves a bijection of
{0, ..., n-1}. As ab - n < a, about one image in sqrt(n) walks at all.

Sources: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, sections 4 and 5 (both ideas); Steele, Lea
and Flood, "Fast Splittable Pseudorandom Number Generators", 2014 (the hash, splitmix64).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

ROUNDS = 8
"""With 4 or 6 rounds the permutations of a handful of indices are not equally likely; with 8 they pass as random."""


def permute(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Return where the permutation of {0, ..., n-1} that belongs to (seed, epoch) sends each index.

    Args:
        indices: Integers in [0, n), any shape.
        n: Size of the permuted set, 1 <= n < 2**62.
        seed: Any integer.
        epoch: Any integer; each epoch has a permutation of its own.

    Returns:
        int64 array of the shape of ``indices``.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = _round_keys(seed, epoch)
    x = _network(np.atleast_1d(indices).astype(np.uint64), np.uint64(a), np.uint64(b), keys)
    while (outside := x >= np.uint64(n)).any():
        x[outside] = _network(x[outside], np.uint64(a), np.uint64(b), keys)
    return x.astype(np.int64).reshape(np.shape(indices))


def _network(x: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(x, b)
    for key_left, key_right in zip(keys[::2], keys[1::2], strict=True):
        left = (left + _hash(right + key_left)) % a
        right = (right + _hash(left + key_right)) % b
    return left * b + right


def _hash(x: np.ndarray) -> np.ndarray:
    """Splitmix64's finaliser, less its lowest bit: below 2**63, so that adding a digit to it does not overflow."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)


def _round_keys(seed: int, epoch: int) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * ROUNDS)
    return np.frombuffer(digest.digest(), dtype="<u8")
