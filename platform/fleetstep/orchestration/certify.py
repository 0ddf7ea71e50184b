"""`fleetstep certify`: measure what the solvers declare, and write the evidence down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from fleetstep import __version__
from fleetstep.durable import write_whole
from fleetstep.errors import UsageError
from fleetstep.orchestration.output_paths import output_folder
from fleetstep.reporting.certificate_plots import LogLine, LogPanel, write_log_plot
from fleetstep.sampling.certificates import adaptive, laws, orders
from fleetstep.sampling.certificates.record import Certificate, Group

_TITLES: dict[Group, str] = {
    "order": "Order: error of the end against steps; ratio: the first to its known value (*: "
    "this package's own)",
    "order in law": "Order in law: Wasserstein-2 distance against steps",
    "total variation": "Total variation under schedule (13): slope against ln T / T; ratio to "
    "the known values: the farthest from 1",
    "tolerance": "Adaptive: error against tolerance",
}


@dataclass(frozen=True)
class Certified:
    """All that was measured.

    Args:
        quick: whether this is the reduced form.
        seconds: wall-clock time.
        files: what was written, if a folder was given.
    """

    certificates: tuple[Certificate, ...]
    quick: bool
    seconds: float
    files: tuple[Path, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything is as declared and expected."""
        return all(certificate.passed for certificate in self.certificates)

    def as_dict(self) -> dict[str, Any]:
        """The JSON record."""
        return {
            "format": 1,
            "version": __version__,
            "torch": torch.__version__,
            "quick": self.quick,
            "seconds": round(self.seconds, 1),
            "passed": self.passed,
            "certificates": [certificate.as_dict() for certificate in self.certificates],
        }

    def summary(self) -> str:
        """The last line for people."""
        failed = sum(not certificate.passed for certificate in self.certificates)
        count, form = len(self.certificates), " (reduced form)" if self.quick else ""
        return (
            f"{count - failed} of {count} certificates hold{form}, "
            f"measured in {self.seconds:.0f} s"
        )


