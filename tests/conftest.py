"""Fixtures that tests of several packages share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits packed once: 1,500 to train on in 15 shards, 297 held out. Read only."""
    from fleetstep.data.pack import pack_digits

    out = tmp_path_factory.mktemp("datasets") / "digits"
    pack_digits(out, shard_size=100)
    return out
