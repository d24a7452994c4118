from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLUMNAR: _ClassVar[Encoding]
    ARROW: _ClassVar[Encoding]
COLUMNAR: Encoding
ARROW: Encoding

class EntityColumn(_message.Message):
    __slots__ = ("name", "strings", "integers", "doubles", "arrow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    DOUBLES_FIELD_NUMBER: _ClassVar[int]
    ARROW_FIELD_NUMBER: _ClassVar[int]
    name: str
    strings: _containers.RepeatedScalarFieldContainer[str]
    integers: _containers.RepeatedScalarFieldContainer[int]
    doubles: _containers.RepeatedScalarFieldContainer[float]
    arrow: bytes
    def __init__(self, name: _Optional[str] = ..., strings: _Optional[_Iterable[str]] = ..., integers: _Optional[_Iterable[int]] = ..., doubles: _Optional[_Iterable[float]] = ..., arrow: _Optional[bytes] = ...) -> None: ...

class KeyMapping(_message.Message):
    __slots__ = ("alias", "join_key", "column")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    JOIN_KEY_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    alias: str
    join_key: str
    column: str
    def __init__(self, alias: _Optional[str] = ..., join_key: _Optional[str] = ..., column: _Optional[str] = ...) -> None: ...

class GetOnlineFeaturesRequest(_message.Message):
    __slots__ = ("features", "feature_service", "entities", "full_feature_names", "now_ns", "encoding", "schema_id", "request_id", "key_map", "preprocessing")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SERVICE_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    FULL_FEATURE_NAMES_FIELD_NUMBER: _ClassVar[int]
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_MAP_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedScalarFieldContainer[str]
    feature_service: str
    entities: _containers.RepeatedCompositeFieldContainer[EntityColumn]
    full_feature_names: bool
    now_ns: int
    encoding: Encoding
    schema_id: int
    request_id: int
    key_map: _containers.RepeatedCompositeFieldContainer[KeyMapping]
    preprocessing: str
    def __init__(self, features: _Optional[_Iterable[str]] = ..., feature_service: _Optional[str] = ..., entities: _Optional[_Iterable[_Union[EntityColumn, _Mapping]]] = ..., full_feature_names: _Optional[bool] = ..., now_ns: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., schema_id: _Optional[int] = ..., request_id: _Optional[int] = ..., key_map: _Optional[_Iterable[_Union[KeyMapping, _Mapping]]] = ..., preprocessing: _Optional[str] = ...) -> None: ...

class Schema(_message.Message):
    __slots__ = ("id", "names", "views", "view_names", "arrow", "complete")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    VIEW_NAMES_FIELD_NUMBER: _ClassVar[int]
    ARROW_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    id: int
    names: _containers.RepeatedScalarFieldContainer[str]
    views: _containers.RepeatedScalarFieldContainer[int]
    view_names: _containers.RepeatedScalarFieldContainer[str]
    arrow: bytes
    complete: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[int] = ..., names: _Optional[_Iterable[str]] = ..., views: _Optional[_Iterable[int]] = ..., view_names: _Optional[_Iterable[str]] = ..., arrow: _Optional[bytes] = ..., complete: _Optional[_Iterable[int]] = ...) -> None: ...

class GetOnlineFeaturesResponse(_message.Message):
    __slots__ = ("schema_id", "schema", "rows", "blocks", "statuses", "event_ns", "arrow", "now_ns", "request_id")
    SCHEMA_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    EVENT_NS_FIELD_NUMBER: _ClassVar[int]
    ARROW_FIELD_NUMBER: _ClassVar[int]
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    schema_id: int
    schema: Schema
    rows: int
    blocks: _containers.RepeatedScalarFieldContainer[bytes]
    statuses: bytes
    event_ns: _containers.RepeatedScalarFieldContainer[int]
    arrow: bytes
    now_ns: int
    request_id: int
    def __init__(self, schema_id: _Optional[int] = ..., schema: _Optional[_Union[Schema, _Mapping]] = ..., rows: _Optional[int] = ..., blocks: _Optional[_Iterable[bytes]] = ..., statuses: _Optional[bytes] = ..., event_ns: _Optional[_Iterable[int]] = ..., arrow: _Optional[bytes] = ..., now_ns: _Optional[int] = ..., request_id: _Optional[int] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("source", "rows", "producer", "sequence")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    source: str
    rows: bytes
    producer: str
    sequence: int
    def __init__(self, source: _Optional[str] = ..., rows: _Optional[bytes] = ..., producer: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("rows", "dropped", "applied", "views")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    dropped: int
    applied: bool
    views: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rows: _Optional[int] = ..., dropped: _Optional[int] = ..., applied: _Optional[bool] = ..., views: _Optional[_Iterable[str]] = ...) -> None: ...

class ListFeaturesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FeatureInfo(_message.Message):
    __slots__ = ("view", "version", "name", "type", "join_keys")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    JOIN_KEYS_FIELD_NUMBER: _ClassVar[int]
    view: str
    version: int
    name: str
    type: str
    join_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, view: _Optional[str] = ..., version: _Optional[int] = ..., name: _Optional[str] = ..., type: _Optional[str] = ..., join_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class ServiceInfo(_message.Message):
    __slots__ = ("name", "features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class ListFeaturesResponse(_message.Message):
    __slots__ = ("catalog_version", "features", "services")
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    catalog_version: int
    features: _containers.RepeatedCompositeFieldContainer[FeatureInfo]
    services: _containers.RepeatedCompositeFieldContainer[ServiceInfo]
    def __init__(self, catalog_version: _Optional[int] = ..., features: _Optional[_Iterable[_Union[FeatureInfo, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[ServiceInfo, _Mapping]]] = ...) -> None: ...