def certify(
    *,
    out: Path | None,
    quick: bool = False,
    solvers: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> Certified:
    """Measure every certificate, and write table, record and plots.

    Args:
        out: folder for certificates.md, certificates.json and the plots; made if it is missing.
            None writes nothing.
        quick: the reduced form: the last doubling of the steps, and small T.
        solvers: kinds to certify; empty is all.
        say: where progress goes.

    Raises:
        UsageError: a kind is not one that is certified, or `out` cannot be written to.
        OSError: a file cannot be written.
    """
    jobs = [job for job in _jobs(quick) if not solvers or job.kind in solvers]
    known = sorted({job.kind for job in _jobs(quick)})
    if unknown := sorted(set(solvers) - set(known)):
        raise UsageError(
            f"--solver {', '.join(unknown)} is not certified", f"choose from {', '.join(known)}"
        )
    if out is not None:
        output_folder("--out", out)
    started = time.monotonic()
    found = []
    for done, job in enumerate(jobs, start=1):
        found.append(job.measure())
        if say is not None:
            say(_progress(found[-1], done, len(jobs), time.monotonic() - started))
    result = Certified(tuple(found), quick, time.monotonic() - started)
    if out is None:
        return result
    return Certified(result.certificates, quick, result.seconds, _write(result, out))


@dataclass(frozen=True)
class _Job:
    kind: str
    measure: Callable[[], Certificate]


def _jobs(quick: bool) -> Iterator[_Job]:
    steps = orders.QUICK_STEPS if quick else orders.STEPS
    for order in orders.cases():
        yield _Job(order.solver.kind, partial(orders.certify_order, order, steps))
    law_steps = laws.QUICK_LAW_STEPS if quick else laws.LAW_STEPS
    for law in laws.law_cases():
        yield _Job(law.solver.kind, partial(laws.certify_law, law, law_steps))
    for rate in laws.rate_cases():
        yield _Job(rate.solver.kind, partial(laws.certify_rate, rate, quick=quick))
    for variable in adaptive.VARIABLES[: 1 if quick else None]:
        yield _Job("rk45", partial(adaptive.certify_tolerance, variable))


def _progress(certificate: Certificate, done: int, total: int, seconds: float) -> str:
    left = seconds / done * (total - done)
    verdict = "holds" if certificate.passed else "FAILS"
    return (
        f"  {done}/{total} {certificate.group}: {certificate.solver} {verdict}, "
        f"{seconds:.0f} s, about {left:.0f} s left"
    )


# --- what people read ----------------------------------------------------------------------------


def tables(result: Certified) -> list[Table]:
    """One table for each group that was measured; a column that would say nothing is left out."""
    made = []
    for group, members in _groups(result.certificates):
        table = Table(title=Text(_TITLES[group]), title_justify="left")
        table.add_column("solver", overflow="fold", min_width=28)
        data = [certificate.problem.split("; ")[0] for certificate in members]
        columns: list[Sequence[str]] = [[certificate.solver for certificate in members]]
        if len(set(data)) > 1:
            table.add_column("data", overflow="fold")
            columns.append(data)
        measured = zip(*(_cells(certificate)[1:6] for certificate in members), strict=True)
        titles = ("slope", "expected", "declared", "ratio", "last error")
        for title, column in zip(titles, measured, strict=True):
            if any(column):
                table.add_column(title, justify="right")
                columns.append(column)
        table.add_column("verdict")
        for certificate, *cells in zip(members, *columns, strict=True):
            style = "green" if certificate.passed else "red"
            table.add_row(*map(Text, cells), Text(_verdict(certificate), style=style))
        made.append(table)
    return made


def _groups(
    certificates: Sequence[Certificate],
) -> Iterator[tuple[Group, list[Certificate]]]:
    for group in _TITLES:
        members = [certificate for certificate in certificates if certificate.group == group]
        if members:
            yield group, members


def _cells(certificate: Certificate) -> tuple[str, ...]:
    expected, declared = certificate.expected, certificate.declared
    return (
        certificate.solver,
        f"{certificate.slope:.2f}",
        "" if expected is None else f"{expected:.2f}",
        "" if declared is None else str(declared),
        _ratio(certificate),
        f"{certificate.errors[-1]:.2e}",
        certificate.problem,
        certificate.note,
    )


def _ratio(certificate: Certificate) -> str:
    if certificate.ratio is None:
        return ""
    return f"{certificate.ratio:.3f}{'*' if certificate.pinned else ''}"


def _verdict(certificate: Certificate) -> str:
    return "holds" if certificate.passed else "FAILS: " + "; ".join(certificate.failures)


def markdown(result: Certified) -> str:
    """The tables as Markdown."""
    lines = ["# Certificates", "", result.summary() + f", fleetstep {__version__}.", ""]
    for group, members in _groups(result.certificates):
        lines += [f"## {_TITLES[group]}", ""]
        lines += [
            "| solver | slope | expected | declared | ratio | last error | problem | note | |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for certificate in members:
            cells = (*_cells(certificate), _verdict(certificate))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


# --- files ---------------------------------------------------------------------------------------


def _write(result: Certified, out: Path) -> tuple[Path, ...]:
    record = out / "certificates.json"
    text = json.dumps(result.as_dict(), indent=2) + "\n"
    write_whole(record, lambda path: _put(path, text))
    page = out / "certificates.md"
    write_whole(page, lambda path: _put(path, markdown(result)))
    plots = []
    for name, title, panels in _pictures(result.certificates):
        if panels:
            write_log_plot(title, panels, out / name)
            plots.append(out / name)
    return (page, record, *plots)


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _pictures(
    certificates: Sequence[Certificate],
) -> Iterator[tuple[str, str, list[LogPanel]]]:
    groups = dict(_groups(certificates))
    by_order: dict[str, list[Certificate]] = {}
    for certificate in groups.get("order", []):
        declared = certificate.declared or 0
        by_order.setdefault(_ORDERS[min(declared, 3) - 1], []).append(certificate)
    panels = [
        _panel(f"{name} order", "steps", "largest error at σ = 0.002", members, guides)
        for name, guides in zip(_ORDERS, ((1,), (2,), (3, 4)), strict=True)
        if (members := by_order.get(name))
    ]
    title = "Error of every deterministic solver on a 2-D mixture, σ from 80 to 0.002"
    yield "certificate-orders.png", title, panels
    by_problem: dict[str, list[Certificate]] = {}
    for certificate in groups.get("total variation", []):
        deterministic = " (ODE)" if certificate.kind == "accelerated_ddim" else " (SDE)"
        problem = certificate.problem.split("; ")[0] + deterministic
        by_problem.setdefault(problem, []).append(certificate)
    panels = [
        _panel(
            problem,
            "T  (in the legend: slopes against T / ln T)",
            "total variation",
            members,
            (1, 2),
        )
        for problem, members in by_problem.items()
    ]
    yield "certificate-tv.png", "Total variation to the data under schedule (13)", panels


_ORDERS = ("First", "Second", "Third and fourth")


def _panel(
    title: str, x_title: str, y_title: str, members: list[Certificate], guides: tuple[int, ...]
) -> LogPanel:
    lines = tuple(
        LogLine(f"{_short(member.solver)}  {member.slope:.2f}", member.sizes, member.errors)
        for member in members
    )
    return LogPanel(title, x_title, y_title, lines, guides)


def _short(label: str) -> str:
    return label.replace(", lower_order_final=False", "")
