"""A score and its protocol: a number never travels alone. Plain Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_args, get_type_hints

from fleetstep.errors import DataError
from fleetstep.evaluation.spec import HIGHER_IS_BETTER, MetricKind, metric_name


@dataclass(frozen=True)
class Seeds:
    """The sample ids that were scored: `first` ... `first + count - 1` of a namespace."""

    namespace: int
    first: int
    count: int

    def __str__(self) -> str:
        return f"{self.namespace}:{self.first}-{self.first + self.count - 1}"


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """One metric of one cell of a sweep, with all that is needed to measure it again.

    Args:
        metric: key by `metric_name`; any other name for these features is refused.
        kind: which metric.
        value: jackknifed value, free of the bias of few images; a distance may be negative near
            its floor.
        raw: the plain value.
        se: standard error of `value`.
        low, high: ends of the interval of `value` at `confidence`.
        n: generated images that the metric looked at.
        blocks: jackknife blocks.
        pseudo_values: one a block.
        seeds: which samples.
        run: name of the training run.
        checkpoint: SHA-256 of the weights that were sampled.
        images_seen: training progress at the checkpoint.
        ema: the EMA track.
        solver: with its options, and with its schedule if that is not its own.
        schedule: with its options.
        nfe: network calls per image, counted; the mean for an adaptive solver.
        adaptive: whether the solver chose that number itself.
        guidance: classifier-free guidance; "" for none.
        protocol: the named protocol that was asked for; "" for none.
        dtype: of the solver's state; "" in records that do not say.
        texts: SHA-256 of the classes' texts of a CLIP score; "" for other metrics.
        labels: how class labels followed from the seeds.
        extractor, extractor_sha256: the features.
        preprocess: from image to the extractor's input.
        quantisation: from the sampler's numbers to uint8.
        reference, reference_sha256: the real images; digest of their moments.
        reference_n: real images that the metric looked at; 0 where a file does not say.
        versions: software.
        hardware: CPU or GPU type, threads and build of the machines that computed the features.
    """

    metric: str
    kind: MetricKind
    value: float
    raw: float
    se: float
    low: float
    high: float
    confidence: float
    n: int
    blocks: int
    pseudo_values: tuple[float, ...]
    seeds: Seeds
    run: str
    checkpoint: str
    images_seen: int
    ema: str
    solver: str
    schedule: str
    nfe: float
    labels: str
    extractor: str
    extractor_sha256: str
    preprocess: str
    quantisation: str
    reference: str
    reference_sha256: str
    reference_n: int
    versions: Mapping[str, str]
    hardware: Mapping[str, str]
    adaptive: bool = False
    guidance: str = ""
    protocol: str = ""
    dtype: str = ""
    texts: str = ""

    def __post_init__(self) -> None:
        name = metric_name(self.kind, self.extractor, self.extractor_sha256, self.n)
        if self.metric != name:
            raise DataError(
                f"{self.kind} of {self.n:,} images in features of {self.extractor}"
                f"@{self.extractor_sha256[:8]} is called {name}, not {self.metric!r}",
                "make the name with evaluation.spec.metric_name",
            )
        numbers = (self.value, self.raw, self.se, self.low, self.high, *self.pseudo_values)
        if not all(math.isfinite(number) for number in numbers):
            raise DataError(
                f"a score is finite, but {self.metric} of {self.run} is {self.value} "
                f"(plain value {self.raw}, standard error {self.se})"
            )
        if len(self.pseudo_values) != self.blocks or self.seeds.count != self.n:
            raise DataError(
                f"a score of {self.n} images in {self.blocks} blocks has as many seeds and "
                f"pseudo-values, got {self.seeds.count} and {len(self.pseudo_values)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` gives an equal record."""
        return {
            **asdict(self),
            "pseudo_values": list(self.pseudo_values),
            "versions": dict(self.versions),
            "hardware": dict(self.hardware),
        }

    @property
    def higher_is_better(self) -> bool:
        """Which way the metric points."""
        return self.kind in HIGHER_IS_BETTER

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoreRecord:
        """From what `to_dict` gave.

        Raises:
            DataError: a field is missing, unknown or of another type, by name; or the metric's
                name is not that of its kind, features and n.
        """
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if missing := sorted(needed - values.keys()):
            raise DataError(
                f"a score record must hold {', '.join(missing)}", "score the checkpoint again"
            )
        if unknown := sorted(values.keys() - names):
            raise DataError(
                f"a score record does not hold {', '.join(unknown)}",
                "it may be of a newer version of fleetstep",
            )
        return cls(**{name: _checked(name, values[name]) for name in sorted(values)})


def _checked(name: str, value: Any) -> Any:
    """`value` as the field's type; a whole number is also a float."""
    kind = get_type_hints(ScoreRecord)[name]
    try:
        if name == "seeds":
            seeds = Seeds(**value)
            if all(_is_int(number) for number in (seeds.namespace, seeds.first, seeds.count)):
                return seeds
        elif name == "pseudo_values":
            if all(_is_number(number) for number in value):
                return tuple(float(number) for number in value)
        elif name in ("versions", "hardware"):
            if all(isinstance(text, str) for item in value.items() for text in item):
                return dict(value)
        elif (kind is float and _is_number(value)) or (kind is int and _is_int(value)):
            return kind(value)
        elif kind in (str, bool) and isinstance(value, kind):
            return value
        elif name == "kind" and value in get_args(MetricKind):
            return value
    except (TypeError, AttributeError):
        pass
    raise DataError(f"field {name!r} of a score record has a value of the wrong type: {value!r}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
