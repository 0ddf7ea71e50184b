"""The files of one finished unit: the features of its images, and what they were made on.

Features are kept rather than sums: 100 rows are smaller than their second moments for any
extractor of 100 or more features, the integer moments of evaluation/moments.py follow from them
exactly, and a metric that is added later needs no new sampling. Each feature space has a file of
its own.

Legend: n rows, D features, K classes of the extractor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fleetstep.durable import sync
from fleetstep.orchestration.cells import FeatureSpace, Unit

Float32 = npt.NDArray[np.float32]

Fault = Callable[[str], None]
"""Called at named points of a write; tests kill the process there."""


def no_fault(point: str) -> None:
    """Nothing happens at `point`."""


@dataclass(frozen=True, order=True)
class Hardware:
    """What decides the last bits of a result besides its inputs: mixtures are flagged.

    Args:
        device: CPU or GPU model.
        threads: compute threads.
        build: version and commit of torch, and its CPU instruction set.
    """

    device: str
    threads: int
    build: str


@dataclass(frozen=True)
class UnitResult:
    """The content of a unit's file.

    Args:
        features: float32 [n, D], row i of id first + i.
        probabilities: of the extractor's classes, float32 [n, K]; None where it has none.
        digest: SHA-256 of the features and probabilities.
        nfe: network calls per image, counted; 0 for a reference set, the mean over batches for an
            adaptive solver.
        calls_made: those that were made: fewer where cells share their first call.
        seconds: time it took.
        hardware: what it was made on.
    """

    features: Float32
    probabilities: Float32 | None
    digest: str
    nfe: float
    calls_made: float
    seconds: float
    hardware: Hardware


def digest_of(features: Float32, probabilities: Float32 | None = None) -> str:
    """SHA-256 over shapes and little-endian values."""
    digest = hashlib.sha256()
    for array in (features, probabilities):
        if array is not None:
            values = np.ascontiguousarray(array, "<f4")
            digest.update(repr(values.shape).encode() + values.tobytes())
    return digest.hexdigest()


def this_hardware(device: torch.device) -> Hardware:
    """The hardware of this process, for computations on `device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()
    build = f"torch {torch.__version__} {torch.version.git_version[:8]}"
    return Hardware(
        name, torch.get_num_threads(), f"{build} {torch.backends.cpu.get_cpu_capability()}"
    )


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_unit(
    storage: Path, unit: Unit, space: FeatureSpace, result: UnitResult, fault: Fault = no_fault
) -> None:
    """Put the result where it belongs, whole or not at all: a temporary file, synced, renamed.

    Two writers of one unit write the same features, so it does not matter which rename comes last.
    """
    path = unit.path(storage, space)
    made = {
        "nfe": result.nfe,
        "calls_made": result.calls_made,
        "seconds": result.seconds,
        "hardware": asdict(result.hardware),
    }
    metadata = {"unit": _identity(unit, space), "digest": result.digest, "made": json.dumps(made)}
    metadata["seal"] = _seal(metadata)
    arrays = {"features": np.ascontiguousarray(result.features)}
    if result.probabilities is not None:
        arrays["probabilities"] = np.ascontiguousarray(result.probabilities)
    content = save(arrays, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with temporary.open("wb") as file:
        file.write(content[: len(content) // 2])
        fault("unit half written")
        file.write(content[len(content) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    fault("unit before rename")
    try:
        temporary.replace(path)
    except FileNotFoundError:
        if not path.exists():  # else another writer of this unit was faster, and tidied up
            raise
    sync(path.parent)
    for left_by_the_dead in path.parent.glob(f".{path.name}.*"):
        left_by_the_dead.unlink(missing_ok=True)


def read_unit(storage: Path, unit: Unit, space: FeatureSpace) -> UnitResult | None:
    """The result of `unit`; None when it is missing, damaged, or another unit's."""
    probabilities: Float32 | None = None
    try:
        with safe_open(unit.path(storage, space), framework="numpy") as file:
            metadata = file.metadata() or {}
            features: Float32 = file.get_tensor("features")
            if "probabilities" in file.keys():
                probabilities = file.get_tensor("probabilities")
        made = json.loads(metadata["made"])
        result = UnitResult(
            features,
            probabilities,
            metadata["digest"],
            made["nfe"],
            made["calls_made"],
            made["seconds"],
            Hardware(**made["hardware"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    sound = (
        metadata.get("unit") == _identity(unit, space)
        and metadata.get("seal") == _seal(metadata)
        and features.dtype == np.float32
        and len(features) == unit.count
        and digest_of(features, probabilities) == result.digest
    )
    return result if sound else None


def _identity(unit: Unit, space: FeatureSpace) -> str:
    ids = {
        "source": unit.source.identity,
        "space": asdict(space),
        "first": unit.first,
        "count": unit.count,
    }
    return json.dumps(ids, sort_keys=True)


def _seal(metadata: Mapping[str, str]) -> str:
    """SHA-256 of what stands beside the features, which have their own digest."""
    return hashlib.sha256(
        "\0".join(metadata[k] for k in ("unit", "digest", "made")).encode()
    ).hexdigest()
