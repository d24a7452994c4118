"""Compiles the kernels of streams in advance, so that no first push pays for it."""

import numpy as np
import pyarrow as pa

from featurestore.temporal.streaming import StreamingJoin

_ROWS = 600  # more keys than the first table of them takes


def warm_streams() -> None:
    """Run every kernel of streams once on a few rows, in each form it is called with."""
    places = np.arange(_ROWS)
    text = pa.array([f"the name of key {place}" for place in range(_ROWS)])
    columns = [
        [text],
        [text.cast(pa.large_string())],
        [text.dictionary_encode()],
        [pa.array(places), pa.array(places, pa.int32())],
    ]
    values = {"t": places, "v": pa.array(places, mask=places % 7 == 0)}
    for keys in columns:
        names = [f"k{place}" for place in range(len(keys))]
        table = pa.table(values | dict(zip(names, keys, strict=True)))
        stream = StreamingJoin("t", names, prefix="r_")
        # In order first, then backwards: rows are merged, searched and thinned out.
        for turn, times in enumerate((places, places[::-1] + _ROWS, places[::-1] + 2 * _ROWS)):
            stream.push_right(table.set_column(0, "t", pa.array(times)))
            stream.push_left(table.set_column(0, "t", pa.array(times)))
            stream.advance_watermark((turn + 1) * _ROWS)
            stream.emit()
        stream.state_dict()
        stream.flush()
