"""Mutants of the loops that number keys and copy values, run in a process with little time and memory.

Such a mutant may fill a table for ever or ask for all the memory there is: each module's mutants run in a
child that may hold a bounded amount more than it began with. The kernels are plain Python there, and reading
8 bytes as one word refuses what does not lie in the data.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from tests.temporal.key_cases import colliding, crowded_integers, crowded_words, same_hash_of_any_size
from tests.temporal.mutants import FOLDER, loaded, memory_limit, survivors
from tests.temporal.test_streaming_kernels import keys_are_numbered

from featurestore.errors import FeatureStoreError
from featurestore.temporal import gather, keys, streaming_keys, threads
from featurestore.temporal.keys import code_keys
from featurestore.temporal.streaming_keys import KeyNumbers

_MORE_BYTES: Final = 1 << 30
_LOW: Final = (1 << 64) - 1


def load_word(data: npt.NDArray[np.uint8], place: Any) -> np.uint64:
    """Read 8 bytes as one number, as the machine does, but nothing beyond the data.

    Raises:
        IndexError: they do not all lie in it.
    """
    begin = int(place)
    if begin + 8 > len(data):
        raise IndexError(f"8 bytes at {begin} of {len(data)}")
    return np.uint64(int.from_bytes(data[begin : begin + 8].tobytes(), "little"))


def _narrowed(value: Any) -> np.int32:
    return np.int32((int(value) + 2**31) % 2**32 - 2**31)


# What compiled code does: numbers wrap, words are read whole.
INSTRUCTIONS: Final[dict[str, Any]] = {
    "load_word": load_word,
    "U64": lambda value: np.uint64(int(value) & _LOW),
    "np": SimpleNamespace(
        **{name: getattr(np, name) for name in ("empty", "zeros", "int64", "uint8", "uint64")},
        int32=_narrowed,
    ),
}


# Gathering.


@cache
def gathers() -> list[tuple[pa.Array, npt.NDArray[np.int64], int]]:
    """Columns, positions and a number of threads: with and without nulls, offsets and missing rows."""
    rng, found = np.random.default_rng(0), []
    for turn in range(48):
        count = int(rng.integers(12, 60))
        kind = (pa.int16(), pa.float64(), pa.string_view())[turn % 3]
        numbers = [
            None if turn // 3 % 2 and rng.random() < 0.3 else int(v) for v in rng.integers(1, 99, count)
        ]
        values = [None if v is None else f"{v} of many bytes" for v in numbers] if turn % 3 == 2 else numbers
        array = pa.array([*values, *values[:9]], kind).slice(turn % 10 if turn % 4 else 0)
        low = -1 if turn % 5 < 3 else 0
        positions = rng.integers(low, len(array), (16, 32, 8, 7, 57, 81, 48)[turn % 7])
        if turn % 11 == 0:
            positions[-1] = -1
        found.append((array, positions, 1 + turn % 3))
    return found


def copies_wrongly() -> bool:
    for array, positions, count in gathers():
        taken = gather.gather(array, positions, threads=count)
        taken.validate(full=True)
        wanted = [None if p < 0 else array[int(p)].as_py() for p in positions]
        if taken.to_pylist() != wanted or (taken.buffers()[0] is None) != (None not in wanted):
            return True
        words = np.frombuffer(taken.buffers()[1], np.uint8).reshape(len(positions), -1)
        if any(words[k].any() for k, value in enumerate(wanted) if value is None):
            return True
    return False


# Numbering.


def _words(seed: int, count: int) -> list[str | None]:
    """Keys that are short, of 7, 8 and more bytes, that differ at one end or in length alone, and nulls."""
    rng, found = np.random.default_rng(seed), list[str | None]()
    for number in rng.integers(0, count, count).tolist():
        forms = ("", f"{number}", f"{number:07d}", f"{number:08d}", "x" * (number % 30), f"{number:03d}" * 6,
                 f"{'y' * 8}{number:03d}{'z' * 8}", f"{number:03d}{'q' * 14}")  # fmt: skip
        found.append(None if number % 11 == 0 and seed % 2 else forms[number % 8])
    return found


def _integers(seed: int, count: int, base: int, step: int) -> list[int | None]:
    rng = np.random.default_rng(seed)
    numbers = [base + step * int(v) for v in rng.integers(0, count, count)]
    return [None if v % 7 == 0 and seed % 2 else v for v in numbers]


Case = tuple[list[list[pa.Array]], int]


@cache
def key_cases() -> list[Case]:
    """Sides of key columns of every layout, and on how many threads to number them."""
    return [*_text_cases(), *_integer_cases(), *_composite_cases(), *_dictionary_cases()]


def _text_cases() -> list[Case]:
    kinds, found = (pa.string(), pa.large_binary(), pa.binary(), pa.large_string()), list[Case]()
    for seed in range(12):
        one = pa.array([None, *_words(seed, 60)]).cast(kinds[seed % 4]).slice(1)
        other = pa.array(_words(seed + 50, 40)).cast(kinds[seed % 4])
        found.append(([[one], [other]], 1 + seed % 3))
    for values in _meeting(40):
        found += [([[pa.array(values)], [pa.array(values[::-1])]], count) for count in (1, 2)]
    fixed = pa.array([None, *colliding(24), None], pa.binary(24))
    found.append(([[fixed.slice(1)], [fixed]], 2))
    narrow: list[bytes | None] = [None if k % 9 == 0 else f"{k % 31:05d}".encode() for k in range(80)]
    for part in (narrow, narrow[1:9] * 2):
        found += [([[pa.array(part, pa.binary(5)).slice(3)]], count) for count in (1, 3)]
    # More keys than the first table takes, in its last slot and anywhere.
    many = [*crowded_words(70), *(f"{k}{'-' * (k % 9)}".encode() for k in range(50))]
    found.append(([[pa.array([*many, *many[::-1]])]], 1))
    return found


def _meeting(count: int) -> list[list[bytes]]:
    """Keys with one hash, with one slot, and those that are short and differ in few bits or in length."""
    bits = [bytes([k]) for k in range(8)] + [b"a", b"b", b"", b"\0\0", b"\1\0", b"a\1"]
    tails = [b"1234567" + bytes([k]) for k in (0, 1, 8, 9, 128, 136)] + [b"1234567", b"123456", b"123456\0"]
    alike = [*bits * 2, b"", b"a", b"\1", *bits[::-1], *tails * 2]
    return [*map(colliding, (16, 24, 32)), same_hash_of_any_size(), crowded_words(count), alike]


def _integer_cases() -> list[Case]:
    ranges = ((-50, 1), (7, 1), (10**12, 10**13), (-(2**62), 2**55), (5, 200), (0, 3), (2**62, 1))
    found: list[Case] = []
    for seed in range(21):
        base, step = ranges[seed % 7]
        kind = pa.int32() if abs(base) < 10**6 and seed % 4 == 0 else pa.int64()
        sides = [[pa.array([None, 3, *_integers(seed + n, n, base, step)], kind).slice(2)] for n in (50, 33)]
        found.append((sides, 1 + seed % 2))
    ends = [-(2**63), 2**63 - 1, 0, -1, None, 5]
    found.append(([[pa.array(ends)], [pa.array(ends[::-1])]], 1))
    crowd = [*crowded_integers(70), *(k << 40 for k in range(30))]
    found.append(([[pa.array([*crowd, *crowd])]], 1))
    found.append(([[pa.array([*crowd, *crowd])], [pa.array(crowd[::-1])]], 2))
    return found


def _composite_cases() -> list[Case]:
    """Pairs of few, of many and of very many numbers: a shift, a table and hashing."""
    found: list[Case] = []
    for seed, (low, high) in enumerate(((5, 7), (90, 100), (3000, 60), (2900, 3000))):
        rng = np.random.default_rng(seed)
        sides = []
        for count in (70, 40):
            one, other = rng.integers(0, low, count), rng.integers(0, high, count)
            if count == 70:
                one[:2], other[:2] = (0, low - 1), (0, high - 1)
            sides.append(
                [pa.array(one, mask=rng.random(count) < 0.1), pa.array(other, mask=rng.random(count) < 0.1)]
            )
        found += [(sides, 1), (sides, 2)]
    return found


def _dictionary_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    words, more = pa.array(["b", "a", None, "c", "a"]), pa.array(["c", "z", "a"])
    found: list[Case] = []
    for turn in range(4):
        sides = []
        for values, count in ((words, 40), (more, 20)):
            places = rng.integers(0, len(values), count).astype(np.int16)
            indices = pa.array(places, mask=rng.random(count) < 0.2 if turn % 2 else None)
            sides.append([pa.DictionaryArray.from_arrays(indices, values).slice(turn)])
        found.append((sides, 1 + turn // 2))
    return found


def numbers_wrongly() -> bool:
    """Whether equal keys get different codes, or different ones the same."""
    for sides, count in key_cases():
        coded = code_keys(sides, [f"k{n}" for n in range(len(sides[0]))], threads=count)
        known: dict[Any, int] = {}
        for columns, codes in zip(sides, coded.codes, strict=True):
            rows = list(zip(*(column.to_pylist() for column in columns), strict=True))
            for row, code in zip(rows, codes.tolist(), strict=True):
                if code != (-1 if None in row else known.setdefault(row, code)):
                    return True
        if len(set(known.values())) != len(known) or not all(0 <= c < coded.entities for c in known.values()):
            return True
    return False


def numbers_streams_wrongly() -> bool:
    """Whether keys that come batch by batch are not numbered by their first appearance."""
    long = [bytes([k]) * 700 for k in range(40)]
    crowd: list[Any] = [None, *crowded_integers(80)]
    for column in (*_meeting(80), long, crowd):
        if not _numbered([pa.array(column[:9]), pa.array(column[::-1]), pa.array(column)]):
            return True
    # The second batch begins with what, misread by its length, is a key of the first one.
    if not _numbered([pa.array([b"bcd", b"cdefg"]), pa.array([b"a", b"b", b"cd", b"efg", b"bcdcdefg"])]):
        return True
    return not keys_are_numbered()


def _numbered(batches: Sequence[pa.Array]) -> bool:
    numbers, known = KeyNumbers(("k",)), dict[Any, int]()
    for batch in batches:
        out = np.empty(len(batch), np.int32)
        numbers.code([pa.chunked_array([batch])], out)
        wanted = [-1 if key is None else known.setdefault(key, len(known)) for key in batch.to_pylist()]
        if out.tolist() != wanted:
            return False
    return len(numbers) == len(known)


NOTICED_BY: Final[dict[str, Callable[[], bool]]] = {
    "gather_kernels": copies_wrongly,
    "key_kernels": lambda: numbers_wrongly() or numbers_streams_wrongly(),
    "streaming_key_kernels": numbers_streams_wrongly,
}

_KEY_MODULES: Final = ("key_kernels", "streaming_key_kernels")
# What the second of them takes from the first one.
_SHARED: Final = ("code_known_run", "is_valid", "long_tag", "mixed", "short_tag")

# Mutants that answer the same, by (function, changed line, change).
_BYTE_BY_BYTE: Final = "a word is read byte by byte"
_TWICE: Final = "the last word is compared twice"
_SIZES: Final = "another size of the table"
_SLOWLY: Final = "the key is left to the plain loop, which finds it"
_SHORT: Final = "if size >= _EIGHT or begin + _EIGHT > U64(len(data)):"
_NO_ROOM: Final = "if keys == U64(room) or (not is_short and at + np.int64(size) > len(arena)):"
_PAIR: Final = "out[i] = -1 if one[i] < 0 or other[i] < 0 else (np.int64(one[i]) << 32) | np.int64(other[i])"
SAME: Final[dict[tuple[str, str, str], str]] = {
    ("none_missing", "return bool(signs >= 0)", "GtE to Gt"): "row 0 alone: copied with bits of their own",
    ("short_tag", "if begin + _EIGHT <= U64(len(data)):", "LtE to Lt"): _BYTE_BY_BYTE,
    ("long_tag", "while place < last:", "Lt to LtE"): "another hash",
    ("same_bytes", "while place < last:", "Lt to LtE"): _TWICE,
    ("same_as_known", "while place < last:", "Lt to LtE"): _TWICE,
    ("new_table", "if rows < 256:", "Lt to LtE"): _SIZES,
    (
        "new_table",
        "return np.zeros(2 * 2048 if rows < 1 << 15 else 2 * 16384, np.uint64)",
        "Lt to LtE",
    ): _SIZES,
    ("grown_table", "slots = old * 4 if old <= 1 << 16 else old * 2", "LtE to Lt"): _SIZES,
    ("room_of", "return slots >> 2 if slots <= 1 << 16 else slots >> 1", "LtE to Lt"): _SIZES,
    ("code_known_run", _SHORT, "GtE to Gt"): "no short key's hash is that of 8 bytes and their number",
    ("code_known_run", _SHORT, "Gt to GtE"): _SLOWLY,
    ("code_known_run", "slot = (slot + _ONE) & mask", "Add to Sub"): _SLOWLY,
    ("number_bytes", _NO_ROOM, "Gt to GtE"): "the arena grows when it is full, not when it overflows",
    ("pair_codes", _PAIR, "Or to And"): "a pair with one null is negative too, which is null",
}


def _put_in_place(name: str, patch: pytest.MonkeyPatch) -> Callable[[ast.Module], None]:
    """Return what puts a module's kernels, as plain Python, where its callers look for them."""

    def load(tree: ast.Module) -> None:
        if name == "gather_kernels":
            patch.setattr(gather, "_kernels", loaded(tree, name, INSTRUCTIONS | {"_STRETCH": 16}))
            return
        trees = {part: ast.parse((FOLDER / f"{part}.py").read_text()) for part in _KEY_MODULES} | {name: tree}
        known, streaming = (trees[part] for part in _KEY_MODULES)
        found = loaded(known, "key_kernels", INSTRUCTIONS)
        shared = {part: getattr(found, part) for part in _SHARED}
        patch.setattr(keys, "_kernels", found)
        patch.setattr(streaming_keys, "_key_kernels", found)
        patch.setattr(streaming_keys, "_kernels", loaded(streaming, "streaming", INSTRUCTIONS | shared))

    return load


