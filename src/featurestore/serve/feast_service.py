"""The methods of Feast's gRPC servers, and the JSON of its HTTP server, over one OnlineService."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError, Message

from featurestore.core.python_values import json_value
from featurestore.core.time import INT64_MIN, format_instant
from featurestore.errors import DefinitionError, SchemaError
from featurestore.serve.access import Caller
from featurestore.serve.feast_rows import check_target, push_columns
from featurestore.serve.feast_wire import encode_feast, feast_column, python_value
from featurestore.serve.proto import feast_compat_pb2 as pb
from featurestore.serve.request import Column, Readers, read_entity_rows
from featurestore.serve.response import STATUS, OnlineResponse
from featurestore.serve.service import OnlineService

M = TypeVar("M", bound=Message)
Method = Callable[[bytes, Caller], bytes]
_VERSION = b"\x0a\x050.1.0"
_DONE = b"\x08\x01"


class FeastService:
    """What Feast's clients call."""

    def __init__(self, service: OnlineService) -> None:
        """Serve over a service."""
        self._service = service

    def methods(self) -> Mapping[str, Mapping[str, tuple[Method, bool]]]:
        """Return the methods by service path and name, and whether each waits for a commit."""
        return {
            "feast.serving.ServingService": {
                "GetOnlineFeatures": (self.get_online_features, False),
                "GetFeastServingInfo": (_serving_info, False),
            },
            "GrpcFeatureServer": {
                "GetOnlineFeatures": (self.get_online_features, False),
                "Push": (self.push, True),
                "WriteToOnlineStore": (self.write_to_online_store, True),
            },
        }

    def get_online_features(self, data: bytes, caller: Caller) -> bytes:
        """Answer a Feast GetOnlineFeaturesRequest."""
        request = _parsed(pb.GetOnlineFeaturesRequest, data)
        entities = {name: feast_column(values.val) for name, values in request.entities.items()}
        context = {name: feast_column(values.val) for name, values in request.request_context.items()}
        features = request.feature_service or tuple(request.features.val)
        response = self._read(
            features, entities, context, full_names=request.full_feature_names, caller=caller
        )
        with self._service.tracing.stage("encode"):
            return encode_feast(response, list(entities))

    def push(self, data: bytes, caller: Caller) -> bytes:
        """Apply a Feast PushRequest: one row."""
        request = _parsed(pb.PushRequest, data)
        check_target(request.to)
        columns = _one_row(request.features, request.typed_features)
        push_columns(self._service.backend, request.stream_feature_view, columns, caller)
        return _DONE

    def write_to_online_store(self, data: bytes, caller: Caller) -> bytes:
        """Apply a Feast WriteToOnlineStoreRequest: one row."""
        request = _parsed(pb.WriteToOnlineStoreRequest, data)
        columns = _one_row(request.features, request.typed_features)
        push_columns(self._service.backend, request.feature_view_name, columns, caller)
        return _DONE

    def get_json(self, body: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """Answer the body of `POST /get-online-features`.

        Raises:
            DefinitionError: it names no features.
        """
        entities = _columns(body.get("entities"), "entities")
        context = _columns(body.get("request_context") or {}, "request_context")
        features = body.get("feature_service") or body.get("features")
        if not isinstance(features, (str, list)) or not all(isinstance(f, str) for f in features):
            raise DefinitionError('give "features": ["view:feature"] or "feature_service": "name"')
        response = self._read(
            features if isinstance(features, str) else tuple(features),
            entities,
            context,
            full_names=bool(body.get("full_feature_names")),
            caller=caller,
        )
        with self._service.tracing.stage("encode"):
            return json_answer(response, list(entities))

    def push_json(self, body: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """Apply the body of `POST /push` or `POST /write-to-online-store`.

        Raises:
            DefinitionError: it names no target.
        """
        check_target(str(body.get("to") or ""))
        target = body.get("push_source_name") or body.get("feature_view_name")
        if not isinstance(target, str):
            raise DefinitionError('give "push_source_name" or "feature_view_name"')
        result = push_columns(self._service.backend, target, _columns(body.get("df"), "df"), caller)
        return {"rows": result.rows, "dropped": result.dropped}

    def _read(
        self,
        features: str | Sequence[str],
        entities: Mapping[str, Column],
        context: Mapping[str, Column],
        *,
        full_names: bool,
        caller: Caller,
    ) -> OnlineResponse:
        if not features:
            raise DefinitionError("give features or a feature service")
        service = self._service
        with service.tracing.stage("decode"):
            readers = read_entity_rows({**entities, **context})
            plan = service.backend.plan(
                features if isinstance(features, str) else tuple(features),
                tuple(readers.columns),
                full_feature_names=full_names,
            )
            service.check_read(plan, readers.rows, caller)
        response = service.backend.read(plan, Readers(readers.columns, readers.rows), None)
        service.note(response, features, full_feature_names=full_names)
        return response


def _serving_info(data: bytes, caller: Caller) -> bytes:
    del data, caller
    return _VERSION


def json_answer(response: OnlineResponse, entities: Sequence[str]) -> dict[str, Any]:
    """Write an answer as the JSON of Feast's HTTP server.

    Times are RFC 3339; bytes are base64; NaN and infinities, which JSON has not, are null with status
    PRESENT.
    """
    rows = response.num_rows
    values = response.to_dict()
    never = "1970-01-01T00:00:00Z"
    results = [
        {"values": values[name], "statuses": ["PRESENT"] * rows, "event_timestamps": [never] * rows}
        for name in entities
    ]
    codes = response.status_codes()
    events = response.event_ns()
    texts: dict[str, list[str]] = {}
    for at, column in enumerate(response.plan.join.columns):
        view = response.plan.origins[at][0]
        if view not in texts:
            texts[view] = [never if t == INT64_MIN else format_instant(t) for t in events[at].tolist()]
        results.append(
            {
                "values": _json_values(values[column.name], column.type),
                "statuses": [STATUS[code] for code in codes[at].tolist()],
                "event_timestamps": texts[view],
            }
        )
    return {"metadata": {"feature_names": [*entities, *response.names]}, "results": results}


def _json_values(values: list[Any], kind: pa.DataType) -> list[Any]:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind):
        return values
    if pa.types.is_floating(kind) and np.isfinite([0.0 if v is None else v for v in values]).all():
        return values
    return [json_value(v) for v in values]


def _columns(found: Any, what: str) -> dict[str, list[Any]]:
    if not isinstance(found, dict) or not all(isinstance(v, list) for v in found.values()):
        raise SchemaError(f'"{what}" is not an object of lists', hint=f'send "{what}": {{"column": [...]}}')
    return found


def _one_row(texts: Mapping[str, str], typed: Mapping[str, pb.Value]) -> dict[str, list[Any]]:
    if texts and typed:
        raise DefinitionError("give features or typed_features, not both")
    if typed:
        return {name: [python_value(value)] for name, value in typed.items()}
    return {name: [text] for name, text in texts.items()}


def _parsed(kind: type[M], data: bytes) -> M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise DefinitionError(
            f"the request is not a Feast {kind.DESCRIPTOR.name}", hint=str(error)
        ) from error
    return message
