"""What can be asked of a loader, checked option by option before anything is opened."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from operator import index
from typing import Any, Final, Literal, SupportsIndex

from featurestore.core.arguments import Check, flag, listed, mapped, one_of, optional, refuse, text, whole
from featurestore.core.names import near
from featurestore.errors import DefinitionError
from featurestore.loaders.fields import Fill, Layout, Nulls
from featurestore.loaders.order import DEFAULT_BLOCK_ROWS, DEFAULT_BLOCKS, DEFAULT_STREAMS
from featurestore.loaders.source import Verify
from featurestore.loaders.splits import EntitySplit, Split, TimeSplit
from featurestore.loaders.steps import DropLast
from featurestore.loaders.windows import Window

HOST_IO: Final = ("auto", "cpu", "mmap")
DEVICE_IO: Final = ("auto", "resident", "pinned", "gds")
_WHAT: Final = "a loader"
_PAIRS: Final = (("columns", "features"), ("label", "labels"), ("batch_size", "global_batch_size"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """Everything that can be asked of a loader; `docs/loaders.md` says what each option means.

    Attributes:
        batch_size: Rows per rank; or `global_batch_size`, rows over all ranks, which survives a change of
            world size.
        columns: Features, in order; `features` is the same. None: all of them.
        label: One label, or `labels`; None: all labels of the dataset. `labels=[]` for none.
        shuffle: True (block shuffle), `"full"` (one exact permutation), False (time order).
        null_labels: `drop` rows whose label is null, or `keep` them as NaN.
        window: Rows that each sample carries; a number is `Window(lookback=…)`.
        dtype: Type of the feature matrix; None keeps stored types, one matrix per type.
        fill: What stands for a null: a number, or numbers by column with `"*"` for the rest.
        vocabularies: Values of string columns in the order of their codes, fitted elsewhere.
        time: Deliver event times; `entity`: entity codes.
        threads: None: as many as there are cores for this rank, at most 8; 0: none.
        prefetch: Batches built ahead of the consumer; None: threads + 1.
        rank: `"auto"`: from the framework's process group, or from RANK and WORLD_SIZE.
        streams, block_rows, blocks: Of the order; part of a loader's identity.
        memory_bytes: Bound of the pinned ring of the streamed tier.
        progress: Rank 0 shows how far a pass is on standard error: a bar on a terminal, else a line now
            and then.
    """

    batch_size: int | None = None
    global_batch_size: int | None = None
    columns: Sequence[str] | None = None
    features: Sequence[str] | None = None
    label: str | None = None
    labels: Sequence[str] | None = None
    weight: str | None = None
    split: Split | None = None
    subset: str | None = None
    shuffle: bool | Literal["full"] = True
    seed: int = 0
    drop_last: DropLast = True
    window: Window | int | None = None
    dtype: str | None = None
    label_dtype: str | None = None
    fill: Fill = 0.0
    nulls: Nulls = "fill"
    null_labels: Literal["drop", "keep"] = "drop"
    vocabularies: Mapping[str, Sequence[str]] | None = None
    layout: Layout = "matrix"
    time: bool = False
    entity: bool = False
    device: Any = "auto"
    io: str = "auto"
    threads: int | None = None
    prefetch: int | None = None
    rank: int | Literal["auto"] = "auto"
    world_size: int | Literal["auto"] = "auto"
    streams: int = DEFAULT_STREAMS
    block_rows: int = DEFAULT_BLOCK_ROWS
    blocks: int = DEFAULT_BLOCKS
    verify: Verify = "auto"
    memory_bytes: int = 1 << 30
    progress: bool = False


def options_of(given: Mapping[str, Any]) -> LoaderOptions:
    """Build options from keywords.

    Raises:
        DefinitionError: an unknown option, one of the wrong kind, or two names of one thing.
    """
    for name in given:
        if name not in _CHECKS:
            raise DefinitionError(f"a loader has no option {name!r}", hint=near(name, _CHECKS), name=name)
    options = LoaderOptions(**{name: _CHECKS[name](_WHAT, name, value) for name, value in given.items()})
    for one, other in _PAIRS:
        if getattr(options, one) is not None and getattr(options, other) is not None:
            raise DefinitionError(f"{one} and {other} are given together", hint="give one of them")
    return options


def check_host(options: LoaderOptions, what: str) -> None:
    """Refuse a device and its tiers where batches are made on the host.

    Raises:
        DefinitionError: `device` or `io` asks for one.
    """
    if not isinstance(options.device, str) or options.device not in {"auto", "cpu"}:
        raise DefinitionError(
            f"device is {options.device!r}, and {what}",
            hint="dataset.torch(device=…) delivers to a device, dataset.jax(sharding=…) to several",
        )
    if options.io not in HOST_IO:
        raise DefinitionError(f"io is {options.io!r}, and {what}", hint=f"one of {', '.join(HOST_IO)}")


def rank_of(options: LoaderOptions, found: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return (rank, world size): as given, as `found` in a process group, or from RANK and WORLD_SIZE.

    Raises:
        DefinitionError: one is given and the other is not, or the environment holds no numbers.
    """
    if options.rank != "auto" and options.world_size != "auto":
        return options.rank, options.world_size
    if options.rank != "auto" or options.world_size != "auto":
        raise DefinitionError(
            f"rank is {options.rank!r} and world_size is {options.world_size!r}", hint="give both or neither"
        )
    if found is not None:
        return found
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world is None:
        return 0, 1
    if not (rank.isdigit() and world.isdigit()):
        raise DefinitionError(
            f"RANK={rank!r} and WORLD_SIZE={world!r} are not numbers", hint="pass rank= and world_size="
        )
    return int(rank), int(world)


