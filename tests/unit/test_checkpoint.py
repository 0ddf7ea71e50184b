from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracts.engine_contract import state_of
from fleetstep.errors import CheckpointError, NonFiniteError, ResumeError
from fleetstep.training import checkpoint as checkpoint_module
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.checkpoint_format import Checkpoint, open_checkpoint
from fleetstep.training.engine import TorchEngine
from fleetstep.training.loop import Job
from fleetstep.training.resume import check_leftovers, choose_start
from fleetstep.training.snapshot import (
    damages_of,
    is_reported,
    mark_reported,
    read_snapshot,
    write_snapshot,
)
from training_job import FACTS, ToyNetwork, toy_job, training_spec


def advance(job: Job, steps: int) -> None:
    """Change everything that has state, as training would."""
    for _ in range(steps):
        for _ in range(job.plan.accumulation):
            x = torch.randn(2, 1, 4, 4)
            job.engine.backward(job.engine.network(x, x.mean((1, 2, 3)), None).square().sum())
        job.engine.step(1e-2)
        job.ema.update(job.engine.steps * 8)


def save(job: Job) -> Checkpoint:
    return job.store.save(job.engine, job.ema, job.facts, images_seen=job.engine.steps * 8)


def saved(root: Path, steps: int = 3, **changes: object) -> Job:
    """A job with one checkpoint after each step."""
    job = toy_job(root, **changes)
    for _ in range(steps):
        advance(job, 1)
        save(job)
    return job


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def names(store: CheckpointStore) -> list[str]:
    return [folder.name for folder in store.folders()]


def test_load_restores_everything_exactly(tmp_path: Path):
    job = saved(tmp_path)
    other = toy_job(tmp_path)
    found = other.store.latest()
    assert found is not None
    assert (found.step, found.images_seen, found.facts) == (3, 24, FACTS)
    other.engine.buffers()["frequencies"].zero_()
    other.store.load(found, other.engine, other.ema)
    mine, theirs = state_of(job.engine), state_of(other.engine)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert other.engine.steps == 3
    assert other.engine.buffers()["frequencies"].tolist() == [1.0, 2.0]
    for track in ("ema", "slow"):
        pairs = zip(job.ema.slices(track), other.ema.slices(track), strict=True)
        assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    torch.manual_seed(0)
    advance(job, 2)
    torch.manual_seed(0)
    advance(other, 2)
    assert all(
        torch.equal(state_of(job.engine)[key], value)
        for key, value in state_of(other.engine).items()
    )


def test_what_lies_on_disk(tmp_path: Path):
    """
    step-00000001/
        manifest.json
        rank-00000.safetensors
    """
    saved(tmp_path, 1)
    files = sorted(p.name for p in (tmp_path / "checkpoints" / "step-00000001").iterdir())
    assert files == ["manifest.json", "rank-00000.safetensors"]


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def other_format(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"format": 99}))


def flip_part(folder: Path) -> None:
    flip_a_byte(folder / "rank-00000.safetensors")


def cut_part(folder: Path) -> None:
    with (folder / "rank-00000.safetensors").open("r+b") as file:
        file.truncate(100)


def remove_part(folder: Path) -> None:
    (folder / "rank-00000.safetensors").unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (remove_manifest, "incomplete: it has no manifest.json"),
        (cut_manifest, "damaged: manifest.json cannot be read"),
        (other_format, "has format 99"),
        (flip_part, "rank-00000.safetensors has sha256"),
        (cut_part, "rank-00000.safetensors has 100 bytes"),
        (remove_part, "rank-00000.safetensors is missing"),
    ],
)
def test_a_bad_checkpoint_is_passed_over_by_name(
    tmp_path: Path, harm: Callable[[Path], None], reason: str
):
    job = saved(tmp_path)
    newest = job.store.folders()[0]
    harm(newest)
    found = job.store.latest()
    assert found is not None
    assert found.step == 2
    (skipped,) = job.store.skipped
    assert skipped.path == newest
    assert reason in skipped.reason


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path):
    job = toy_job(tmp_path, keep_checkpoints=2)
    leftover = tmp_path / "checkpoints" / "step-00000000"
    leftover.mkdir(parents=True)
    (leftover / "rank-00001.safetensors").write_bytes(b"half")
    for _ in range(4):
        advance(job, 1)
        save(job)
    assert names(job.store) == ["step-00000004", "step-00000003"]


def test_what_was_passed_over_does_not_push_out_what_is_sound(tmp_path: Path):
    job = saved(tmp_path, 3, keep_checkpoints=1)
    flip_part(job.store.folders()[0])
    resumed = toy_job(tmp_path, keep_checkpoints=1)
    advance(resumed, 2)
    save(resumed)
    assert names(resumed.store) == ["step-00000003", "step-00000002"]
    found = resumed.store.latest()
    assert found is not None
    assert found.step == 2
    advance(resumed, 1)
    save(resumed)
    assert names(resumed.store) == ["step-00000003"]
    found = resumed.store.latest()
    assert found is not None
    assert found.step == 3


def test_a_sound_checkpoint_is_never_written_over(tmp_path: Path):
    job = saved(tmp_path, 1)
    part = tmp_path / "checkpoints" / "step-00000001" / "rank-00000.safetensors"
    before = part.stat().st_mtime_ns
    save(job)
    assert part.stat().st_mtime_ns == before


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path):
    job = saved(tmp_path, 1)
    advance(job, 1)
    job.engine.owned()[0].exp_avg[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"exp_avg/conv_in\.weight@0 holds NaN"):
        save(job)
    found = job.store.latest()
    assert found is not None
    assert found.step == 1


