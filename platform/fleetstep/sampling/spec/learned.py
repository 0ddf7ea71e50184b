"""AMED as plain facts: what a trained predictor was made for, and the solver that it is.

Legend: N points of the schedule it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from fleetstep.durable import sha256_of
from fleetstep.errors import SamplingError
from fleetstep.sampling.spec.facts import SolverFacts
from fleetstep.sampling.spec.guidance import GuidanceSpec, ThresholdingSpec
from fleetstep.sampling.spec.multistep import DeisSpec, DpmppSpec, IpndmSpec, IpndmVSpec, UnipcSpec
from fleetstep.sampling.spec.schedules import MIN_POINTS, LevelsSpec, ScheduleSpec, TimeUniformSpec
from fleetstep.sampling.spec.single_step import Dpm2Spec, EulerSpec
from fleetstep.spec import Spec

PREDICTOR_FACTS: Final = "predictor.json"
PREDICTOR_WEIGHTS: Final = "predictor.safetensors"


class AmedStudentSpec(Spec):
    """AMED-Solver itself: one learned intermediate level, and the slope there alone (Zhou et al.
    2024, section 3.3).
    """

    kind: Literal["amed"] = "amed"

    @property
    def label(self) -> str:
        """As written in records."""
        return "amed"


StudentSpec = Annotated[
    AmedStudentSpec
    | EulerSpec
    | Dpm2Spec
    | IpndmSpec
    | IpndmVSpec
    | DeisSpec
    | DpmppSpec
    | UnipcSpec,
    Field(discriminator="kind"),
]
"""AMED-Solver, or the solver that AMED-Plugin is put into; a plugin into dpm2 learns its r."""


class PredictorFacts(Spec):
    """All that sampling with a predictor must reuse; the JSON beside its weights.

    Attributes:
        format: of the two files.
        student: the solver it serves.
        schedule, levels: as trained on, levels float64 [N], descending.
        afs: whether the first evaluation was analytical.
        scale_dir, scale_time: ranges of c and a about one; 0 has no such output.
        guidance, thresholding: what was done to D.
        dtype: of the state.
        snapshot, track: digest of the weights it was trained for, and their EMA track.
        run, images_seen: where those came from, for people.
        standardised: whether features are standardised by the frozen statistics in the weights.
        weights_sha256: of the safetensors file.
        training: how it was trained, and on how many latents, for people.
        seal: `seal_of` all the others; empty until `sealed`.
    """

    format: Literal[1] = 1
    student: StudentSpec
    schedule: ScheduleSpec
    levels: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=MIN_POINTS)
    afs: bool
    scale_dir: float = Field(ge=0, lt=1)
    scale_time: float = Field(ge=0, lt=1)
    guidance: GuidanceSpec | None = None
    thresholding: ThresholdingSpec | None = None
    dtype: Literal["float32", "float64"] = "float64"
    snapshot: str
    track: str
    run: str
    images_seen: int = Field(ge=0)
    standardised: bool = False
    weights_sha256: str
    training: dict[str, Any] = Field(default_factory=dict)
    seal: str = ""

    @field_validator("levels")
    @classmethod
    def _descend(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        for before, after in pairwise(levels):
            if after >= before:
                raise ValueError(f"levels must descend, but {after:g} follows {before:g}")
        return levels

    def sealed(self) -> PredictorFacts:
        """The same with their seal, as they are written."""
        return self.model_copy(update={"seal": seal_of(self.model_dump(mode="json"))})


class AmedSpec(SolverFacts):
    """A trained predictor as one more solver: two calls a step, less one with AFS.

    Attributes:
        predictor: folder of the predictor, as `fleetstep amed train` wrote it. Schedule, number of
            points, AFS, student and thresholding are stored there and cannot be changed.
    """

    kind: Literal["amed"] = "amed"
    predictor: str = Field(min_length=1)
    evals_per_step: ClassVar = 2
    learned: ClassVar = True
    default_schedule: ClassVar = TimeUniformSpec()

    @model_validator(mode="after")
    def _changes_nothing(self) -> Self:
        for name in ("schedule", "afs", "thresholding"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is stored with the predictor: leave it out")
        return self

    @property
    def facts(self) -> PredictorFacts:
        """What the predictor was trained for.

        Raises:
            SamplingError: the folder holds no predictor of this version.
        """
        return read_facts(Path(self.predictor))

    @property
    def global_order(self) -> int:
        """Learned for its levels: no order is claimed."""
        return 1

    @property
    def label(self) -> str:
        """Student, and enough of the seal to tell two predictors apart."""
        facts = self.facts
        end = ", denoise_to_zero=True" if self.denoise_to_zero else ""
        return f"amed({facts.student.label}, {facts.seal[:8]}{end})"

    @property
    def chosen_schedule(self) -> LevelsSpec:
        """The levels it was trained on."""
        return LevelsSpec(sigmas=self.facts.levels)

    @property
    def starts_analytically(self) -> bool:
        """As in training."""
        return self.facts.afs

    @property
    def chosen_thresholding(self) -> ThresholdingSpec | None:
        """As in training."""
        return self.facts.thresholding

    @property
    def identity(self) -> dict[str, Any]:
        """The predictor's content in place of its folder."""
        # What is there for people changes no sample; the seal covers it.
        facts = self.facts.model_dump(
            mode="json", exclude={"training", "run", "images_seen", "seal"}
        )
        return {"kind": self.kind, "denoise_to_zero": self.denoise_to_zero, "facts": facts}

    def evaluations(self, points: int, to_zero: bool) -> int:
        """Two a step; the first is analytical if it was in training."""
        return 2 * (points - 1) - self.facts.afs

    def check_network(self, snapshot: str, track: str, guidance: GuidanceSpec | None) -> None:
        """Refuse a network, or a guidance, that the predictor was not trained for.

        Raises:
            SamplingError: it names both.
        """
        facts = self.facts
        if (snapshot, track) != (facts.snapshot, facts.track):
            raise SamplingError(
                f"the predictor {self.predictor} was trained for {facts.run} at "
                f"{facts.images_seen:,} images (snapshot {facts.snapshot[:12]}, track "
                f"{facts.track}), not for snapshot {snapshot[:12]}, track {track}",
                "sample that snapshot, or train a predictor for this one: fleetstep amed train",
            )
        if guidance != facts.guidance:
            raise SamplingError(
                f"the predictor {self.predictor} was trained with guidance "
                f"{_written(facts.guidance)}, not with {_written(guidance)}",
                "use the same guidance, or train a predictor for this one",
            )

    def _check_only(self, nfe: int, reached: int, points: int) -> None:
        if nfe != reached:
            raise SamplingError(
                f"the predictor {self.predictor} makes {reached} network calls, not {nfe}: it was "
                f"trained for {points} points of {self.facts.schedule.label}",
                f"use nfe={reached}, or train a predictor for another number of points",
            )


