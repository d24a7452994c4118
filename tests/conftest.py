"""Which tests belong to the soak."""

import pytest
from tests.environment import cases


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes its counts from the environment, so that no long count is left out of `make soak`."""
    for item in items:
        names = vars(getattr(item, "module", None) or object)
        if names.get("cases") is cases or "SOAK" in names:
            item.add_marker("counted")
