"""Arrow batches inside messages: bare where a schema says all, else with their dictionaries."""

import pyarrow as pa


def batch_to_bytes(batch: pa.RecordBatch) -> bytes:
    """Write a batch: a bare batch message, or a whole IPC stream where a column is dictionary-encoded."""
    if not any(_has_dictionary(field.type) for field in batch.schema):
        return bytes(batch.serialize())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def batch_of_bytes(data: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Read what `batch_to_bytes` wrote.

    Args:
        schema: Of the batch; it travels apart, once.
    """
    if not any(_has_dictionary(field.type) for field in schema):
        return pa.ipc.read_record_batch(pa.py_buffer(data), schema)
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_next_batch()


def _has_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    return any(_has_dictionary(kind.field(at).type) for at in range(kind.num_fields))