def read_facts(folder: Path) -> PredictorFacts:
    """The facts of the predictor in `folder`.

    Raises:
        SamplingError: there is none, not one of this version, or facts were changed.
    """
    file = folder / PREDICTOR_FACTS
    try:
        stat = file.stat()
        # A file written whole is a new one, also where clocks are coarse.
        return _facts_of(file, (stat.st_mtime_ns, stat.st_ino))
    except OSError as error:
        raise SamplingError(
            f"{folder} holds no predictor: {file.name} cannot be read ({error.strerror})",
            "name the folder that `fleetstep amed train` wrote",
        ) from error
    except (ValidationError, ValueError, RecursionError) as error:
        raise SamplingError(
            f"{file} is not a predictor of this version: {error}",
            "train it again, or use the version that wrote it",
        ) from error


def check_predictor(folder: Path) -> PredictorFacts:
    """The facts of the predictor in `folder`, whose weights are those that they describe: by
    their hash, without torch.

    Raises:
        SamplingError: either file is missing, damaged or changed.
    """
    facts, file = read_facts(folder), folder / PREDICTOR_WEIGHTS
    if not file.is_file():
        raise SamplingError(
            f"{folder} holds the facts of a predictor but no {file.name}",
            "copy the whole folder that `fleetstep amed train` wrote",
        )
    if (digest := sha256_of(file)) != facts.weights_sha256:
        raise SamplingError(
            f"{file} is damaged: its sha256 is {digest[:12]}, {PREDICTOR_FACTS} says "
            f"{facts.weights_sha256[:12]}",
            "copy the folder again, or train the predictor again",
        )
    return facts


def seal_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 over canonical JSON of all facts but the seal, as they stand in the file: facts that
    a later version adds leave older seals as they are.
    """
    rest = {name: value for name, value in facts.items() if name != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=64)
def _facts_of(file: Path, _version: tuple[int, int]) -> PredictorFacts:
    written = json.loads(file.read_text(encoding="utf-8"))
    facts = PredictorFacts.model_validate(written)
    if (seal := seal_of(written)) != facts.seal:
        raise SamplingError(
            f"{file} was changed after it was written: its facts have the seal {seal[:12]}, it "
            f"says {facts.seal[:12] or 'none'}",
            "copy the folder again, or train the predictor again with the settings you want",
        )
    return facts


def _written(guidance: GuidanceSpec | None) -> str:
    return "none" if guidance is None else f"scale {guidance.scale:g} ({guidance.channels})"
