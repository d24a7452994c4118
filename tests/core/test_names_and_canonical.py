"""Names are safe everywhere, JSON has one form, errors travel, settings are checked."""

import pickle
from typing import Any

import pytest

from featurestore import errors
from featurestore.core.canonical import canonical_json, digest_json
from featurestore.core.config import StoreConfig, bytes_of, store_config
from featurestore.core.names import check_feature_name, check_name, near
from featurestore.errors import DefinitionError, FeatureStoreError


@pytest.mark.parametrize(
    "name", ["", "1a", "a b", "../etc", "a/b", "naïve", "qu\u043ete", "a" * 64, "a__b", "a\0", "_a", None, 3]
)
def test_a_name_that_could_leave_its_folder_or_look_like_another_is_refused(name: object) -> None:
    with pytest.raises(DefinitionError):
        check_name(name, "view")


@pytest.mark.parametrize("name", ["", "a\nb", "a:b", "a@1", "x=y", "a/b", 'a"b', "a" * 129, None])
def test_a_column_name_that_breaks_a_reference_or_a_path_is_refused(name: object) -> None:
    with pytest.raises(DefinitionError):
        check_feature_name(name, "feature")


def test_ordinary_names_pass() -> None:
    assert check_name("quote_2", "view") == "quote_2"
    assert check_feature_name("Größe (cm)", "feature") == "Größe (cm)"


def test_a_hint_names_what_was_probably_meant() -> None:
    assert near("qoute", ["quote", "flow"]) == "did you mean 'quote'?"
    assert near("x", []) == "there is none yet"


def test_canonical_json_has_one_form_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    with pytest.raises(DefinitionError):
        canonical_json(float("nan"))


ALL_ERRORS = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, FeatureStoreError)]


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_crosses_a_process_whole(kind: type[FeatureStoreError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", hint="do", column="c")))
    assert type(error) is kind
    assert (error.message, error.hint, error.context) == ("what", "do", {"column": "c"})
    assert str(error) == "what\n  hint: do"


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 10**9), ("512MiB", 512 * 2**20), (1024, 1024), ("1.5k", 1500)]
)
def test_sizes_are_read_in_either_thousand(text: str | int, size: int) -> None:
    assert bytes_of(text) == size


def test_settings_are_checked_by_name() -> None:
    config = store_config({"project": "ticks", "memory": "2GB", "online": {"history": "1h"}})
    assert (config.memory_bytes, config.online.history_ns) == (2 * 10**9, 3_600 * 10**9)
    assert store_config({}) == StoreConfig()
    assert store_config({"online": None, "cache": None, "storage_options": None}) == StoreConfig()
    assert store_config({"memory_bytes": 5, "cache": {"size_bytes": "2kB"}}).cache.size_bytes == 2000


@pytest.mark.parametrize(
    "raw",
    [
        "feature_store.yaml",
        {"bucket": 3},
        {5: 1},
        {"buckets": 0},
        {"buckets": 10_000},
        {"buckets": 2.0},
        {"threads": None},
        {"executor": ["threads"]},
        {"memory": "much"},
        {"memory_bytes": -1},
        {"memory": True},
        {"lease": "0s"},
        {"lease_ns": None},
        {"storage_options": 5},
        {"online": "redis"},
        {"online": {"store": "sqlite"}},
        {"online": {"path": ""}},
        {"online": {"url": 5}},
        {"online": {"history_ns": "-1h"}},
        {"cache": {"path": 5}},
        {"cache": {"size": 0}},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_right_is_refused_with_a_hint(raw: Any) -> None:
    with pytest.raises(DefinitionError) as refused:
        store_config(raw)
    assert refused.value.hint
