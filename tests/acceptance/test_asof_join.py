"""`fs.asof_join` against the rules of the design page, written out as a loop."""

from itertools import pairwise
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.acceptance.plain import NEVER, Row, choose

import featurestore as fs

EDGE = st.sampled_from([-(2**63) + 1, 2**63 - 1, -1, 0, 1, 2, 3, 5, 8])
TIMES = st.one_of(st.integers(-4, 12), EDGE, st.none())
SMALL = st.one_of(st.integers(-4, 12), st.none())
KEYS = st.sampled_from([("a", 1), ("a", 12), ("b", 1), ("", 2), (None, 1), ("a", None), ("a1", 2)])


@st.composite
def chunked(draw: st.DrawFn, values: list[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """The values in chunks of any size, some of them slices of a larger array."""
    cuts = sorted(draw(st.lists(st.integers(0, len(values)), max_size=3)))
    edges = [0, *cuts, len(values)]
    pieces = []
    for a, b in pairwise(edges):
        part = values[a:b]
        if draw(st.booleans()):
            pad = draw(st.integers(1, 9))
            filler = part[:1] * pad if part else [None] * pad
            pieces.append(pa.array(filler + part + filler, kind).slice(pad, len(part)))
        else:
            pieces.append(pa.array(part, kind))
    return pa.chunked_array(pieces, kind)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_join_equals_the_rules(data: st.DataObject) -> None:
    draw = data.draw
    times = draw(st.sampled_from([TIMES, SMALL]))
    left = draw(st.lists(st.tuples(KEYS, times), max_size=30))
    right = draw(
        st.lists(
            st.tuples(
                KEYS,
                times,
                st.one_of(SMALL, EDGE.filter(lambda t: t < 2**63 - 1)),  # the last ns means never
            ),
            max_size=30,
        )
    )
    if draw(st.booleans()):
        left.sort(key=lambda r: (r[1] is None, r[1] or 0))
    if draw(st.booleans()):
        right.sort(key=lambda r: (r[1] is None, r[1] or 0))
    keys = draw(st.sampled_from([(), (0,), (1,), (0, 1), (1, 0)]))
    created = draw(st.booleans())
    direction = draw(st.sampled_from(["backward", "forward", "nearest"]))
    tolerance = draw(st.sampled_from([None, 0, 1, 3, 7, 2**63 - 1]))
    exclusive = draw(st.booleans())
    strings = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
    strings += [pa.dictionary(pa.uint32(), pa.large_string())]
    ints = [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
    ints += [pa.dictionary(pa.int16(), pa.int64())]

    def side(rows: list[Any], prefix: str) -> pa.Table:
        columns = {
            f"{prefix}t": draw(chunked([r[1] for r in rows], pa.int64())),
            f"{prefix}k0": draw(chunked([r[0][0] for r in rows], draw(st.sampled_from(strings)))),
            f"{prefix}k1": draw(chunked([r[0][1] for r in rows], draw(st.sampled_from(ints)))),
        }
        return pa.table(columns)

    a = side(left, "")
    b = side(right, "r_").append_column("c", draw(chunked([r[2] for r in right], pa.int64())))
    b = b.append_column("v", draw(chunked(list(range(len(right))), pa.int32())))
    out = fs.asof_join(
        a,
        b,
        on="t",
        right_on="r_t",
        by=[f"k{k}" for k in keys] or None,
        right_by=[f"r_k{k}" for k in keys] or None,
        direction=direction,
        tolerance=tolerance,
        boundary="exclusive" if exclusive else "inclusive",
        created_on="c" if created else None,
        columns=["v"],
        matched_timestamp="m",
    )
    rows = [
        Row(
            tuple(key[k] for k in keys),
            event,
            (NEVER if known is None else known) if created else None,
        )
        for key, event, known in right
    ]
    wanted = [
        choose(
            tuple(key[k] for k in keys),
            at,
            rows,
            direction=direction,
            tolerance=tolerance,
            exclusive=exclusive,
        )
        for key, at in left
    ]
    assert out.column("v").to_pylist() == wanted
    assert out.column("m").to_pylist() == [None if w is None else rows[w].event for w in wanted]
    assert out.select(a.column_names).equals(a)
    assert out.column_names == [*a.column_names, "v", "m"]
    assert out.schema.field("v").type == pa.int32()
