"""What makes a GPU's numbers repeatable: set for a GPU, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fleetstep.evaluation.spec import Rn20Spec
from fleetstep.exactness import exact_on_cuda
from fleetstep.orchestration import sample, sweep_worker, trajectory_report
from fleetstep.sampling.spec import EulerSpec
from small_run import write_small_run

_SETTINGS = (
    (torch.backends.cuda.matmul, "allow_tf32", False),
    (torch.backends.cudnn, "allow_tf32", False),
    (torch.backends.cudnn, "deterministic", True),
    (torch.backends.cudnn, "benchmark", False),
)


def found() -> list[bool]:
    return [getattr(where, name) for where, name, _ in _SETTINGS]


@pytest.fixture
def fast() -> Iterator[list[bool]]:
    """The opposite of every setting."""
    before = found()
    for where, name, exact in _SETTINGS:
        setattr(where, name, not exact)
    yield found()
    for (where, name, _), value in zip(_SETTINGS, before, strict=True):
        setattr(where, name, value)


def test_a_gpu_computes_without_tf32_and_with_fixed_kernels(fast: list[bool]):
    exact_on_cuda(torch.device("cuda", 0))
    assert found() == [exact for _, _, exact in _SETTINGS] != fast


def test_a_cpu_has_nothing_to_set(fast: list[bool]):
    exact_on_cuda(torch.device("cpu"))
    assert found() == fast


def _sample(run: Path, folder: Path) -> None:
    sample.sample_to_files(
        run,
        out=folder / "g.png",
        solver=EulerSpec(),
        seeds="0-1",
        ema="ema",
        labels="random",
        npz=None,
        say=None,
    )


@pytest.mark.parametrize(
    ("module", "loader", "begin"),
    [
        (sample, "load_denoiser", _sample),
        (
            trajectory_report,
            "load_denoiser",
            lambda run, folder: trajectory_report.report_trajectories(run, out=folder),
        ),
        (
            sweep_worker,
            "extractors_of",
            lambda _, folder: sweep_worker.build_worker(folder, (Rn20Spec(),), on_gpu=True),
        ),
    ],
    ids=["sample", "trajectory", "sweep"],
)
def test_sampling_sets_it_before_any_network_is_there(
    tmp_path: Path,
    digits_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    loader: str,
    begin: Callable[[Path, Path], object],
):
    class EnoughError(Exception):
        pass

    def load(*_: object, **__: object) -> None:
        raise EnoughError

    set_up: list[torch.device] = []
    monkeypatch.setattr(module, "exact_on_cuda", set_up.append)
    monkeypatch.setattr(module, loader, load)
    with pytest.raises(EnoughError):
        begin(write_small_run(tmp_path, digits_path), tmp_path / "out")
    assert len(set_up) == 1