def one_after_the_other(tasks: Sequence[Callable[[], None]]) -> None:
    for task in tasks:
        task()


def surviving(name: str) -> list[str]:
    """Return a module's mutants that no case notices, in this process and its memory."""

    def notices() -> bool:
        try:
            return NOTICED_BY[name]()
        except (FeatureStoreError, pa.ArrowException, ArithmeticError, LookupError, MemoryError, ValueError):
            return True

    with pytest.MonkeyPatch.context() as patch, memory_limit(_MORE_BYTES):
        patch.setattr(threads, "MIN_ROWS", 1)
        patch.setattr(gather, "_FEW_ROWS", 0)
        patch.setattr(gather, "run_parallel", one_after_the_other)
        patch.setattr(keys, "run_in_turn", lambda tasks, _wide: one_after_the_other(tasks))
        return survivors(name, notices, _put_in_place(name, patch), SAME, seconds=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is set from /proc")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", ["gather_kernels", *(pytest.param(name, marks=pytest.mark.soak) for name in _KEY_MODULES)]
)
def test_no_mutant_of_the_loops_over_keys_and_values_survives(name: str) -> None:
    code = f"from tests.temporal.test_key_mutants import surviving; print(surviving({name!r}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = ast.literal_eval(done.stdout.splitlines()[-1])
    assert not found, f"{len(found)} mutants survive:\n" + "\n".join(found)


@pytest.mark.parametrize("name", NOTICED_BY)
def test_the_compiled_loops_answer_the_same_cases(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)
    monkeypatch.setattr(gather, "_FEW_ROWS", 0)
    assert not NOTICED_BY[name]()
