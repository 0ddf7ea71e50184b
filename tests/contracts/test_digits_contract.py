from __future__ import annotations

from pathlib import Path

import pytest

from contracts.dataset_contract import DatasetContract


class TestDigits(DatasetContract):
    @pytest.fixture
    def path(self, digits_path: Path) -> Path:
        return digits_path
