"""Fixtures of the store's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ringrift_pipeline.store import Store


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Thousands of real fsyncs would take a minute on a busy disk; test_store_crash.py does them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def here(tmp_path: Path, bucket_url: str) -> Store:
    """A machine's store in front of a bucket."""
    return attached(Store(tmp_path / "here", bucket_url))


@pytest.fixture
def there(tmp_path: Path, bucket_url: str) -> Store:
    """Another machine's, of the same bucket."""
    return attached(Store(tmp_path / "there", bucket_url))


def attached(store: Store) -> Store:
    """The store, after it has found out that the server keeps to conditions."""
    assert store.remote is not None
    return store
