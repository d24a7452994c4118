"""Keys that meet in a hash table: with the same hash, or at the same last slot of every table.

The tables' hashes are one to one on words, so such keys can be computed; they must stay apart all the same.
"""

import random

from featurestore.temporal.key_kernels import _MIX

_LOW = (1 << 64) - 1
_FACTOR = int(_MIX)
_INVERSE = pow(_FACTOR, -1, 1 << 64)


def mixed(word: int) -> int:
    """Do what `key_kernels.mixed` does."""
    word = (word ^ word >> 32) * _FACTOR & _LOW
    return word ^ word >> 32


def unmixed(hashed: int) -> int:
    """Return the word whose hash it is."""
    word = (hashed ^ hashed >> 32) * _INVERSE & _LOW
    return word ^ word >> 32


def _bytes(*words: int) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words)


def colliding(size: int, count: int = 12) -> list[bytes]:
    """Return keys of `size` bytes that all have one hash: they differ in two neighbouring words alone."""
    rng = random.Random(size)  # noqa: S311 -- test data
    base = [rng.getrandbits(64) for _ in range(size // 8)]
    found = [_bytes(*base)]
    for turn in range(count):
        words, place = list(base), turn % (len(base) - 1)
        state = size * _FACTOR & _LOW
        for word in base[:place]:
            state = mixed(state ^ word)
        words[place] = rng.getrandbits(64)
        # The next word takes back what this one has changed.
        words[place + 1] ^= mixed(state ^ base[place]) ^ mixed(state ^ words[place])
        found.append(_bytes(*words))
    return found


def same_hash_of_any_size() -> list[bytes]:
    """Return keys of 8, 16 and 24 bytes that all have one hash, each the beginning of a longer one."""
    goal = 0x0123456789ABCDEF
    one = goal ^ (8 * _FACTOR & _LOW)
    two = goal ^ mixed((16 * _FACTOR & _LOW) ^ one)
    three = goal ^ mixed(mixed((24 * _FACTOR & _LOW) ^ one) ^ two)
    return [_bytes(one), _bytes(one, two), _bytes(one, two, three)]


def crowded_integers(count: int) -> list[int]:
    """Return integers whose hashes end in 20 ones: the last slot of every small table is theirs."""
    words = [unmixed((k << 20) | 0xFFFFF) for k in range(count)]
    return [word - (1 << 64) if word >> 63 else word for word in words]


def crowded_words(count: int) -> list[bytes]:
    """Return keys of 7 bytes whose hashes end in 12 ones."""
    found, k = list[bytes](), 0
    while len(found) < count:
        word, k = unmixed((k << 12) | 0xFFF), k + 1
        if word >> 56 == 7:
            found.append(word.to_bytes(8, "little")[:7])
    return found
