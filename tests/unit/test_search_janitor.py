from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fleetstep import rng
from fleetstep.errors import CheckpointError
from fleetstep.orchestration import search_exploit
from fleetstep.orchestration.search_exploit import adopt, checkpoint_at
from fleetstep.orchestration.search_janitor import Janitor, checkpoints_in
from fleetstep.orchestration.search_records import (
    Ledger,
    Life,
    Origin,
    Report,
    SearchFolder,
)
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.checkpoint_format import MANIFEST, CheckpointReader, open_checkpoint
from fleetstep.training.resume import choose_start
from fleetstep.training.snapshot import write_snapshot
from training_job import FACTS, toy_job

EVERY = 32
FINER = 8


def write_checkpoint(folder: Path, images_seen: int) -> None:
    """A checkpoint without tensors: the janitor looks at manifests alone."""
    path = folder / f"step-{images_seen // 8:08d}"
    path.mkdir(parents=True, exist_ok=True)
    content = {
        "format": 1,
        "step": images_seen // 8,
        "images_seen": images_seen,
        "facts": {"identity": "i", "dataset": "d"},
        "shapes": {},
        "tracks": [],
        "states": [],
        "parts": [],
    }
    (path / MANIFEST).write_text(json.dumps(content))


def write_snapshots(folder: Path, *points: int) -> None:
    for images_seen in points:
        path = folder / f"images-{images_seen:09d}"
        path.mkdir(parents=True)
        (path / "snapshot.json").write_text("{}")


@pytest.fixture
def search(tmp_path: Path) -> tuple[SearchFolder, Ledger]:
    folder = SearchFolder(tmp_path / "toy")
    return folder, Ledger(folder.results)


def test_of_trials_that_are_over_the_last_snapshot_stays_and_of_the_best_the_last_checkpoint(
    search: tuple[SearchFolder, Ledger],
):
    folder, ledger = search
    for trial in ("0000", "0001", "0002"):
        ledger.begin(trial, Life(0, {}))
        ledger.report(trial, Report(32, {"loss": 0.5}))
        for images_seen in (24, 32):
            write_checkpoint(folder.run(trial).checkpoints, images_seen)
        write_snapshots(folder.run(trial).snapshots, 0, 32)
    ledger.end("0000", "finished")
    ledger.end("0001", "stopped")
    Janitor(folder).tidy(ledger.records, {}, {"0000"})
    kept = {t: sorted(checkpoints_in(folder.run(t).checkpoints)) for t in ledger.records}
    assert kept == {"0000": [32], "0001": [], "0002": [24, 32]}
    snapshots = {
        trial: sorted(path.name[-2:] for path in folder.run(trial).snapshots.iterdir())
        for trial in ledger.records
    }
    assert snapshots == {"0000": ["32"], "0001": ["32"], "0002": ["00", "32"]}


def test_workers_that_are_still_saving_are_left_alone(search: tuple[SearchFolder, Ledger]):
    folder, ledger = search
    ledger.begin("0000", Life(0, {}))
    ledger.end("0000", "stopped")
    run = folder.run("0000")
    write_checkpoint(run.checkpoints, 32)
    run.stop_request.touch()
    Janitor(folder).tidy(ledger.records, {}, ())
    assert checkpoints_in(run.checkpoints)
    run.stop_request.unlink()
    Janitor(folder).tidy(ledger.records, {}, ())
    assert not checkpoints_in(run.checkpoints)


