"""Every test of a method has a feature store of its own."""

from __future__ import annotations

import pytest

from everlearn.features import FeatureStore, using_store


@pytest.fixture(autouse=True)
def _store(tmp_path):
    with using_store(FeatureStore(tmp_path)):
        yield
