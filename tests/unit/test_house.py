"""Rules of the house that no linter knows."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "deepspeed", "webdataset", "cleanfid", "sklearn", "matplotlib")


def imported_by(code: str) -> set[str]:
    """Top-level modules loaded after running `code` in a fresh interpreter."""
    show = "import sys; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    script = f"{code}\n{show}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_platform_is_not_a_package():
    # A regular package `platform` would shadow the standard library's module in every process
    # started here.
    assert not (ROOT / "platform" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "code", ["import fleetstep", "import fleetstep.config", "import fleetstep.cli"]
)
def test_a_config_and_the_command_line_need_no_heavy_library(code):
    assert not imported_by(code) & set(HEAVY)


def test_help_is_printed_without_heavy_libraries():
    code = (
        "import sys; sys.argv = ['fleetstep', 'train', '--help']\n"
        "from fleetstep.cli import app\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): app()"
    )
    assert not imported_by(code) & set(HEAVY)


def test_no_file_has_a_name_that_says_nothing():
    empty_names = {"utils", "util", "helpers", "common", "base", "manager", "core", "misc"}
    files = [
        path
        for folder in ("platform", "pipelines", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert not [path for path in files if path.stem in empty_names]