@pytest.mark.parametrize("seed", range(4))
def test_in_a_population_nothing_is_removed_that_is_copied_or_gone_on_from(
    search: tuple[SearchFolder, Ledger], seed: int
):
    """Trials overshoot their comparisons, exploits are decided long before they are copied, and
    the janitor comes at every moment in between.
    """
    folder, ledger = search
    janitor = Janitor(folder, EVERY)
    trials = [f"{index:04d}" for index in range(6)]
    lives = {trial: Life(0, {}) for trial in trials}
    at = dict.fromkeys(trials, 0)
    draws = iter(rng.uniform(seed, "population", 0, 10_000).tolist())
    copies = removed = most = 0

    def tidy() -> None:
        nonlocal removed, most
        before = count()
        janitor.tidy(ledger.records, lives, ())
        removed += before - count()
        most = max(most, count())

    def count() -> int:
        return sum(
            len(checkpoints_in(folder.run(trial, life).checkpoints))
            for trial in trials
            for life in range(lives[trial].index + 1)
        )

    for comparison in range(EVERY, 8 * EVERY + 1, EVERY):
        for trial in trials:
            life = lives[trial]
            run = folder.run(trial, life.index)
            ledger.begin(trial, life)
            if life.origin is not None and not checkpoints_in(run.checkpoints):
                donor = folder.run(life.origin.trial, life.origin.life)
                found = checkpoints_in(donor.checkpoints)
                assert life.origin.images_seen in found, "what was to be copied is gone"
                write_checkpoint(run.checkpoints, life.origin.images_seen)
                at[trial] = life.origin.images_seen
                copies += 1
            newest = max(checkpoints_in(run.checkpoints), default=0)
            assert newest == at[trial], "what the trial goes on from is gone"
            # Past the comparison by up to two checkpoints, as workers do not wait.
            end = comparison + FINER * int(3 * next(draws))
            for images_seen in range(newest + FINER, end + 1, FINER):
                write_checkpoint(run.checkpoints, images_seen)
                if next(draws) < 0.3:
                    tidy()
            at[trial] = max(end, newest)
            ledger.report(trial, Report(comparison, {"loss": next(draws)}))
            tidy()
        if next(draws) < 0.5 and comparison == 4 * EVERY:
            ledger.end(trials[0], "failed", "a test")
        alive = [t for t in trials if ledger.records[t].open]
        ranked = sorted(alive, key=lambda t: ledger.records[t].reports[-1].values["loss"])
        for best, worst in zip(ranked[:2], ranked[-2:], strict=True):
            origin = Origin(best, ledger.records[best].life.index, comparison)
            lives[worst] = Life(lives[worst].index + 1, {}, origin)
            if next(draws) < 0.7:
                tidy()
        trials = alive
        tidy()
    assert copies > 8
    assert removed > 40
    # The bound of the preview: what was saved since the last comparison, for each of two lives.
    per_interval = EVERY // FINER
    assert most <= 6 * 2 * (per_interval + 1)


def test_a_donor_that_is_over_keeps_what_is_still_to_be_copied(
    search: tuple[SearchFolder, Ledger],
):
    folder, ledger = search
    for trial in ("0000", "0001"):
        ledger.begin(trial, Life(0, {}))
        ledger.report(trial, Report(32, {"loss": 0.5}))
        for images_seen in (24, 32, 40):
            write_checkpoint(folder.run(trial).checkpoints, images_seen)
    ledger.end("0001", "finished")
    # Ray has decided it, and the trial's process is not up yet.
    lives = {"0000": Life(1, {}, Origin("0001", 0, 32))}
    Janitor(folder, EVERY).tidy(ledger.records, lives, ())
    assert sorted(checkpoints_in(folder.run("0001").checkpoints)) == [32]
    # Until then a driver that dies forgets it, and the trial goes on from its own newest.
    assert sorted(checkpoints_in(folder.run("0000").checkpoints)) == [40]
    ledger.begin("0000", lives["0000"], 32)
    write_checkpoint(folder.run("0000", 1).checkpoints, 32)
    Janitor(folder, EVERY).tidy(ledger.records, {}, ())
    assert not checkpoints_in(folder.run("0001").checkpoints)
    assert not checkpoints_in(folder.run("0000").checkpoints)
    assert sorted(checkpoints_in(folder.run("0000", 1).checkpoints)) == [32]


