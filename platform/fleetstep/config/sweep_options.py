"""A sweep as the command line asks for it: a preset or none, options, and overrides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep.config.loading import load
from fleetstep.config.solver_text import written_settings
from fleetstep.config.sweep import SweepSpec
from fleetstep.errors import ConfigError, UsageError

_OWN, _NONE = "own", "none"


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The options of `fleetstep sweep`; what is empty leaves a preset's value, or the default.

    Args:
        run, nfe, ema, metric: as `SweepSpec.runs`, `nfe`, `ema`, `metrics`.
        solver, extractor: a kind, or settings in YAML; of a solver also "amed:FOLDER".
        schedule: likewise, or "own" for each solver's own.
        guidance: a scale, or "none".
        samples, seed_blocks, protocol, name: as in `SweepSpec`.
        screen: screens with the default settings, or those of a preset.
    """

    run: Sequence[str] = ()
    solver: Sequence[str] = ()
    nfe: Sequence[int] = ()
    schedule: Sequence[str] = ()
    guidance: Sequence[str] = ()
    ema: Sequence[str] = ()
    metric: Sequence[str] = ()
    extractor: Sequence[str] = ()
    samples: int | None = None
    seed_blocks: int | None = None
    protocol: str | None = None
    screen: bool = False
    name: str | None = None


def sweep_from(preset: str | None, overrides: Sequence[str], options: SweepOptions) -> SweepSpec:
    """The sweep: options override a preset's fields, and `key.sub=value` overrides both.

    Args:
        preset: a file; None, or an override in its place, starts from nothing.

    Raises:
        ConfigError: with every problem found; nothing has been started or written.
    """
    if preset is not None and "=" in preset and not Path(preset).exists():
        return sweep_from(None, [preset, *overrides], options)
    problems: list[str] = []
    written = list(_overrides(options, problems))
    path = None if preset is None else Path(preset)
    try:
        spec = load(SweepSpec, path, [*written, *overrides])
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return spec


def _overrides(options: SweepOptions, problems: list[str]) -> Iterator[str]:
    """The options as overrides; what cannot be read is added to `problems`."""
    plain = {
        "runs": options.run,
        "nfe": options.nfe,
        "ema": options.ema,
        "metrics": options.metric,
        "samples": options.samples,
        "seed_blocks": options.seed_blocks,
        "protocol": options.protocol,
        "name": options.name,
    }
    read: dict[str, tuple[Sequence[str], Callable[[str], Any]]] = {
        "solvers": (options.solver, lambda text: written_settings("--solver", text)),
        "schedules": (options.schedule, _schedule),
        "guidance": (options.guidance, _guidance),
        "extractors": (options.extractor, lambda text: written_settings("--extractor", text)),
    }
    for field, value in plain.items():
        if value is not None and value != ():
            yield _override(field, value)
    for field, (texts, reader) in read.items():
        if found := list(_read(texts, reader, problems)):
            yield _override(field, found)
    if options.screen:
        yield "screen.latents=64"


def _read(
    texts: Sequence[str], reader: Callable[[str], Any], problems: list[str]
) -> Iterator[Any]:
    for text in texts:
        try:
            yield reader(text)
        except UsageError as error:
            problems.append("; ".join(part for part in (error.message, error.remedy) if part))


def _schedule(text: str) -> dict[str, Any] | None:
    return None if text == _OWN else written_settings("--schedule", text)


def _guidance(text: str) -> dict[str, Any] | None:
    if text == _NONE:
        return None
    try:
        return {"scale": float(text)}
    except ValueError:
        raise UsageError(
            f"--guidance must be a scale such as 1.5, or none, got {text!r}"
        ) from None


def _override(field: str, value: Any) -> str:
    """JSON is YAML."""
    return f"{field}={json.dumps(value)}"