def test_a_full_disk_costs_nothing_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = saved(tmp_path, 1)

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    advance(job, 1)
    with pytest.raises(CheckpointError, match=r"(?s)by rank 0: .*No space left.*free space"):
        save(job)
    assert list((tmp_path / "checkpoints" / "step-00000002").iterdir()) == []
    monkeypatch.undo()
    assert save(job).step == 2


def test_another_network_is_refused(tmp_path: Path):
    job = saved(tmp_path, 1)
    found = job.store.latest()
    assert found is not None
    wider = TorchEngine(ToyNetwork(width=8), training_spec().optimizer, job.plan)
    with pytest.raises(CheckpointError, match=r"conv_in\.weight has shape \(8, 1, 3, 3\)"):
        job.store.load(found, wider, job.ema)


def test_resume_policies(tmp_path: Path):
    empty = CheckpointStore(tmp_path / "none")
    assert choose_start(empty, "auto", FACTS) is None
    assert choose_start(empty, "never", FACTS) is None
    with pytest.raises(ResumeError, match="holds no sound checkpoint"):
        choose_start(empty, "must", FACTS)
    store = saved(tmp_path, 2).store
    for policy in ("auto", "must"):
        start = choose_start(store, policy, FACTS)
        assert start is not None
        assert start.step == 2
    with pytest.raises(ResumeError, match=r"holds 2 checkpoint\(s\), the newest step-00000002"):
        choose_start(store, "never", FACTS)
    for folder in store.folders():
        flip_part(folder)
    assert choose_start(store, "auto", FACTS) is None
    with pytest.raises(ResumeError, match="step-00000002 is damaged"):
        choose_start(store, "must", FACTS)


@pytest.mark.parametrize("what", ["identity", "dataset"])
def test_another_experiment_is_refused_by_name(tmp_path: Path, what: str):
    store = saved(tmp_path, 1).store
    with pytest.raises(ResumeError, match=f"{what}.*: {what}-a, this run has other"):
        choose_start(store, "auto", replace(FACTS, **{what: "other"}))
    assert choose_start(store, "auto", replace(FACTS, execution="other")) is not None


def test_a_snapshot_holds_the_whole_ema(tmp_path: Path):
    job = saved(tmp_path, 3)
    path = write_snapshot(tmp_path / "snapshots", open_checkpoint(job.store.folders()[0]))
    assert path.name == "images-000000024"
    assert sorted(p.name for p in path.iterdir()) == [
        "ema.safetensors",
        "slow.safetensors",
        "snapshot.json",
    ]
    weights, facts = read_snapshot(path, "slow")
    network = ToyNetwork()
    network.load_state_dict(weights)
    for piece, average in job.ema.slices("slow"):
        assert torch.equal(weights[piece.name].view(-1), average)
    assert facts["images_seen"] == 24
    assert facts["config"] == {"name": "toy"}
    assert facts["dataset"] == "dataset-a"
    with pytest.raises(CheckpointError, match=r"(?s)no EMA track 'fast'.*ema, slow"):
        read_snapshot(path, "fast")


def test_a_damaged_snapshot_is_refused_and_written_again(tmp_path: Path):
    job = saved(tmp_path, 1)
    checkpoint = open_checkpoint(job.store.folders()[0])
    path = write_snapshot(tmp_path / "snapshots", checkpoint)
    flip_a_byte(path / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"damaged: ema\.safetensors has sha256"):
        read_snapshot(path, "ema")
    assert len(damages_of(path)) == 1
    write_snapshot(tmp_path / "snapshots", checkpoint)
    assert damages_of(path) == []
    with pytest.raises(CheckpointError, match=r"it has no snapshot\.json"):
        read_snapshot(tmp_path, "ema")


def test_a_snapshot_of_another_experiment_is_replaced(tmp_path: Path):
    job = saved(tmp_path, 1)
    checkpoint = open_checkpoint(job.store.folders()[0])
    other = replace(checkpoint, facts=replace(FACTS, identity="other"))
    path = write_snapshot(tmp_path / "snapshots", other)
    mark_reported(path)
    assert not is_reported(path, FACTS.identity)
    write_snapshot(tmp_path / "snapshots", checkpoint)
    assert read_snapshot(path, "ema")[1]["identity"] == FACTS.identity
    assert not is_reported(path, FACTS.identity)


def test_a_fresh_start_among_snapshots_is_refused_unless_they_are_its_own(tmp_path: Path):
    snapshots = tmp_path / "snapshots"
    check_leftovers(snapshots, "never", FACTS)
    job = saved(tmp_path, 1)
    write_snapshot(snapshots, open_checkpoint(job.store.folders()[0]))
    check_leftovers(snapshots, "auto", FACTS)
    with pytest.raises(ResumeError, match=r"resume is never, but .* holds 1 snapshot"):
        check_leftovers(snapshots, "never", FACTS)
    with pytest.raises(ResumeError, match="was made by another experiment"):
        check_leftovers(snapshots, "auto", replace(FACTS, identity="other"))


@pytest.mark.parametrize("step", ["_prepare", "_prune"])
def test_a_disk_that_refuses_is_a_checkpoint_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("disk gone")

    job = saved(tmp_path, 2)
    if step == "_prepare":
        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        monkeypatch.setattr(CheckpointStore, "_prune", refuse)
    advance(job, 1)
    with pytest.raises(CheckpointError, match="rank 0: disk gone"):
        job.store.save(job.engine, job.ema, FACTS, images_seen=24)