def trained(root: Path, steps: int, **changes: object) -> CheckpointStore:
    job = toy_job(root, **changes)
    for _ in range(steps):
        x = torch.randn(2, 1, 4, 4)
        job.engine.backward(job.engine.network(x, x.mean((1, 2, 3)), None).square().sum())
        job.engine.step(1e-2)
        job.ema.update(job.engine.steps * 8)
        job.store.save(job.engine, job.ema, job.facts, images_seen=job.engine.steps * 8)
    return job.store


ORIGIN = Origin("0001", 0, 16)
MINE = replace(FACTS, identity="identity-b", config={"name": "mutated"})


def test_a_copied_checkpoint_is_the_donors_state_under_the_trials_own_identity(tmp_path: Path):
    donor = trained(tmp_path / "donor", 3)
    path = adopt(donor.root, tmp_path / "own" / "checkpoints", MINE, ORIGIN)
    own = CheckpointStore(tmp_path / "own" / "checkpoints")
    start = choose_start(own, "must", MINE)
    assert start is not None
    assert (start.path, start.images_seen) == (path, 16)
    theirs = checkpoint_at(donor.root, 16)
    with CheckpointReader(start) as ours, CheckpointReader(theirs) as others:
        for name, shape in theirs.shapes.items():
            count = torch.Size(shape).numel()
            for quantity in ("param", "exp_avg", "exp_avg_sq", "ema.ema"):
                mine = ours.read(quantity, name, 0, count)
                assert torch.equal(mine, others.read(quantity, name, 0, count))
    assert start.facts.identity == "identity-b"
    parent = json.loads((path / MANIFEST).read_text())["parent"]
    assert (parent["trial"], parent["identity"]) == ("0001", FACTS.identity)
    snapshot = write_snapshot(tmp_path / "own" / "snapshots", start)
    assert json.loads((snapshot / "snapshot.json").read_text())["identity"] == "identity-b"
    # Done again, after a restart, it is the same copy.
    before = (path / MANIFEST).stat().st_mtime_ns
    assert adopt(donor.root, own.root, MINE, ORIGIN) == path
    assert (path / MANIFEST).stat().st_mtime_ns == before


def test_what_is_not_there_or_damaged_or_of_other_data_is_not_copied(tmp_path: Path):
    donor = trained(tmp_path / "donor", 2)
    own = tmp_path / "own"
    with pytest.raises(CheckpointError, match="no checkpoint at 24 images"):
        adopt(donor.root, own, MINE, Origin("0001", 0, 24))
    with pytest.raises(CheckpointError, match="trained on dataset"):
        adopt(donor.root, own, replace(MINE, dataset="other"), ORIGIN)
    part = checkpoint_at(donor.root, 16).path / "rank-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        adopt(donor.root, own, MINE, ORIGIN)
    assert not list(own.glob("step-*"))


def test_a_copy_that_is_not_what_its_manifest_says_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    donor = trained(tmp_path / "donor", 2)

    def torn(source: Path, target: Path) -> Path:
        target.write_bytes(source.read_bytes()[:-1])
        return target

    monkeypatch.setattr(search_exploit.shutil, "copyfile", torn)
    with pytest.raises(CheckpointError, match=r"the copy of .* is damaged"):
        adopt(donor.root, tmp_path / "own", MINE, ORIGIN)
    assert not list((tmp_path / "own").iterdir())


def test_half_a_copy_of_an_earlier_start_is_replaced(tmp_path: Path):
    donor = trained(tmp_path / "donor", 2)
    half = tmp_path / "own" / "step-00000002"
    half.mkdir(parents=True)
    (half / "rank-00000.safetensors").write_bytes(b"torn")
    path = adopt(donor.root, tmp_path / "own", MINE, ORIGIN)
    assert open_checkpoint(path, verify=True).facts.identity == "identity-b"
    assert [p.name for p in (tmp_path / "own").iterdir()] == ["step-00000002"]