def _name(what: str, field: str, value: Any) -> str:
    if not text(what, field, value):
        refuse(what, field, value, "give a name, or None")
    return str(value)


def _names(what: str, field: str, value: Any) -> tuple[str, ...]:
    return tuple(text(what, field, one) for one in listed(what, field, value, "names"))


def _seed(what: str, field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        refuse(what, field, value, "give a whole number")
    return index(value)


def _rank(what: str, field: str, value: Any, *, least: int) -> int | str:
    return "auto" if isinstance(value, str) and value == "auto" else whole(what, field, value, least=least)


def _split(what: str, field: str, value: Any) -> Split:
    parts = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not parts or not all(isinstance(part, (TimeSplit, EntitySplit)) for part in parts):
        refuse(what, field, value, "give TimeSplit(…), EntitySplit(…) or a tuple of them")
    return parts if len(parts) > 1 else parts[0]


def _window(what: str, field: str, value: Any) -> Window:
    return value if isinstance(value, Window) else Window(lookback=whole(what, field, value, least=1))


def _fill(what: str, field: str, value: Any) -> Any:
    numbers = mapped(what, field, value, "numbers by column") if isinstance(value, Mapping) else {"*": value}
    if not all(isinstance(number, Real) for number in numbers.values()):
        refuse(what, field, value, 'give a number, or numbers by column: {"price": -1.0, "*": 0.0}')
    return value


def _vocabularies(what: str, field: str, value: Any) -> Mapping[str, Sequence[str]]:
    given = mapped(what, field, value, '{"column": ["value", …]}')
    return {column: _names(what, f"{field}[{column!r}]", words) for column, words in given.items()}


_CHECKS: Final[Mapping[str, Check]] = {
    **dict.fromkeys(("batch_size", "global_batch_size"), optional(partial(whole, least=1))),
    **dict.fromkeys(("columns", "features", "labels"), optional(_names)),
    **dict.fromkeys(("label", "weight", "subset", "dtype", "label_dtype"), optional(_name)),
    "split": optional(_split),
    "shuffle": partial(one_of, choices=(True, False, "full")),
    "seed": _seed,
    "drop_last": partial(one_of, choices=(True, False, "pad")),
    "window": optional(_window),
    "fill": _fill,
    "nulls": partial(one_of, choices=("fill", "mask", "nan")),
    "null_labels": partial(one_of, choices=("drop", "keep")),
    "vocabularies": optional(_vocabularies),
    "layout": partial(one_of, choices=("matrix", "columns")),
    **dict.fromkeys(("time", "entity", "progress"), flag),
    "device": lambda _what, _field, value: value,  # the adapter that moves batches there knows
    "io": partial(one_of, choices=tuple(dict.fromkeys((*HOST_IO, *DEVICE_IO)))),
    **dict.fromkeys(("threads", "prefetch"), optional(partial(whole, least=0))),
    "rank": partial(_rank, least=0),
    "world_size": partial(_rank, least=1),
    **dict.fromkeys(("streams", "block_rows", "blocks", "memory_bytes"), partial(whole, least=1)),
    "verify": partial(one_of, choices=("auto", "first_use", "open", "off")),
}
