"""Bulk reads over Arrow Flight, with functions that stand in for the store's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from tests.serve.test_access import token

from featurestore.errors import AccessDeniedError, DefinitionError, NotFoundError, SchemaError, ServerError
from featurestore.serve.config import ServerConfig
from featurestore.serve.flight_client import BulkClient
from featurestore.serve.flight_server import BulkReads, FlightFront

ALL, SOME = "all", "some"
DATA = pa.table({"symbol": ["A", "B", "C"] * 1000, "x": range(3000)})


def scan(name: str, version: int | None, columns: Sequence[str] | None) -> pa.RecordBatchReader:
    if name != "trades":
        raise NotFoundError(f"no dataset {name!r}", hint="did you mean 'trades'?")
    found = DATA.slice(0, 300) if version == 1 else DATA
    return (found if columns is None else found.select(columns)).to_reader(max_chunksize=500)


def historical(spine: pa.Table, features: Sequence[str], options: Mapping[str, Any]) -> pa.Table:
    if "broken" in features:
        raise SchemaError("the spine has no column 'symbol'", hint="send it")
    return spine.append_column(
        features[0].replace(":", "__"), pa.array([spine.num_rows] * spine.num_rows)
    ).append_column("full", pa.array([bool(options.get("full_feature_names"))] * spine.num_rows))


def sql(text: str) -> pa.RecordBatchReader:
    if "select" not in text:
        raise DefinitionError("only select")
    return DATA.slice(0, 2).to_reader()


READS = BulkReads(historical=historical, scan=scan, sql=sql, names=lambda: ["trades"])


@pytest.fixture(scope="module")
def front() -> Iterator[FlightFront]:
    with FlightFront(READS, ServerConfig(root=""), chunk_rows=1000) as front:
        yield front


@pytest.fixture
def client(front: FlightFront) -> Iterator[BulkClient]:
    with BulkClient(front.address) as client:
        yield client


def table(reader: pa.RecordBatchReader) -> pa.Table:
    return reader.read_all()


def test_a_dataset_is_streamed_whole_by_version_and_by_column(client: BulkClient) -> None:
    assert client.datasets() == ["trades"]
    assert table(client.dataset("trades")).equals(DATA)
    assert table(client.dataset("trades", version=1)).num_rows == 300
    assert table(client.dataset("trades", columns=["x"])).column_names == ["x"]
    assert len(list(client.dataset("trades"))) == 6
    assert table(client.sql("select 1")).num_rows == 2


def test_a_spine_comes_back_with_features_row_for_row_in_chunks(client: BulkClient) -> None:
    batches = DATA.to_reader(max_chunksize=400)
    found = table(client.historical(batches, ["quote:mid"], full_feature_names=True))
    assert found.select(["symbol", "x"]).equals(DATA)
    assert sorted(set(found["quote__mid"].to_pylist())) == [600, 1200]
    assert set(found["full"].to_pylist()) == {True}
    empty = table(client.historical(DATA.slice(0, 0), ["quote:mid"]))
    assert empty.num_rows == 0
    assert empty.column_names == ["symbol", "x", "quote__mid", "full"]


def test_errors_come_back_as_what_they_are(client: BulkClient) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'trades'"):
        table(client.dataset("tardes"))
    with pytest.raises(DefinitionError, match="only select"):
        table(client.sql("drop"))
    with pytest.raises(SchemaError, match="send it"):
        table(client.historical(DATA, ["broken"]))
    assert table(client.dataset("trades")).num_rows == 3000


def test_what_a_server_does_not_offer_is_not_found() -> None:
    front = FlightFront(BulkReads(), ServerConfig(root=""))
    with front, BulkClient(front.address) as client, pytest.raises(NotFoundError, match="offers no SQL"):
        table(client.sql("select 1"))


def test_tokens_guard_bulk_reads_too() -> None:
    tokens = (token(ALL, "read"), token(SOME, "read", views=("trades",)), token("pusher", "push"))
    with FlightFront(READS, ServerConfig(root="", tokens=tokens)) as front:
        with BulkClient(front.address, token=ALL) as client:
            assert table(client.sql("select 1")).num_rows == 2
        with BulkClient(front.address, token=SOME) as client:
            assert table(client.dataset("trades")).num_rows == 3000
            with pytest.raises(AccessDeniedError):
                client.sql("select 1")
            with pytest.raises(AccessDeniedError):
                client.historical(DATA, ["flow:n"])
        for name in (None, "nobody", "pusher"):
            with BulkClient(front.address, token=name) as client, pytest.raises(AccessDeniedError):
                table(client.dataset("trades"))


def test_a_port_in_use_or_open_to_all_is_refused(front: FlightFront) -> None:
    with pytest.raises(ServerError, match="cannot listen"):
        FlightFront(READS, ServerConfig(root="", port=int(front.address.rpartition(":")[2])))
    with pytest.raises(DefinitionError, match="without TLS"):
        FlightFront(READS, ServerConfig(root="", host="0.0.0.0"))  # noqa: S104 -- it is refused


@pytest.mark.parametrize(
    ("ticket", "said"),
    [
        (b"garbage", "DefinitionError: not JSON"),
        (b"[]", "DefinitionError: not a JSON object; send a JSON object"),
        (b'{"dataset": "quotes"}', "NotFoundError: no dataset 'quotes'; did you mean 'trades'?"),
    ],
)
def test_a_foreign_client_is_told_what_is_wrong_and_not_how_the_server_found_out(
    front: FlightFront, ticket: bytes, said: str
) -> None:
    with fl.connect(f"grpc://{front.address}") as foreign:
        with pytest.raises(pa.ArrowException) as refused:
            foreign.do_get(fl.Ticket(ticket)).read_all()
        assert list(foreign.list_actions()) == []
    assert said in str(refused.value)
    assert "direct cause" not in str(refused.value)
    assert "During handling" not in str(refused.value)
