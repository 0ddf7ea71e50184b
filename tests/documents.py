"""What a document of docs/ names must be there: tests, presets, pictures and linked files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def named_tests(text: str) -> list[str]:
    """Every test that a document names, as "unit/test_x.py::TestY::test_z"."""
    named = re.findall(r"([\w/]+\.py(?:::\w+)+)", text)
    assert len(named) == text.count(".py::")
    return named


def missing_tests(text: str) -> list[str]:
    """Those that tests/ does not define."""
    missing = []
    for name in named_tests(text):
        file, *parts = name.split("::")
        if not set(parts) <= _defined_in(ROOT / "tests" / file):
            missing.append(name)
    return missing


def named_presets(text: str) -> list[str]:
    """Every preset that a document names; may be patterns."""
    return re.findall(r"(?:`|pipelines/presets/)([\w*/-]+\.yaml)\b", text)


def missing_presets(text: str) -> list[str]:
    """Those that are no file."""
    presets = ROOT / "pipelines" / "presets"
    return [pattern for pattern in named_presets(text) if not [*presets.glob(pattern)]]


def links(text: str) -> list[str]:
    """Files that a document links to or shows."""
    return re.findall(r"\]\(([^)#]+)", text)


def missing_links(text: str) -> list[str]:
    """Those that are not beside the document."""
    return [link for link in links(text) if not (ROOT / "docs" / link).is_file()]


def _defined_in(path: Path) -> set[str]:
    source = path.read_text() if path.is_file() else ""
    return set(re.findall(r"^ *(?:def|class) (\w+)", source, re.MULTILINE))
