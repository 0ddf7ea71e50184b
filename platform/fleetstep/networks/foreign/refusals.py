"""How foreign files are refused: always with one error, short whatever the file holds."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetstep.errors import FleetstepError, ForeignWeightsError

_LISTED, _LONGEST_NAME, _LONGEST_MESSAGE, _MOST_BITS = 8, 200, 2_000, 256


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write thousands of digits.
        return repr(x) if x.bit_length() <= _MOST_BITS else f"<{x.bit_length()} bits>"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxother, _SHORT.maxstring = 2, 200, 80
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = _SHORT.maxset = _LISTED


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """A reader's door: whatever goes wrong behind it becomes a refusal of the file.

    In a damaged or forged file the libraries that read it meet, and raise, almost anything.

    Raises:
        ForeignWeightsError: for every exception that is not an error of ours already.
    """
    try:
        yield
    except ForeignWeightsError as error:
        raise ForeignWeightsError(cut(error.message), error.remedy) from error
    except FleetstepError:
        raise
    except Exception as error:
        raise ForeignWeightsError(
            f"{path.name} cannot be read: {type(error).__name__}: {cut(str(error))}",
            "it is damaged or forged: fetch it again from a source you trust",
        ) from error


def shown(value: object) -> str:
    """A value of a file's as Python writes it, without its middle where it is large or deep."""
    return _SHORT.repr(value)


def listed(names: Iterable[object]) -> str:
    """The first few names, and how many more there are."""
    every = [*names]
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(cut(str(name), _LONGEST_NAME) for name in every[:_LISTED]) + more


def cut(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """A text without what goes beyond `longest` characters."""
    return text if len(text) <= longest else f"{text[:longest]}..."
