"""Every error a user can meet.

A message has four parts: the rule, the value that broke it, the cause where it is known, and the
remedy. Errors cross process boundaries (worker to controller to driver), so each one is rebuilt
from exactly the arguments it was made with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FleetstepError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: the rule and the value that broke it.
        remedy: what the reader can do next; "" where nothing sensible can be said.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self.args)


class ConfigError(FleetstepError):
    """The configuration is wrong. Holds every problem found, not only the first.

    Args:
        problems: one line each: path of the field, value, rule, remedy.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"the configuration has {count} problem{'s' if count != 1 else ''}:"
        super().__init__("\n".join([head, *(f"  - {line}" for line in self.problems)]))
        # What it is rebuilt from in another process.
        self.args = (self.problems,)


class UsageError(FleetstepError):
    """A command was called with arguments that cannot work."""

    exit_code = 2


class DataError(FleetstepError):
    """A dataset, manifest, shard or sample is missing, damaged or not what the manifest says."""


class CheckpointError(FleetstepError):
    """A checkpoint cannot be written, read, or does not belong to this run."""


class ResumeError(CheckpointError):
    """Resuming was asked for and is impossible, or would silently change the experiment."""

    exit_code = 2


class TrainingError(FleetstepError):
    """A training job failed; the message holds the first worker's own error."""


class NonFiniteError(FleetstepError):
    """A loss, a gradient or a sample became NaN or infinite.

    Args:
        message, remedy: see `FleetstepError`.
        image: the first image of the batch that is not finite, where one can be named.
    """

    def __init__(self, message: str, remedy: str = "", image: int | None = None) -> None:
        super().__init__(message, remedy)
        self.image = image
        self.args = (message, remedy, image)


class ExtractorError(FleetstepError):
    """Feature-extractor weights are missing or are not the file they claim to be."""


class SamplingError(FleetstepError):
    """A solver cannot do what was asked, for example reach a number of network calls."""

    exit_code = 2


class ResourceError(FleetstepError):
    """More CPUs, GPUs or memory were asked for than the cluster can ever give."""

    exit_code = 2


class PoolError(FleetstepError):
    """A unit of work raised, or so many actors died that the rest of the work cannot be done."""


class TrackingError(FleetstepError):
    """The experiment tracker cannot be reached or does not hold what was asked for."""


class UnknownRunError(TrackingError):
    """The tracker answers, but does not hold the run that was to go on."""


class ComparisonError(FleetstepError):
    """Two results cannot be compared, because they do not measure the same thing."""

    exit_code = 2


class ForeignWeightsError(FleetstepError):
    """A file of weights that other software wrote is refused: it is damaged, would run code, or
    is not of a network that is known here.
    """

    exit_code = 2
