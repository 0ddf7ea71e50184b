"""`fleetstep doctor`: what is installed, what is missing, and what Ray would see here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "note", "bad"]

_LIBRARIES = (
    "torch",
    "torchvision",
    "ray",
    "deepspeed",
    "webdataset",
    "mlflow",
    "clean-fid",
    "safetensors",
    "numpy",
    "scipy",
)
# Ray's object store lives in shared memory; with less it spills to disk and containers die with a
# bus error.
_SHARED_MEMORY_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at: its status, what was seen, and what to do about it."""

    subject: str
    status: Status
    seen: str
    remedy: str = ""

    def line(self) -> str:
        """The finding as a line of text."""
        mark = {"ok": "ok  ", "note": "note", "bad": "BAD "}[self.status]
        return f"[{mark}] {self.subject}: {self.seen}" + (
            f"\n       -> {self.remedy}" if self.remedy else ""
        )

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain data."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything. Each check is independent: one that fails becomes a finding of its
    own.
    """
    findings = [_python(), *_libraries()]
    for check in (_torch, _torchvision, _extractors, _shared_memory, _ray):
        try:
            findings += check()
        except Exception as error:  # a broken installation is what this command is for
            findings.append(
                Finding(
                    subject=check.__name__.strip("_"),
                    status="bad",
                    seen=f"{type(error).__name__}: {error}",
                )
            )
    return findings


def _python() -> Finding:
    version = sys.version_info[:2]
    return Finding(
        subject="python",
        status="ok" if (3, 11) <= version <= (3, 13) else "bad",
        seen=f"{platform.python_version()} on {platform.machine()}",
        remedy="" if (3, 11) <= version <= (3, 13) else "use Python 3.11, 3.12 or 3.13",
    )


def _libraries() -> list[Finding]:
    findings = []
    for name in _LIBRARIES:
        try:
            findings.append(
                Finding(subject=name, status="ok", seen=importlib.metadata.version(name))
            )
        except importlib.metadata.PackageNotFoundError:
            findings.append(
                Finding(
                    subject=name, status="bad", seen="not installed", remedy="run `make install`"
                )
            )
    return findings


def _torch() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [Finding(subject="accelerator", status="ok", seen=names)]
    build = "a CUDA build, but no GPU is visible" if torch.version.cuda else "a CPU build of torch"
    return [
        Finding(
            subject="accelerator",
            status="note",
            seen=f"none ({build}): training runs on the CPU with gloo",
        )
    ]


def _torchvision() -> list[Finding]:
    from fleetstep.evaluation.features import torchvision_status

    problem = torchvision_status()
    if not problem:
        return [Finding(subject="torch and torchvision", status="ok", seen="match")]
    return [Finding(subject="torch and torchvision", status="note", seen=problem)]


def _extractors() -> list[Finding]:
    from fleetstep.evaluation.features import inception_status, load_extractor
    from fleetstep.evaluation.spec import Rn20Spec

    own = load_extractor(Rn20Spec())
    findings = [
        Finding(
            subject="extractor fs-rn20",
            status="ok",
            seen=f"packaged weights, sha256 {own.digest[:12]}",
        )
    ]
    present, seen = inception_status()
    findings.append(
        Finding(
            subject="extractor inception",
            status="ok" if present else "note",
            seen=seen,
            remedy=""
            if present
            else "for FID, give the weights by path: extractor={kind: inception, path: ...}",
        )
    )
    return findings


def _shared_memory() -> list[Finding]:
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        return [
            Finding(subject="shared memory", status="note", seen="/dev/shm does not exist here")
        ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = total >= _SHARED_MEMORY_SHARE * memory
    return [
        Finding(
            subject="shared memory",
            status="ok" if enough else "note",
            seen=f"{total / 2**30:.1f} GiB of {memory / 2**30:.1f} GiB memory",
            remedy=""
            if enough
            else f"in a container, give --shm-size={_SHARED_MEMORY_SHARE * memory / 2**30:.0f}g",
        )
    ]


def _ray() -> list[Finding]:
    import ray

    from fleetstep.orchestration.session import connect

    with connect(None):
        seen = ray.cluster_resources()
    return [
        Finding(
            subject="ray",
            status="ok",
            seen=f"{seen.get('CPU', 0):g} CPUs, {seen.get('GPU', 0):g} GPUs, "
            f"{seen.get('memory', 0) / 2**30:.1f} GiB",
        )
    ]
