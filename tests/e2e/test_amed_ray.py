"""A predictor trained by Ray: one worker in the default tier, two that are killed in `cluster`."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

import interruptions
from fleetstep.config import AmedExperiment, load
from fleetstep.errors import NonFiniteError, ResumeError
from fleetstep.orchestration.amed_job import train_amed
from fleetstep.orchestration.history import History
from fleetstep.orchestration.spool import SpoolReader
from fleetstep.orchestration.tracking_store import default_uri
from fleetstep.sampling.spec import read_facts
from interruptions import AskToStop, KillOnce
from small_run import write_small_run

# Workers do not have the tests on their path: what they call travels by value.
ray.cloudpickle.register_pickle_by_value(interruptions)

pytestmark = pytest.mark.usefixtures("ray_cluster")

TINY = (
    "training={points: 3, batch: 8, images: 32, student: {kind: amed}}",
    "checkpoint_every=8",
    "evaluation={latents: 4, reference_nfe: 12, batch: 2}",
)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> Path:
    return write_small_run(tmp_path_factory.mktemp("network"), digits_path)


def tiny(storage: Path, network: Path, *overrides: str) -> AmedExperiment:
    where = ("name=p", f"storage={storage}", f"run={network}")
    return load(AmedExperiment, None, [*where, *TINY, *overrides])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "predictor" / "predictor.safetensors")


def losses(folder: Path) -> dict[int, float]:
    points = SpoolReader(folder / "spool" / "metrics.jsonl").read()
    return {p.images_seen: p.value for p in points if p.key == "train/loss"}


def test_a_predictor_is_trained_measured_and_kept(
    tmp_path: Path, network: Path, ray_cluster: None
):
    """One Ray job, and all that it leaves, so that it is started once."""
    said: list[str] = []
    result = train_amed(tiny(tmp_path, network), say=said.append)

    assert result.images_seen == 32
    assert sorted(losses(result.folder)) == [8, 16, 24, 32]
    facts = read_facts(result.predictor)
    assert (facts.run, facts.track, len(facts.levels)) == ("small", "ema", 3)
    assert result.report is not None
    assert result.report.predictor == facts.weights_sha256
    assert [contender.nfe for contender in result.report.contenders] == [3, 3, 8]
    checkpoints = sorted(path.name for path in (result.folder / "checkpoints").iterdir())
    assert checkpoints == ["step-00000003", "step-00000004"]
    assert any("100%" in line and "img/s" in line for line in said)

    (run,) = History(default_uri(tmp_path), "fleetstep").runs(["p"])
    assert run.status == "FINISHED"
    assert run.tags["fleetstep.kind"] == "amed"
    assert run.params["training.student.kind"] == "amed"
    for key in ("train/loss_1", "train/grad_norm_0", "learned/r_1", "learned/c_0"):
        assert [point.images_seen for point in run.metrics[key]] == [8, 16, 24, 32], key
    assert run.metrics["report/rmse_amed"][-1].value == result.report.contenders[1].rmse[-1]
    kept = {"config.resolved.yaml", "report.json", "predictor/predictor.json"}
    assert kept | {"figures/error.png", "figures/learned.png"} <= set(run.artifacts)

    with pytest.raises(ResumeError, match="resume is never"):
        train_amed(tiny(tmp_path, network), resume="never")
    with pytest.raises(ResumeError, match="another experiment"):
        train_amed(tiny(tmp_path, network, "training.seed=1"))


@pytest.mark.cluster
def test_a_training_that_was_asked_to_stop_goes_on(
    tmp_path: Path, network: Path, ray_cluster: None
):
    unbroken = train_amed(tiny(tmp_path, network, "name=unbroken"))
    experiment = tiny(tmp_path, network)
    stop = AskToStop(experiment.folder / "stop", "loop", 2)
    with pytest.raises(KeyboardInterrupt):
        train_amed(experiment, on_event=stop)
    (stopped,) = History(default_uri(tmp_path), "fleetstep").runs(["p"])
    assert stopped.status == "KILLED"
    assert sorted(losses(experiment.folder)) == [8, 16]
    assert not (experiment.folder / "predictor").exists()

    result = train_amed(experiment, resume="must")

    assert result.run_id == stopped.run_id
    assert losses(result.folder) == losses(unbroken.folder)
    ours, theirs = weights(result.folder), weights(unbroken.folder)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@pytest.mark.cluster
def test_two_workers_survive_a_kill_and_draw_the_same_latents(
    tmp_path: Path, network: Path, ray_cluster: None
):
    two = ("cluster={workers: 2, cpus_per_worker: 1}",)
    unbroken = train_amed(tiny(tmp_path, network, "name=unbroken", *two))
    killer = KillOnce(tmp_path / "killed", "loop", 3)
    killed = train_amed(tiny(tmp_path, network, "name=killed", *two), on_event=killer)
    alone = train_amed(tiny(tmp_path, network, "name=alone"))

    assert (tmp_path / "killed").exists()
    # At the same world size bit for bit; at another up to the order of the sums.
    assert losses(killed.folder) == losses(unbroken.folder)
    for name, value in weights(unbroken.folder).items():
        assert torch.equal(value, weights(killed.folder)[name]), name
    assert losses(alone.folder) == pytest.approx(losses(unbroken.folder), rel=1e-6)


@pytest.mark.cluster
def test_an_error_of_ours_ends_the_job_at_once(tmp_path: Path, network: Path, ray_cluster: None):
    # A rate that throws the predictor out of range: starting again would not help.
    with pytest.raises(NonFiniteError):
        train_amed(tiny(tmp_path, network, "training.lr=1.0e300"))
    (run,) = History(default_uri(tmp_path), "fleetstep").runs(["p"])
    assert run.status == "FAILED"
