"""Where a verb writes, checked before its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetstep.errors import UsageError
from fleetstep.orchestration.output_paths import output_file, output_folder


def test_folders_are_made_with_their_parents_and_kept(tmp_path: Path):
    output_folder("--out", tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "kept").write_text("it")
    output_folder("--out", tmp_path / "a" / "b")
    output_file("--out", tmp_path / "c" / "grid.png")
    output_file("--out", tmp_path / "a" / "b" / "kept")
    assert (tmp_path / "a" / "b" / "kept").read_text() == "it"
    assert (tmp_path / "c").is_dir()
    assert not (tmp_path / "c" / "grid.png").exists()


def test_what_is_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(UsageError, match=f"--out: .*{tmp_path / 'file'} is a file"):
            output_folder("--out", folder)
    with pytest.raises(UsageError, match=f"{tmp_path / 'file'} is a file"):
        output_file("--out", tmp_path / "file" / "grid.png")
    with pytest.raises(UsageError, match=f"--npz: {tmp_path} is a folder"):
        output_file("--npz", tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match="cannot be written to"):
        output_folder("--out", tmp_path)


def test_the_reason_of_the_system_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(UsageError, match="No space left on device"):
        output_folder("--out", tmp_path / "a")
