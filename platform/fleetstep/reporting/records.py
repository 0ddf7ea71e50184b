"""What a comparison reads: plain, frozen records which orchestration fills from the tracker.

Nothing here knows the tracker, and nothing in this package reads anything else, so a report can be
rebuilt from any source that fills these records and is tested without one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fleetstep.errors import ComparisonError

CONFIDENCE = 0.95
"""Probability with which the intervals of all scores and differences cover."""

HIGHER_IS_BETTER = frozenset({"is", "precision", "recall", "density", "coverage", "clip_score"})
"""Kinds of metric of which more is better; of distances less is."""

_USUAL_DTYPE = "float64"

HELD_OUT_LOSS = "held_out/loss"
"""Metric name: denoising error of the averaged weights on fixed held-out images and noise, EDM-
weighted.
"""

HELD_OUT_BIN = "held_out/bin"
"""Metric-name prefix of the same error in each bin of the noise level, bin 0 = least noise."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run over its training.

    Args:
        images_seen: x-axis, strictly increasing.
        values: the metric at each; may hold NaN where a measurement failed.
        wall_s: seconds since the run started at each.

    Raises:
        ValueError: the three differ in length, or `images_seen` does not increase.
    """

    images_seen: tuple[int, ...]
    values: tuple[float, ...]
    wall_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.images_seen) == len(self.values) == len(self.wall_s):
            raise ValueError(
                "`images_seen`, `values` and `wall_s` of a curve must have one length, but got "
                f"{len(self.images_seen)}, {len(self.values)} and {len(self.wall_s)}"
            )
        if any(b <= a for a, b in zip(self.images_seen, self.images_seen[1:], strict=False)):
            raise ValueError(
                "`images_seen` of a curve must increase; build it with Curve.of(points)"
            )

    def __len__(self) -> int:
        return len(self.images_seen)

    @classmethod
    def of(cls, points: Iterable[tuple[int, float, float]]) -> Curve:
        """From (images seen, value, wall seconds) in any order; of two at one place the later in
        time stays.
        """
        latest: dict[int, tuple[float, float]] = {}
        for images, value, wall in sorted(points, key=lambda point: point[2]):
            latest[images] = (value, wall)
        images_seen = tuple(sorted(latest))
        return cls(
            images_seen,
            tuple(latest[images][0] for images in images_seen),
            tuple(latest[images][1] for images in images_seen),
        )


@dataclass(frozen=True, order=True)
class Cell:
    """Where in a sweep a score stands: two scores of one cell used the same latents in the same
    way.

    Args:
        nfe: network calls per image; 0 where the solver chooses them itself, so that two runs meet
            in one cell however many calls each took.
        dtype: of the solver's state; "" where a record does not say.
    """

    solver: str
    schedule: str
    nfe: float
    labels: str = ""
    ema: str = ""
    guidance: str = ""
    dtype: str = ""

    @property
    def calls(self) -> str:
        """The network calls for people: "19" or "adaptive"."""
        return f"{self.nfe:g}" if self.nfe else "adaptive"

    @property
    def title(self) -> str:
        """For people: "heun, NFE 19", "heun, NFE 38, cfg 1.5"."""
        return ", ".join(
            part
            for part in (self.solver, f"NFE {self.calls}", self.guidance, self._unusual_dtype)
            if part
        )

    @property
    def place(self) -> str:
        """The same without words, for rows of a figure: "heun 38 cfg 1.5"."""
        parts = (self.solver, self.calls, self.guidance, self._unusual_dtype)
        return " ".join(part for part in parts if part)

    @property
    def _unusual_dtype(self) -> str:
        return "" if self.dtype == _USUAL_DTYPE else self.dtype


@dataclass(frozen=True, order=True)
class Protocol:
    """How a score was measured. Scores of two protocols are never ranked against each other.

    Args:
        metric: its full name, which holds n and the extractor.
        kind: fd, fd_z, kid, is, precision...
        name: of the published protocol that was asked for: clean, edm, adm; "" for none.
    """

    metric: str
    kind: str
    name: str
    n: int
    blocks: int
    seeds: str
    extractor_sha256: str
    reference_sha256: str
    preprocess: str
    quantisation: str
    texts: str = ""

    @property
    def higher_is_better(self) -> bool:
        """Which way the metric points."""
        return self.kind in HIGHER_IS_BETTER

    @property
    def precedence(self) -> int:
        """Place among metrics of one sweep: FID, Fréchet distances, standardised ones, others."""
        if self.metric.startswith("fid") and self.kind == "fd":
            return 0
        order = ("fd", "fd_z", "fd_inf", "kid")
        return 1 + (order.index(self.kind) if self.kind in order else len(order))

    @property
    def of_samples(self) -> Protocol:
        """What all metrics of the same images in the same features share."""
        return replace(self, metric="", kind="", texts="")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One cell of a sweep, with everything needed to decide what it may be compared with.

    Args:
        metric: its full name, which holds n and the extractor.
        kind: which metric; decides whether more or less of it is better.
        value: jackknife (bias-free) value; a distance may be negative near its floor.
        raw: the plain value of all `n` samples; of a distance, biased upwards.
        se: standard error of `value`; sampling of latents only.
        low: lower end of the 95 % interval.
        high: upper end.
        pseudo_values: one per block; their mean is `value`.
        nfe: network calls per image, counted by the denoiser; the mean for an adaptive solver.
        adaptive: whether the solver chose that number itself.
        guidance: classifier-free guidance; "" for none.
        protocol_name: the published protocol that was asked for; "" for none.
        dtype: of the solver's state; "" where a record does not say.
        texts: SHA-256 of the classes' texts of a CLIP score; "" for other metrics.
        versions: software name -> version.
        hardware: what the score was computed on: fact -> text.
    """

    metric: str
    kind: str
    value: float
    raw: float
    se: float
    low: float
    high: float
    n: int
    blocks: int
    pseudo_values: tuple[float, ...]
    solver: str
    schedule: str
    nfe: float
    checkpoint: str
    run: str
    images_seen: int
    extractor_sha256: str
    reference_sha256: str
    labels: str
    ema: str
    seeds: str
    preprocess: str
    quantisation: str
    guidance: str
    protocol_name: str
    extractor: str = ""
    reference: str = ""
    reference_n: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    adaptive: bool = False
    dtype: str = ""
    texts: str = ""

    @property
    def cell(self) -> Cell:
        """Solver, schedule, NFE, labels rule, EMA track, guidance and dtype."""
        return Cell(
            self.solver,
            self.schedule,
            0 if self.adaptive else self.nfe,
            self.labels,
            self.ema,
            self.guidance,
            self.dtype,
        )

    @property
    def shortfall(self) -> float:
        """The value, or minus it where more is better: the lowest is the best."""
        return -self.value if self.kind in HIGHER_IS_BETTER else self.value

    @property
    def calls(self) -> str:
        """The network calls that were asked for: "19" or "adaptive"."""
        return self.cell.calls

    @property
    def protocol(self) -> Protocol:
        """All that must agree before two scores may be ranked."""
        return Protocol(
            self.metric,
            self.kind,
            self.protocol_name,
            self.n,
            self.blocks,
            self.seeds,
            self.extractor_sha256,
            self.reference_sha256,
            self.preprocess,
            self.quantisation,
            self.texts,
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Score:
        """From the JSON of a score record; fields which a report does not read are ignored.

        Raises:
            ComparisonError: a field is missing or not of its type, or the interval is not of 95 %.
        """
        if record.get("confidence", CONFIDENCE) != CONFIDENCE:
            raise ComparisonError(
                f"reports show intervals of {CONFIDENCE:.0%}, but the score record of "
                f"{record.get('run')} holds one of {record['confidence']}",
                "score the checkpoint with the default confidence",
            )
        try:
            fields: dict[str, Any] = {name: _text(record[name]) for name in _TEXTS}
            fields |= {name: _text(record.get(name, "")) for name in _OPTIONAL_TEXTS}
            fields |= {name: int(record[name]) for name in _COUNTS}
            fields |= {name: float(record[name]) for name in _VALUES}
            return cls(
                **fields,
                protocol_name=_text(record["protocol"]),
                seeds=_seeds(record["seeds"]),
                pseudo_values=tuple(float(value) for value in record["pseudo_values"]),
                reference_n=int(record.get("reference_n", 0)),
                versions=_texts(record.get("versions", {})),
                hardware=_texts(record.get("hardware", {})),
                adaptive=bool(record.get("adaptive", False)),
            )
        except KeyError as error:
            raise ComparisonError(
                f"a score record must hold {error.args[0]!r}, but has only "
                f"{', '.join(sorted(record))}",
                "it was written by another version of fleetstep: score the checkpoint again",
            ) from error
        except (TypeError, ValueError) as error:
            raise ComparisonError(
                f"a field of a score record has the wrong type: {error}",
                "the record was edited or damaged: score the checkpoint again",
            ) from error


_VALUES = ("value", "raw", "se", "low", "high", "nfe")
_COUNTS = ("n", "blocks", "images_seen")
_TEXTS = (
    "metric",
    "kind",
    "solver",
    "schedule",
    "checkpoint",
    "run",
    "extractor_sha256",
    "reference_sha256",
    "labels",
    "ema",
    "preprocess",
    "quantisation",
    "guidance",
)
_OPTIONAL_TEXTS = ("extractor", "reference", "dtype", "texts")


def _text(value: Any) -> str:
    """A string as it is, else canonical JSON, so that equal values give equal texts."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _seeds(value: Any) -> str:
    """The sample ids as "namespace:first-last"."""
    if isinstance(value, Mapping) and value.keys() == {"namespace", "first", "count"}:
        last = int(value["first"]) + int(value["count"]) - 1
        return f"{value['namespace']}:{value['first']}-{last}"
    return _text(value)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): _text(value) for name, value in values.items()}


@dataclass(frozen=True)
class Grid:
    """A picture of samples at the fixed seeds after `images_seen` images of training."""

    images_seen: int
    png: bytes
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One training run as the tracker remembers it.

    Args:
        status: the tracker's word: FINISHED, FAILED, KILLED, RUNNING.
        params: the resolved config, flattened: "training.seed" -> "0".
        curves: metric name -> curve.
    """

    name: str
    run_id: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    grids: tuple[Grid, ...] = ()
    started: datetime | None = None
    ended: datetime | None = None
