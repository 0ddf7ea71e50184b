"""A trial in its own process, which starts in a folder of its own."""

from pathlib import Path

import pytest

from fleetstep.config import SearchSpec, load, trials_of
from fleetstep.orchestration.search_records import Life, SearchFolder
from fleetstep.orchestration.search_schedule import TrialJob
from fleetstep.orchestration.search_setup import TrialMaker
from scripted_search import ASHA, write_search


def test_relative_paths_lead_from_the_drivers_folder(
    tmp_path: Path, digits_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(digits_path.parent)
    data = Path(digits_path.name)
    file = write_search(tmp_path / "search.yaml", ASHA, tmp_path / "runs", data)
    search = load(SearchSpec, file)
    folder = SearchFolder(tmp_path / "runs" / "searches" / "rates")
    make = TrialMaker(search, folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assignments = trials_of(search)
    assert assignments is not None
    make(TrialJob("0000", Life(0, dict(assignments[0]))))
    assert f"path: {digits_path}" in folder.run("0000", 0).config.read_text()
