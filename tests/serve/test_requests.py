"""Requests are read alike, whether their features came before or not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import DefinitionError
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.wire import RequestReader

LONG = [f"some_view:feature_{at}" for at in range(9)]
lists = st.sampled_from([[], LONG[:1], LONG[:4], LONG[:5], LONG, [*LONG[:4], "x" * 70], ["y" * 70]])
parts = st.builds(
    lambda features, service, keys, number: pb.GetOnlineFeaturesRequest(
        features=features,
        feature_service=service,
        entities=[pb.EntityColumn(name="symbol", strings=keys)] if keys else [],
        schema_id=number,
        full_feature_names=bool(number),
    ).SerializeToString(),
    lists,
    st.sampled_from(["", "", "", "model"]),
    st.lists(st.sampled_from(["A", "B"]), max_size=2),
    st.sampled_from([0, 0, 7]),
)
# Two messages joined are one: lists go on, and fields come in an order that no writer has.
messages = st.lists(parts, min_size=1, max_size=2).map(b"".join)
cut = st.one_of(st.none(), st.integers(0, 250))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(messages, cut), min_size=1, max_size=12))
def test_a_request_is_read_as_if_it_came_alone(received: list[tuple[bytes, int | None]]) -> None:
    reader = RequestReader()
    for whole, end in received:
        data = whole[:end]
        found = read(reader, data)
        assert found == read(RequestReader(), data)
        if found is not None:
            request = pb.GetOnlineFeaturesRequest.FromString(data)
            assert found[0] == (request.feature_service or tuple(request.features))
            request.ClearField("features")
            request.ClearField("feature_service")
            assert found[1] == request


def read(
    reader: RequestReader, data: bytes
) -> tuple[str | tuple[str, ...], pb.GetOnlineFeaturesRequest] | None:
    """Return what was asked and the rest; `None` where it is refused."""
    try:
        request, features = reader.read(data)
    except DefinitionError:
        return None
    request.ClearField("features")
    request.ClearField("feature_service")
    return features, request


def test_a_list_that_goes_on_behind_its_entities_is_read_whole() -> None:
    reader = RequestReader()
    head = pb.GetOnlineFeaturesRequest(features=LONG, schema_id=3).SerializeToString()
    assert reader.read(head)[1] == tuple(LONG)
    more = head + pb.GetOnlineFeaturesRequest(features=["flow"]).SerializeToString()
    assert reader.read(more)[1] == (*LONG, "flow")
    with pytest.raises(DefinitionError, match="either"):
        reader.read(head + pb.GetOnlineFeaturesRequest(feature_service="model").SerializeToString())
