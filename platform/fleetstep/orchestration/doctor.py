"""`fleetstep doctor`: what is installed, what is missing, and what Ray would see here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, replace
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
    checks = (_torch, _torchvision, _packaged_extractor, _inception, _shared_memory, _ray)
    for check in checks:
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
    from fleetstep.torchvision_door import import_torchvision

    try:
        problem = import_torchvision()
    except (ImportError, RuntimeError, OSError) as error:
        problem = f"torchvision cannot be imported: {error}"
    if not problem:
        return [Finding(subject="torch and torchvision", status="ok", seen="match")]
    return [Finding(subject="torch and torchvision", status="note", seen=problem)]


def _packaged_extractor() -> list[Finding]:
    """The packaged weights, their known answers, and how far apart real images are by them."""
    from fleetstep.evaluation import self_tests
    from fleetstep.evaluation.features import load_extractor
    from fleetstep.evaluation.spec import Rn20Spec

    own = load_extractor(Rn20Spec())
    error = self_tests.known_answer_error(own)
    right = error <= self_tests.KNOWN_TOLERANCE
    floor = self_tests.real_floor(own)
    low, high = self_tests.HALVES_EXPECTED
    return [
        Finding(
            subject="extractor fs-rn20",
            status="ok" if right else "bad",
            seen=f"packaged weights, sha256 {own.digest[:12]}; features of 4 known images are "
            f"within {error:.1g} of the recorded ones",
            remedy=""
            if right
            else f"more than {self_tests.KNOWN_TOLERANCE:g} is another metric: do not compare "
            "scores of this machine with others, and try another build of torch",
        ),
        Finding(
            subject="distance of real images",
            status="ok" if floor.sound else "bad",
            seen=f"{floor.halves:.4f} between two halves of {2 * self_tests.HALF} digits "
            f"(expected: {low:.3f} to {high:.3f}), {floor.identity:.1g} from themselves",
            remedy="" if floor.sound else "features or statistics are broken: trust no score",
        ),
    ]


def _inception() -> list[Finding]:
    """Whether FID can be measured here; if so, by a look at what the network answers."""
    from fleetstep.evaluation.inception import inception_status

    present, seen = inception_status()
    subject = "extractor inception"
    if not present:
        return [
            Finding(
                subject=subject,
                status="note",
                seen=f"FID not run: no weights ({seen})",
                remedy="for FID, give the weights by path: extractor={kind: inception, path: ...}",
            )
        ]
    faults = _inception_faults()
    return [
        Finding(
            subject=subject,
            status="bad" if faults else "ok",
            seen=f"{seen}; {'; '.join(faults)}" if faults else f"FID can be measured: {seen}",
            remedy="trust no FID of this machine; try another build of torch" if faults else "",
        )
    ]


def _inception_faults() -> list[str]:
    """What is wrong with Inception's answers, by resizing."""
    from fleetstep.evaluation.inception import inception
    from fleetstep.evaluation.self_tests import fault_of, known_images
    from fleetstep.evaluation.spec import InceptionSpec

    faults = []
    for spec in (InceptionSpec(), InceptionSpec(resize="legacy_tensorflow")):
        network = inception(spec, with_probabilities=spec.probabilities)
        if fault := fault_of(replace(network, batch=len(known_images()))):
            faults.append(f"{spec.resize}: {fault}")
    return faults


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
