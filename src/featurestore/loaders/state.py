"""A loader's position as small JSON, and the fingerprint of everything that decides its order."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from featurestore.errors import LoaderStateError

STATE_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Digests of the parts that decide which rows and values a batch holds; equal on all ranks.

    Attributes:
        order: Parts that decide which rows come when, by name: dataset, selection, shuffle, seed.
        content: Parts that decide what is delivered of a row: columns, types, fills.
    """

    order: Mapping[str, str]
    content: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """One number for all parts."""
        return digest({**self.order, **self.content})


def digest(value: Any) -> str:
    """Hash a JSON value with the standard library's SHA-256, as 32 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def state_of(
    identity: Identity, *, seed: int, epoch: int, step: int, global_batch: int, streams: int
) -> dict[str, Any]:
    """Return the state after `step` delivered batches of an epoch: plain JSON, the same on every rank."""
    parts = {name: value[:12] for name, value in {**identity.order, **identity.content}.items()}
    return {
        "v": STATE_VERSION,
        "fingerprint": identity.fingerprint,
        "parts": parts,
        "seed": seed,
        "epoch": epoch,
        "step": step,
        "global_batch": global_batch,
        "streams": streams,
    }


def position_in(
    state: Mapping[str, Any], identity: Identity, *, global_batch: int, strict: bool = True
) -> tuple[int, int]:
    """Check a state against a loader and return its (epoch, step).

    Another global batch size is taken where the delivered positions are a whole number of its steps.

    Args:
        strict: False takes the position although the fingerprint differs.

    Raises:
        LoaderStateError: not a state, of another version, of another loader (the parts that differ are
        named), or
            between two steps of this batch size.
    """
    needed = {"v", "fingerprint", "parts", "epoch", "step", "global_batch"}
    if not isinstance(state, Mapping):
        raise LoaderStateError(f"{state!r} is not a loader's state", hint="pass what state_dict() returned")
    missing = needed - set(state)
    if missing or state["v"] != STATE_VERSION:
        raise LoaderStateError(
            f"not a loader's state of version {STATE_VERSION}: "
            + (f"{', '.join(sorted(missing))} missing" if missing else f"version {state['v']}"),
            hint="pass what state_dict() returned",
        )
    if strict and state["fingerprint"] != identity.fingerprint:
        mine = {**identity.order, **identity.content}
        theirs = state["parts"]
        different = sorted(n for n in {*mine, *theirs} if mine.get(n, "")[:12] != theirs.get(n, ""))
        raise LoaderStateError(
            f"the state is of another loader: {', '.join(different) or 'the fingerprint'} differs",
            hint="open the same dataset version with the same options, or pass strict=False",
            different=different,
        )
    epoch, step = int(state["epoch"]), int(state["step"])
    delivered = step * int(state["global_batch"])
    if delivered % global_batch:
        raise LoaderStateError(
            f"{delivered} positions were delivered: no whole number of global batches of {global_batch}",
            hint=f"resume with global_batch_size={state['global_batch']}, whatever the world size",
            delivered=delivered,
        )
    if epoch < 0 or step < 0:
        raise LoaderStateError(f"epoch {epoch}, step {step}: a position cannot be negative")
    return epoch, delivered // global_batch
